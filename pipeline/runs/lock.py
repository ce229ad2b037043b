"""One run at a time on an output: a lock that a dead holder cannot keep.

    OUT/.work/lock      says who holds it; empty when nobody does

On a store, `pipeline.runs.lock_store` is the lock. In a folder it is the kernel's (`flock`), so it
ends with the process that holds it, however that ends.
Some network file systems keep it on one machine only: there a holder elsewhere is believed alive
while it goes on touching the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from pipeline.commit import drop_leftovers, make_folder, unwritable
from pipeline.errors import OutputInUse, UsageError
from pipeline.place import place
from pipeline.runs.holder import BEAT_S, DEAD_AFTER_S, Holder, myself
from pipeline.runs.lock_store import store_holder, store_lock
from pipeline.store import S3Place


@contextmanager
def output_lock(out: str) -> Iterator[Holder | None]:
    """Hold the output for the block; gives the holder that died before, where one did.

    Raises:
        OutputInUse: when another run holds it, naming that.
        OutputError: when nothing can be written there.
        UsageError: when it is not a folder.
    """
    where = place(out)
    if isinstance(where, S3Place):
        with store_lock(where) as died:
            yield died
        return
    path = where / ".work" / "lock"
    if where.exists() and not where.is_dir():
        raise UsageError(f"--out {out}: expected a folder, found a file")
    try:
        make_folder(path.parent)
        file = path.open("ab+", buffering=0)  # what cannot be written now is not tried at the end
    except OSError as error:
        raise unwritable(where, error) from error
    with file:
        before = _take(file, out)
        _write(file, myself())
        ended = threading.Event()
        threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
        drop_leftovers(path.parent / "aside")
        try:
            yield before
        finally:
            ended.set()
            _write(file, None)


def holder_of(out: str) -> Holder | None:
    """Say who is writing an output, without taking it; None when nobody is."""
    where = place(out)
    if isinstance(where, S3Place):
        return store_holder(where)
    path = where / ".work" / "lock"
    try:
        with path.open("rb", buffering=0) as file:
            holder = _read(file)
            if holder is not None and not _is_alive_elsewhere(file, holder):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            return holder
    except BlockingIOError:
        return holder
    except OSError:
        return None


def _take(file: FileIO, out: str) -> Holder | None:
    """Lock the file or raise; return the holder that died with it, if any."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except BlockingIOError:
        locked = False
    except OSError:  # no locks on this file system: the beats alone must do
        locked = True
    holder = _read(file)
    if not locked or (holder is not None and _is_alive_elsewhere(file, holder)):
        raise OutputInUse(f"{out}: another run is writing there: {holder or 'just started'}")
    return holder


def _is_alive_elsewhere(file: FileIO, holder: Holder) -> bool:
    """Say whether a holder that this machine's kernel knows nothing of may be alive."""
    here = myself()
    if holder.host == here.host or (holder.boot and holder.boot == here.boot):
        return False
    return _server_time(Path(str(file.name))) - os.fstat(file.fileno()).st_mtime < DEAD_AFTER_S


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
        return Holder(**json.loads(file.read()))
    except (ValueError, TypeError):  # empty, or cut short by a crash
        return None


def _write(file: FileIO, holder: Holder | None) -> None:
    """Say who holds the lock; a full disk does not keep a run from starting, nor from ending."""
    with suppress(OSError):
        file.truncate(0)
        file.write(json.dumps(asdict(holder)).encode() if holder else b"")
