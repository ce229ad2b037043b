"""A lock on an output in a cloud, so that one run at a time writes it: the lock is an object.

    s3://BUCKET/PREFIX/.work/lock      contains the holder; empty if nobody holds the lock

A run puts the object only over the version that it has read, or only if there was none: the
condition of the put names the ETag, or the generation on Google Cloud Storage. So if two runs take
the lock at once, one gets it. The holder puts the object again regularly (its heartbeat). A holder
without a heartbeat for `DEAD_AFTER_S`, by the clock of the store, is dead; so is a process of this
machine that no longer exists.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from scenesweep.pipeline.errors import OutputError, OutputInUse
from scenesweep.pipeline.runs import lock_holder
from scenesweep.pipeline.runs.lock_holder import Holder, in_use, is_alive, myself, read_holder
from scenesweep.pipeline.storage.clients import Outdated
from scenesweep.pipeline.storage.objects import (
    ObjectLocation,
    Version,
    age_s,
    put_over,
    read_version,
)
from scenesweep.pipeline.storage.paths import Output

log = logging.getLogger(__name__)

_ATTEMPTS = 5
_PAUSE_S = 0.2


@dataclass(slots=True)
class _Held:
    """The lock that this process holds. `run` distinguishes it from every other holder."""

    path: ObjectLocation
    holder: Holder
    run: str
    tag: str = ""
    lost: bool = False

    def put(self, before: Version | None, *, free: bool = False) -> None:
        """Put the lock over a version of it, or clear it if it becomes `free`.

        If the answer of an earlier put was lost, this run still recognises the lock as its own.

        Raises:
            Outdated: if another run has put the lock since.
        """
        # Make each put different, so that each has a tag of its own.
        content = asdict(self.holder) | {"run": self.run, "beat": secrets.token_hex(4)}
        try:
            self.tag = put_over(self.path, b"" if free else json.dumps(content).encode(), before)
        except Outdated:
            current = read_version(self.path)
            if current is None or _content(current).get("run") != self.run:
                raise
            self.tag = current.tag

    def beat(self, ended: threading.Event) -> None:
        """Put the lock again regularly until the run has ended."""
        while not ended.wait(lock_holder.BEAT_S):
            try:
                self.put(Version(b"", self.tag))
            except OutputError as error:
                log.warning("the lock could not be renewed: %s", error)
            except Outdated:
                self.lost = True
                log.error("%s: another run took over this output", self.path.parent.parent)
                return

    def release(self) -> None:
        """Clear the lock, unless another run holds it by now."""
        with suppress(Outdated, OutputError):
            self.put(Version(b"", self.tag), free=True)


@contextmanager
def store_lock(out: ObjectLocation) -> Iterator[Holder | None]:
    """Hold the lock during the block. Yield the dead holder of before, or None.

    Raises:
        OutputInUse: if another run holds the lock, or took it over because this run did not
            renew it.
        OutputError: if the store cannot be written to.
    """
    held = _Held(Output(out).lock, myself(), secrets.token_hex(8))
    dead_holder = _take(held, out)
    ended = threading.Event()
    beats = threading.Thread(target=held.beat, args=(ended,), daemon=True)
    beats.start()
    try:
        yield dead_holder
    finally:
        ended.set()
        beats.join()
        held.release()
    if held.lost:
        raise OutputInUse(
            f"{out}: another run took it over, because this run could not renew its lock for "
            f"{lock_holder.DEAD_AFTER_S:.0f} s; rerun the same command when that run has ended"
        )


def store_lock_state(out: ObjectLocation) -> tuple[Holder | None, str]:
    """Return the run that is writing an output, if any, and the version of its lock."""
    path = Output(out).lock
    current = read_version(path)
    if current is None:
        return None, ""
    holder = read_holder(_content(current))
    alive = holder is not None and is_alive(holder, age_s(path, current))
    return holder if alive else None, current.tag


def _take(held: _Held, out: ObjectLocation) -> Holder | None:
    """Write this run into the lock, or raise. Return the dead holder of before, if any."""
    for _ in range(_ATTEMPTS):
        current = read_version(held.path)
        holder = None if current is None else read_holder(_content(current))
        if current and holder and is_alive(holder, age_s(held.path, current)):
            raise OutputInUse(in_use(out, holder))
        try:
            held.put(current)
            return holder
        except Outdated:  # another run was faster
            time.sleep(_PAUSE_S)
    raise OutputInUse(in_use(out, None))


def _content(version: Version) -> dict[str, Any]:
    try:
        content = json.loads(version.content)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
