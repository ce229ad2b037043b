"""The detectors of a run: how many to start, which one is free, and when to give up on them."""

from __future__ import annotations

import logging
import time
from typing import Generic

from scenesweep.pipeline.engine.calls import DetectorSlot, StartCall
from scenesweep.pipeline.engine.steps import R, S
from scenesweep.pipeline.engine.workers import Workers
from scenesweep.pipeline.errors import ScenesweepError

log = logging.getLogger(__name__)

CALLS_EACH = 2
"""Calls at each detector: it runs one, while the pixels of the next are already there."""
_FAILED_STARTS = 5  # generations in a row that died before they were up: then the run ends
_LONG_START_S = 120.0  # without any detector, after which a warning says so


class Detectors(Generic[S, R]):
    """The detectors that are up or starting, at most `limit` of them."""

    def __init__(self, workers: Workers[S, R], limit: int) -> None:
        self.limit = limit
        self._workers = workers
        self._slots: list[DetectorSlot] = []
        self._unfit: list[DetectorSlot] = []
        self._reasons: set[str] = set()
        self._started = self._newest_failed = self._failed_starts = 0
        self._began, self._none_yet = time.monotonic(), True

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def up(self) -> int:
        """Number of detectors that are up."""
        return sum(slot.up for slot in self._slots)

    def first_calls(self) -> set[object]:
        """Return the references of the calls that detectors are running."""
        return {slot.queued[0] for slot in self._slots if slot.queued}

    def idle(self) -> list[DetectorSlot]:
        """Return the detectors without a call."""
        return [slot for slot in self._slots if not slot.queued]

    def least_busy(self, *, alone: bool = False) -> DetectorSlot | None:
        """Return the detector to give the next call to; None while all have enough.

        A call that is to be `alone` needs a detector without another call.
        """
        most = 1 if alone else CALLS_EACH
        up = (slot for slot in self._slots if slot.up and not slot.alone)
        free = [slot for slot in up if len(slot.queued) < most]
        return min(free, key=lambda slot: len(slot.queued), default=None)

    def start_missing(self, waiting: int) -> list[StartCall]:
        """Start detectors for so many `waiting` calls, up to the limit.

        All start at once, not one by one as reads end: an autoscaler starts the nodes that it is
        asked for together at the same time.
        """
        busy = len(self._slots) - len(self.idle())
        missing = min(self.limit, busy + waiting) - len(self._slots)
        return [self._start() for _ in range(missing)]

    def _start(self) -> StartCall:
        handle, ref = self._workers.start_detector()
        self._started += 1
        slot = DetectorSlot(handle, self._started)
        self._slots.append(slot)
        return StartCall(ref, slot)

    def has_started(self, slot: DetectorSlot) -> None:
        """Note that a detector is up."""
        slot.up, self._none_yet = True, False
        self._failed_starts = 0

    def start_failed(self, slot: DetectorSlot, reason: str) -> None:
        """Note that a detector died before it was up.

        Detectors that were started together and die together count as one failure.

        Raises:
            ScenesweepError: if this has happened too often in a row.
        """
        if slot.number > self._newest_failed:
            self._failed_starts += 1
            self._newest_failed = self._started
        if self._failed_starts >= _FAILED_STARTS:
            raise ScenesweepError(f"no detector starts; the last one died: {reason}")

    def machine_unfit(self, slot: DetectorSlot, reason: str) -> bool:
        """Note that a detector cannot start on its machine, and go on with one less.

        It keeps what it has reserved until the run ends, so that no other starts in its place.
        Return whether this reason is new: each GPU of a machine gives the same one.

        Raises:
            ScenesweepError: if no machine is left.
        """
        self._slots.remove(slot)
        self._unfit.append(slot)
        self.limit -= 1
        if not self.limit:
            raise ScenesweepError(f"no machine can run a detector: {reason}")
        is_new = reason not in self._reasons
        self._reasons.add(reason)
        return is_new

    def has(self, slot: DetectorSlot) -> bool:
        """Say whether a detector was not stopped yet."""
        return slot in self._slots

    def stop(self, slot: DetectorSlot) -> None:
        """Kill a detector, unless that was done before."""
        if slot in self._slots:
            self._slots.remove(slot)
            self._workers.stop_detector(slot.handle)

    def stop_idle(self) -> None:
        """Stop the detectors that are up and have no call."""
        for slot in self.idle():
            if slot.up:
                self.stop(slot)

    def stop_all(self) -> None:
        for slot in list(self._slots):
            self.stop(slot)
        for slot in self._unfit:
            self._workers.stop_detector(slot.handle)
        self._unfit.clear()

    def warn_if_none(self) -> None:
        """Log a warning, once, if the first detector takes long to start."""
        waited = time.monotonic() - self._began
        if self._none_yet and self._slots and waited > _LONG_START_S:
            log.warning(
                "no detector has started after %.0f s: check that the cluster has room for one, "
                "or can grow",
                waited,
            )
            self._none_yet = False
