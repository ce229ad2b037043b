"""The file of a run that writes an output, in a folder or in a cloud: who is it, and is it alive?

In a folder the run holds a lock of the kernel on its file (`flock`), and touches the file regularly
(its heartbeat). In a cloud it puts the object again regularly. A run on this machine is looked up
by its process id; any other counts as alive while its heartbeats go on.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scenesweep.pipeline.errors import OutputError
from scenesweep.pipeline.runs import lock_holder
from scenesweep.pipeline.runs.lock import age_of, is_here
from scenesweep.pipeline.runs.lock_holder import Holder, is_alive, read_holder
from scenesweep.pipeline.storage.clients import Outdated
from scenesweep.pipeline.storage.commit import make_folder, remove, unwritable
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.objects import ObjectLocation, age_s, put_over, read_version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a run. `holder` is None if the file is missing or damaged."""

    path: Location
    holder: Holder | None
    alone: bool
    alive: bool


@dataclass(frozen=True, slots=True)
class Registered:
    """The file of this run. Its heartbeats go on until `end` removes it."""

    path: Location
    ended: threading.Event
    beats: threading.Thread
    file: BinaryIO | None = None

    def end(self) -> None:
        """Remove the file: the run claims nothing any more."""
        self.ended.set()
        self.beats.join()
        with suppress(OutputError):
            remove(self.path)
        if self.file is not None:
            self.file.close()


def registered(path: Location, holder: Holder, *, alone: bool) -> Registered:
    """Write the file of this run, and start its heartbeats.

    Raises:
        OutputError: if it cannot be written.
    """
    content = json.dumps(asdict(holder) | {"alone": alone}).encode()
    file = None
    if isinstance(path, ObjectLocation):
        _put(path, content)
    else:
        try:
            make_folder(path.parent)
            file = _locked(path, content)
        except OSError as error:
            raise unwritable(path.parent, error) from error
    ended = threading.Event()
    arguments = (_beat_of(path, content), ended)
    beats = threading.Thread(target=_beat_regularly, args=arguments, daemon=True)
    beats.start()
    return Registered(path, ended, beats, file)


def read_entry(path: Location) -> Entry:
    """Read the file of a run, which may be missing."""
    if isinstance(path, ObjectLocation):
        return _read_object(path)
    try:
        holder, alone = _parsed(path.read_bytes())
        alive = holder is not None and _holds(path, holder)
    except OSError:
        return Entry(path, None, alone=False, alive=False)
    return Entry(path, holder, alone, alive)


def _read_object(path: ObjectLocation) -> Entry:
    current = read_version(path)
    holder, alone = (None, False) if current is None else _parsed(current.content)
    if current is None or holder is None:
        return Entry(path, None, alone=False, alive=False)
    return Entry(path, holder, alone, is_alive(holder, age_s(path, current)))


def _parsed(content: bytes) -> tuple[Holder | None, bool]:
    try:
        read: dict[str, Any] = json.loads(content)
        return read_holder(read), bool(read.get("alone"))
    except (ValueError, AttributeError):  # truncated by a crash
        return None, False


def _locked(path: Path, content: bytes) -> BinaryIO:
    """Write the file, and lock it if the file system has such locks."""
    file = path.open("wb", buffering=0)
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        file.write(content)
    except OSError:
        file.close()
        path.unlink(missing_ok=True)
        raise
    return file


def _holds(path: Path, holder: Holder) -> bool:
    """Say whether a run may be alive. On this machine it is not if nobody locks its file."""
    if is_here(holder):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
            except BlockingIOError:
                return True
            except OSError:  # ENOSYS, ENOLCK, EOPNOTSUPP: this file system has no such locks
                pass
    return is_alive(holder, age_of(path))


def _beat_of(path: Location, content: bytes) -> Callable[[], None]:
    def beat() -> None:
        if isinstance(path, ObjectLocation):
            _put(path, content)
            return
        try:
            os.utime(path)
        except FileNotFoundError:  # this machine was suspended, and another run removed the file
            path.write_bytes(content)

    return beat


def _beat_regularly(beat: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(lock_holder.BEAT_S):
        try:
            beat()
        except (OSError, OutputError) as error:
            log.warning("this run cannot show that it is alive: %s", error)


def _put(path: ObjectLocation, content: bytes) -> None:
    """Put the object, whatever version is there: nobody else puts it."""
    for _ in range(2):
        with suppress(Outdated):
            put_over(path, content, read_version(path))
            return
