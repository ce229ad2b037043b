"""How much work is in progress: from measured times, the size of a batch and the number of reads.

This file decides, and `loop` does what it says. All rates are per window, because shards differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scenesweep.pipeline.engine.workers import Cluster

CALLS_EACH = 2
"""Calls at each detector: it runs one, while the pixels of the next are already there."""
_MOST_CALLS_EACH = 4  # if a call is short
_COVER_S = 0.1  # of computing that is in hand while the loop is busy with others
_BATCH_S = 0.05  # the least time of a detector for a batch, if its shards allow it
_DRIVER_S = 0.002  # of the loop and of Ray for a batch, with as much again to spare
_LEAST_WINDOWS, _MOST_WINDOWS = 16, 256
_SPARE_READS = 2  # for each detector: reads take unequal times
_STORE_SHARE = 0.5  # of the object store's memory: detectors and results need room as well
_FORGET = 0.98  # how much an earlier measurement still counts when the next one comes


class Sized(Protocol):
    """Something of so many windows."""

    @property
    def windows(self) -> int: ...


@dataclass(slots=True)
class _Rate:
    """A smoothed amount per window: of seconds, or of bytes."""

    amount: float = 0.0
    windows: float = 0.0

    def add(self, amount: float, windows: int) -> None:
        self.amount = self.amount * _FORGET + amount
        self.windows = self.windows * _FORGET + windows

    @property
    def each(self) -> float:
        """The amount of one window; 0 as long as nothing was measured."""
        return self.amount / self.windows if self.windows else 0.0


@dataclass(slots=True)
class Pace:
    """What was measured, and what follows from it.

    `batch_windows` is the setting: a number is the size of a batch, None leaves it to the pace.
    """

    batch_windows: int | None
    _read: _Rate = field(default_factory=_Rate)
    _bytes: _Rate = field(default_factory=_Rate)
    _detect: _Rate = field(default_factory=_Rate)
    _pieces: _Rate = field(default_factory=_Rate)

    def has_read(self, pieces: Sequence[Sized], seconds: float, size: int) -> None:
        """Note the seconds that a read took, and the bytes of its pixels."""
        windows = sum(piece.windows for piece in pieces)
        self._read.add(seconds, windows)
        self._bytes.add(size, windows)

    def has_detected(self, pieces: Sequence[Sized], seconds: float) -> None:
        """Note the seconds that a detector computed."""
        windows = sum(piece.windows for piece in pieces)
        self._detect.add(seconds, windows)
        self._pieces.add(len(pieces), windows)

    def pieces_of_batch(self, detectors: int) -> int:
        """Return the number of pieces that a batch of this size has, at least 1."""
        return max(1, round(self._pieces.each * self.windows_of_batch(detectors)))

    def windows_of_batch(self, detectors: int) -> int:
        """Return the most windows of a batch of several shards, for so many detectors.

        A batch keeps its detector busy for 50 ms. It grows with the number of detectors, so that
        one driver can serve them all: it needs its time for each batch, whatever its size.
        """
        if self.batch_windows is not None:
            return self.batch_windows
        if not self._detect.each:
            return _LEAST_WINDOWS
        wanted = max(_BATCH_S, _DRIVER_S * detectors) / self._detect.each
        return min(_MOST_WINDOWS, max(_LEAST_WINDOWS, math.ceil(wanted)))

    def calls_each(self, detectors: int) -> int:
        """Return how many calls each detector may have, the one that it runs included."""
        batch_s = self.windows_of_batch(detectors) * self._detect.each
        if not batch_s:
            return CALLS_EACH
        return min(_MOST_CALLS_EACH, max(CALLS_EACH, 1 + math.ceil(_COVER_S / batch_s)))

    def reads(self, detectors: int, at_detectors: int, cluster: Cluster) -> int:
        """Return how many reads may be in progress or ready, for so many detectors that are up.

        By Little's law, a detector needs `t_read / t_detect` reads in progress, and some more,
        because reads take unequal times. There is no use in many more reads than CPUs for them.
        But those that wait for a CPU are what an autoscaler sees: so twice as many are allowed as
        the cluster can run now. `at_detectors` calls hold pixels as well: all have room in the
        object store.
        """
        if not detectors:
            return 1  # further readers would slow the start of the first detector
        least = CALLS_EACH * detectors + 1
        wanted = self._reads_each() * detectors + 1
        if cluster.readers is not None:
            wanted = min(wanted, max(least, 2 * cluster.readers))
        batch_bytes = self._bytes.each * self.windows_of_batch(detectors)
        if cluster.store_bytes and batch_bytes:
            room = int(_STORE_SHARE * cluster.store_bytes / batch_bytes) - at_detectors
            wanted = min(wanted, max(room, detectors + 1))
        return wanted

    def _reads_each(self) -> int:
        if not (self._detect.each and self._read.each):
            return CALLS_EACH
        return math.ceil(self._read.each / self._detect.each) + _SPARE_READS
