"""A lock on an output, held for a short time. A dead run never keeps the lock.

    OUT/.work/lock      contains the holder; empty if nobody holds the lock

A run holds it while it begins (`pipeline.runs.writers`), and while it writes files that all runs
share, such as the catalog. Scenes have claims of their own (`pipeline.runs.claims`).

`lock_store` is the lock of an output in a cloud. In a folder it is a lock of the kernel
(`flock`), which ends with the process that holds it, however that process ends. Some network
file systems keep such locks on one machine only. So a holder on another machine counts as alive
while it touches the file regularly (its heartbeat).

Some file systems have no `flock` at all. Then the content of the file is the lock. A holder on
this machine is looked up by its process id. A holder elsewhere counts as alive while it touches
the file. A second file, created exclusively, keeps two runs from taking the lock at the same
moment.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from scenesweep.pipeline.errors import OutputInUse, UsageError
from scenesweep.pipeline.runs.lock_holder import (
    BEAT_S,
    Holder,
    in_use,
    is_alive,
    myself,
    read_holder,
)
from scenesweep.pipeline.runs.lock_store import store_lock, store_lock_state
from scenesweep.pipeline.storage.commit import make_folder, unwritable
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.objects import ObjectLocation
from scenesweep.pipeline.storage.paths import Output

log = logging.getLogger(__name__)

WAIT_S = 600.0
"""How long a run waits for another one that begins, or writes the catalog."""
_LOOK_EVERY_S = 0.2
_TAKING_S = 10.0
"""Taking a lock takes less time. An older file is left over from a process that died then."""


@dataclass(frozen=True, slots=True)
class LockState:
    """What a look at a lock showed: the run that holds it, if any, and a `mark`.

    If nobody holds the lock and the mark differs from an earlier one, a run has begun since then,
    and may have ended.
    """

    holder: Holder | None
    mark: str


@contextmanager
def output_lock(out: Location, *, wait_s: float = 0.0) -> Iterator[Holder | None]:
    """Hold the lock during the block. Yield the dead holder of before, or None.

    Raises:
        OutputInUse: if another run still holds the lock after `wait_s`; the message names it.
        OutputError: if nothing can be written to the output.
        UsageError: if the output is not a folder.
    """
    with ExitStack() as held:
        yield _wait_for(held, out, time.monotonic() + wait_s)


def _wait_for(held: ExitStack, out: Location, until: float) -> Holder | None:
    waited = False
    while True:
        try:
            return held.enter_context(_lock(out))
        except OutputInUse as error:
            if time.monotonic() >= until:
                raise
            if not waited:
                log.debug("waiting for the lock: %s", error)
            waited = True
            time.sleep(_LOOK_EVERY_S)


@contextmanager
def _lock(out: Location) -> Iterator[Holder | None]:
    if isinstance(out, ObjectLocation):
        with store_lock(out) as dead:
            yield dead
        return
    path = Output(out).lock
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a folder, found a file")
    try:
        make_folder(path.parent)
        file = path.open("ab+", buffering=0)  # fail now rather than at the end
    except OSError as error:
        raise unwritable(out, error) from error
    with file:
        me = myself()
        dead_holder = _take(file, out, me)
        ended = threading.Event()
        threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
        try:
            yield dead_holder
        finally:
            ended.set()
            if _read(file) in (me, None):
                _write(file, None)


def lock_state(out: Location) -> LockState:
    """Look at the lock of an output without taking it: a run may start at the same moment."""
    if isinstance(out, ObjectLocation):
        return LockState(*store_lock_state(out))
    try:
        with Output(out).lock.open("rb", buffering=0) as file:
            holder = _read(file)
            alive = holder is not None and is_alive(holder, age_of(Output(out).lock))
            facts = os.fstat(file.fileno())
            mark = f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
            return LockState(holder if alive else None, mark)
    except OSError:
        return LockState(None, "")


def holder_of(out: Location) -> Holder | None:
    """Return the run that is writing an output, without taking the lock; None if there is none."""
    return lock_state(out).holder


def _take(file: FileIO, out: Location, me: Holder) -> Holder | None:
    """Lock the file and write `me` into it, or raise. Return the dead holder of before, if any."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        has_flock = True
    except BlockingIOError:
        raise OutputInUse(in_use(out, _read(file))) from None
    except OSError:  # ENOSYS, ENOLCK, EOPNOTSUPP: this file system has no such locks
        has_flock = False
    with nullcontext() if has_flock else _taking(file, out):
        holder = _read(file)
        if holder is not None and _is_alive(file, holder, has_flock=has_flock):
            raise OutputInUse(in_use(out, holder))
        _write(file, me)
    return holder


@contextmanager
def _taking(file: FileIO, out: Location) -> Iterator[None]:
    """Keep other processes from taking the lock during the block.

    Raises:
        OutputInUse: if another process is taking it.
        OutputError: if nothing can be written there.
    """
    path = Path(f"{file.name}.taking")
    for _ in range(2):
        try:
            path.touch(exist_ok=False)
            break
        except FileExistsError:
            pass
        except OSError as error:
            raise unwritable(path.parent.parent, error) from error
        with suppress(FileNotFoundError):
            if _server_time(path) - path.stat().st_mtime < _TAKING_S:
                raise OutputInUse(in_use(out, None))
            path.unlink()
    else:
        raise OutputInUse(in_use(out, None))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _is_alive(file: FileIO, holder: Holder, *, has_flock: bool) -> bool:
    """Say whether a holder may be alive. On this machine it is not, if we have its `flock`."""
    return not (has_flock and is_here(holder)) and is_alive(holder, age_of(Path(str(file.name))))


def is_here(holder: Holder) -> bool:
    """Say whether a holder is on this machine: its locks of the kernel are visible here."""
    here = myself()
    return holder.host == here.host or bool(holder.boot and holder.boot == here.boot)


def age_of(path: Path) -> float:
    """Return the seconds since a file changed, by the clock of its server: the last heartbeat."""
    return _server_time(path) - path.stat().st_mtime


def _server_time(path: Path) -> float:
    """Return the time by the clock that stamps a file: on a network, that of its server."""
    probe = path.with_name(f".{os.getpid()}.probe")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return datetime.now(UTC).timestamp()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            os.utime(path)


def _read(file: FileIO) -> Holder | None:
    file.seek(0)
    try:
        content = json.loads(file.read())
    except ValueError:  # empty, or truncated by a crash
        return None
    return read_holder(content) if isinstance(content, dict) else None


def _write(file: FileIO, holder: Holder | None) -> None:
    """Write who holds the lock. A full disk must not keep a run from starting or ending."""
    with suppress(OSError):
        file.truncate(0)
        file.write(json.dumps(asdict(holder)).encode() if holder else b"")
