"""Limits of a run: one part of the scenes, a number of scenes, a time to stop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path

from scenesweep.pipeline.engine.steps import Stop, never
from scenesweep.pipeline.errors import ScenesweepError, UsageError
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.storage.network import cloud_of, is_remote
from scenesweep.pipeline.storage.remote import object_at

_THREADS = 32


def newest_first(order: Order) -> Order:
    """Return the scenes in the order of their acquisition, the last one first.

    A scene without a time in a catalog or list counts by the modification time of its first file.
    Scenes without either come last. Equal ones keep their order.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        times = list(threads.map(_time_of, order.sources))
    by_time = sorted(zip(times, order.sources, strict=True), key=lambda one: one[0], reverse=True)
    return replace(order, sources=tuple(source for _, source in by_time))


def _time_of(ref: SceneRef) -> float:
    """Return seconds since 1970; minus infinity if nothing is known."""
    at = ref.hints.acquired_at
    if at is not None:
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    with suppress(OSError, ScenesweepError):
        href = ref.files[0].href
        if not is_remote(href):
            return Path(href).stat().st_mtime
        if cloud_of(href):
            return object_at(href).stat().st_mtime
    return -math.inf


def shard_of(order: Order, shard: str) -> Order:
    """Return the scenes of part `i/n`. The hash of a scene's id decides its part.

    Raises:
        UsageError: if i is larger than n.
    """
    if not shard:
        return order
    number, count = map(int, shard.split("/"))
    if number > count:
        raise UsageError(f"--shard {shard}: expected I/N with I from 1 to N")
    ours = (s for s in order.sources if _part(s.scene_id, count) == number - 1)
    return replace(order, sources=tuple(ours))


def _part(scene_id: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(scene_id.encode()).digest()[:8]) % count


def first_scenes(order: Order, limit: int | None, *, skipped: Collection[str]) -> Order:
    """Return the first `limit` scenes that are swept, with all that a run skips.

    `skipped` are the ids of scenes that are up to date or quarantined.
    """
    if limit is None:
        return order
    left = [source for source in order.sources if source.scene_id not in skipped][:limit]
    kept = {source.scene_id for source in left} | set(skipped)
    return replace(order, sources=tuple(s for s in order.sources if s.scene_id in kept))


def deadline_at(text: str | int, now: datetime) -> datetime | None:
    """Return the next time that `text` names, in the time zone of `now`; None if it is empty.

    `text` is HH:MM, a time with date and zone, or minutes: YAML reads 15:30 as 930.

    Raises:
        UsageError: if it is none of these, or a date that has passed.
    """
    if text == "":
        return None
    if isinstance(text, int):
        text = f"{text // 60:02}:{text % 60:02}"
    expected = f"--deadline {text}: expected HH:MM, such as 05:30, or 2026-11-21T05:30+00:00"
    try:
        if len(text) <= 5:
            clock = datetime.strptime(text, "%H:%M").time()
            at = _at_clock(now.date(), clock, now)
            return at if at > now else _at_clock(now.date() + timedelta(days=1), clock, now)
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(expected) from error
    if at.tzinfo is None:
        raise UsageError(expected)
    if at <= now:
        raise UsageError(f"--deadline {text}: this time has passed")
    return at


def _at_clock(day: date, clock: clock_time, now: datetime) -> datetime:
    """Return a time of a day in the zone of `now`; if that is local, with the offset of the day."""
    if now.utcoffset() == now.astimezone().utcoffset():
        return datetime.combine(day, clock).astimezone()
    return datetime.combine(day, clock, now.tzinfo)


@dataclass(slots=True)
class Deadline:
    """Stops a run when a time is reached, or when `stop` does. `reached`: it was the time."""

    stop: Stop = never
    at: datetime | None = None
    clock: Callable[[], float] = time.time
    reached: bool = field(default=False, init=False)

    def __call__(self) -> bool:
        if self.stop():
            return True
        if self.at is not None and self.clock() >= self.at.timestamp():
            self.reached = True
        return self.reached
