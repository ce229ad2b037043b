"""One run at a time on an output in a store: a lock that is an object.

    s3://BUCKET/PREFIX/.work/lock      says who holds it; empty when nobody does

It is put only over the version that was read (`If-Match`, or `If-None-Match` where there is none),
so of two that take it at once one has it. Its holder goes on putting it; one that has not for
`DEAD_AFTER_S`, by the store's clock, is dead, as is a process of this machine that is gone.
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
from scenesweep.pipeline.runs import lock_holder as times
from scenesweep.pipeline.runs.lock_holder import Holder, is_alive, myself, read_holder
from scenesweep.pipeline.storage.objects import (
    Outdated,
    S3Location,
    Version,
    put_over,
    read_version,
)
from scenesweep.pipeline.storage.paths import Output

log = logging.getLogger(__name__)

_TRIES = 5
_PAUSE_S = 0.2


@dataclass(slots=True)
class _Held:
    """The lock as this process holds it. `run` tells it from every other holder."""

    path: S3Location
    holder: Holder
    run: str
    tag: str = ""
    lost: bool = False

    def put(self, before: Version | None, *, free: bool = False) -> None:
        """Put the lock over a version of it; what was put and not heard of counts.

        Raises:
            Outdated: when it is another's.
        """
        # No two puts are alike, so that a tag names one of them.
        said = asdict(self.holder) | {"run": self.run, "beat": secrets.token_hex(4)}
        try:
            self.tag = put_over(self.path, b"" if free else json.dumps(said).encode(), before)
        except Outdated:
            there = read_version(self.path)
            if there is None or _said(there).get("run") != self.run:
                raise
            self.tag = there.tag

    def beat(self, ended: threading.Event) -> None:
        """Put it again and again until told that the run ended."""
        while not ended.wait(times.BEAT_S):
            try:
                self.put(Version(b"", self.tag, 0.0))
            except OutputError as error:
                log.warning("the lock could not be renewed: %s", error)
            except Outdated:
                self.lost = True
                log.error("%s: another run took the output over", self.path.parent.parent)
                return

    def release(self) -> None:
        """Leave it empty, unless it is another's by now."""
        with suppress(Outdated, OutputError):
            self.put(Version(b"", self.tag, 0.0), free=True)


@contextmanager
def store_lock(out: S3Location) -> Iterator[Holder | None]:
    """Hold an output for the block; gives the holder that died before, where one did.

    Raises:
        OutputInUse: when another run holds it, or took it over because this one showed no life.
        OutputError: when the store cannot be written to.
    """
    held = _Held(Output(out).lock, myself(), secrets.token_hex(8))
    before = _take(held, out)
    ended = threading.Event()
    beats = threading.Thread(target=held.beat, args=(ended,), daemon=True)
    beats.start()
    try:
        yield before
    finally:
        ended.set()
        beats.join()
        held.release()
    if held.lost:
        raise OutputInUse(f"{out}: another run took it over while this one showed no life")


def store_lock_state(out: S3Location) -> tuple[Holder | None, str]:
    """Return who is writing an output, if anybody is, and the version of its lock."""
    there = read_version(Output(out).lock)
    if there is None:
        return None, ""
    holder = read_holder(_said(there))
    return holder if holder and is_alive(holder, there.age_s) else None, there.tag


def _take(held: _Held, out: S3Location) -> Holder | None:
    """Put our name in the lock or raise; return the holder that died with it, if any."""
    for _ in range(_TRIES):
        there = read_version(held.path)
        holder = None if there is None else read_holder(_said(there))
        if there and holder and is_alive(holder, there.age_s):
            raise OutputInUse(f"{out}: another run is writing there: {holder}")
        try:
            held.put(there)
            return holder
        except Outdated:  # somebody else was faster
            time.sleep(_PAUSE_S)
    raise OutputInUse(f"{out}: another run is writing there: just started")


def _said(there: Version) -> dict[str, Any]:
    try:
        said = json.loads(there.content)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
