"""One run at a time on an output: a lock that a dead holder cannot keep.

    OUT/.work/lock      says who holds it; empty when nobody does

On a store, `pipeline.runs.lock_s3` is the lock. In a folder it is the kernel's (`flock`), so it
ends with the process that holds it, however that ends. Some network file systems keep it on one
machine only: there a holder elsewhere is believed alive while it goes on touching the file.

Some file systems have no `flock` at all. There the file's content is the lock: a holder on this
machine is looked up by its process id, one elsewhere is believed while it touches the file, and
a second file, made exclusively, keeps two runs from taking it at the same moment.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from scenesweep.pipeline.errors import OutputInUse, UsageError
from scenesweep.pipeline.runs.lock_holder import BEAT_S, Holder, is_alive, myself, read_holder
from scenesweep.pipeline.runs.lock_s3 import store_lock, store_lock_state
from scenesweep.pipeline.storage.commit import drop_leftovers, make_folder, unwritable
from scenesweep.pipeline.storage.location import location_of
from scenesweep.pipeline.storage.objects import S3Location
from scenesweep.pipeline.storage.paths import Output

_TAKING_S = 10.0
"""Taking a lock is over in less; what is older is of a process that died in it."""


@dataclass(frozen=True, slots=True)
class LockState:
    """A lock as it was seen: the run that holds it, if any, and `mark`.

    Where nobody holds it, another `mark` than before says that a run began since; it may have
    ended.
    """

    holder: Holder | None
    mark: str


@contextmanager
def output_lock(out: str) -> Iterator[Holder | None]:
    """Hold the output for the block; gives the holder that died before, where one did.

    Raises:
        OutputInUse: when another run holds it, naming that.
        OutputError: when nothing can be written there.
        UsageError: when it is not a folder.
    """
    where = location_of(out)
    if isinstance(where, S3Location):
        with store_lock(where) as died:
            yield died
        return
    path = Output(where).lock
    if where.exists() and not where.is_dir():
        raise UsageError(f"--out {out}: expected a folder, found a file")
    try:
        make_folder(path.parent)
        file = path.open("ab+", buffering=0)  # what cannot be written now is not tried at the end
    except OSError as error:
        raise unwritable(where, error) from error
    with file:
        me = myself()
        before = _take(file, out, me)
        ended = threading.Event()
        threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
        drop_leftovers(Output(where).aside)
        try:
            yield before
        finally:
            ended.set()
            if _read(file) in (me, None):
                _write(file, None)


def lock_state(out: str) -> LockState:
    """Look at an output's lock without taking it: a run may start at the same moment."""
    where = location_of(out)
    if isinstance(where, S3Location):
        return LockState(*store_lock_state(where))
    try:
        with Output(where).lock.open("rb", buffering=0) as file:
            holder = _read(file)
            alive = holder is not None and is_alive(holder, _age_s(file))
            facts = os.fstat(file.fileno())
            mark = f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
            return LockState(holder if alive else None, mark)
    except OSError:
        return LockState(None, "")


def holder_of(out: str) -> Holder | None:
    """Say who is writing an output, without taking it; None when nobody is."""
    return lock_state(out).holder


def _take(file: FileIO, out: str, me: Holder) -> Holder | None:
    """Lock the file and write our name, or raise; return the holder that died with it, if any."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        has_locks = True
    except BlockingIOError:
        raise OutputInUse(_in_use(out, _read(file))) from None
    except OSError:  # ENOSYS, ENOLCK, EOPNOTSUPP: this file system has no such locks
        has_locks = False
    with nullcontext() if has_locks else _taking(file, out):
        holder = _read(file)
        if holder is not None and _is_alive(file, holder, has_locks=has_locks):
            raise OutputInUse(_in_use(out, holder))
        _write(file, me)
    return holder


def _in_use(out: str, holder: Holder | None) -> str:
    return f"{out}: another run is writing there: {holder or 'just started'}"


@contextmanager
def _taking(file: FileIO, out: str) -> Iterator[None]:
    """Keep other processes from reading and writing the lock while this one does.

    Raises:
        OutputInUse: when another process is at it.
        OutputError: when nothing can be written there.
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
                raise OutputInUse(_in_use(out, None))
            path.unlink()
    else:
        raise OutputInUse(_in_use(out, None))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _is_alive(file: FileIO, holder: Holder, *, has_locks: bool) -> bool:
    """Say whether a holder may be alive; of this kernel's processes `flock` has told it."""
    here = myself()
    ours = holder.host == here.host or (holder.boot and holder.boot == here.boot)
    return not (has_locks and ours) and is_alive(holder, _age_s(file))


def _age_s(file: FileIO) -> float:
    """Return how old the last beat is."""
    return _server_time(Path(str(file.name))) - os.fstat(file.fileno()).st_mtime


def _server_time(beside: Path) -> float:
    """Return the time by the clock that stamps the file's beats: not always this machine's."""
    probe = beside.with_name(f".{os.getpid()}.probe")
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
        said = json.loads(file.read())
    except ValueError:  # empty, or cut short by a crash
        return None
    return read_holder(said) if isinstance(said, dict) else None


def _write(file: FileIO, holder: Holder | None) -> None:
    """Say who holds the lock; a full disk does not keep a run from starting, nor from ending."""
    with suppress(OSError):
        file.truncate(0)
        file.write(json.dumps(asdict(holder)).encode() if holder else b"")
