"""Measure a detector's time, and let it compute while other threads read and stage.

    thread of call i + 1:   chips ------------------> wait ...........
    detector's thread:             compute i | compute i + 1 | ...
    thread of call i:       wait ............ report, write part i

Each call has a thread of its own from its pixels to its part, so an error reaches its own call,
and a call has ended only when its part is written. The caller limits the number of calls.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.boxes import ChipDetector, DetectorOutput
from scenesweep.pipeline.detection.computing import Computing


@dataclass(frozen=True, slots=True)
class Computed:
    """A detector's output, the seconds that it computed, and waited before for these chips."""

    output: DetectorOutput
    seconds: float
    waited: float


class TimedDetector:
    """A detector that measures for how long it computes, and for how long it waits in between.

    Its caller's thread computes.
    """

    def __init__(self, detector: ChipDetector, clock: Callable[[], float] = time.monotonic) -> None:
        self._detector, self._clock = detector, clock
        self._free_since = clock()

    @property
    def runs_on(self) -> str:
        """The device and precision in use."""
        return self._detector.runs_on

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        """Detect boxes in chips (N, bands, H, W) uint8."""
        return self.compute(chips).output

    def compute(self, chips: NDArray[np.uint8]) -> Computed:
        """Detect boxes in chips (N, bands, H, W) uint8, and measure the time."""
        begun = self._clock()
        waited = begun - self._free_since
        try:
            output = self._detector.detect(chips)
        finally:
            self._free_since = self._clock()
        return Computed(output, self._free_since - begun, waited)

    def peak_bytes(self) -> int:
        """Return the most memory that this detector has used: of its GPU, or of its process."""
        computing = Computing.of(self.runs_on)
        if computing is None or computing.device != "cuda":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        from scenesweep.model.inference.gpu import peak_memory_bytes

        return peak_memory_bytes()


class DetectorThread(TimedDetector):
    """A detector that computes in a thread of its own; any thread may call it.

    `make` makes the detector in that thread, because torch's number of threads and the current
    GPU belong to the thread that sets them. Chips are computed in the order in which they come.
    """

    def __init__(
        self, make: Callable[[], ChipDetector], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._thread = ThreadPoolExecutor(1, "detector")
        super().__init__(self._thread.submit(make).result(), clock)

    def compute(self, chips: NDArray[np.uint8]) -> Computed:
        """Detect boxes in chips (N, bands, H, W) uint8 in the detector's thread."""
        return self._thread.submit(super().compute, chips).result()


class Stopwatch:
    """A detector for one call: it passes chips on, and sums up what the call costs.

    All time of the call that is not spent on computing, or on waiting for the detector, is spent
    on staging: on the report of the shards and on their part files.
    """

    def __init__(
        self, detector: TimedDetector, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._detector, self._clock = detector, clock
        self.computed_s = self.waited_s = self._inside_s = 0.0
        self.chips = 0
        self._begun = clock()

    @property
    def runs_on(self) -> str:
        return self._detector.runs_on

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        """Detect boxes in chips (N, bands, H, W) uint8."""
        begun = self._clock()
        computed = self._detector.compute(chips)
        self._inside_s += self._clock() - begun
        self.computed_s += computed.seconds
        self.waited_s += computed.waited
        self.chips += len(chips)
        return computed.output

    @property
    def staged_s(self) -> float:
        """Seconds since the beginning of the call without those inside the detector."""
        return self._clock() - self._begun - self._inside_s
