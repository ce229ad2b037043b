"""Tell errors of a GPU from errors of the work: only the latter may fail a scene. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.boxes import DetectorOutput
from scenesweep.model.inference.gpu import fault_of, free_cached_memory
from scenesweep.model.inference.windows import AnyWindows
from scenesweep.pipeline.detection.overlap import Ticket
from scenesweep.pipeline.errors import DetectorLost, DetectorOutOfMemory, shortened

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GuardedDetector:
    """A detector whose GPU may fail.

    A failed GPU ruins the process: the engine ends it, and another detector does the work. If the
    GPU has too little memory, it tries once more after torch gave back what it had kept. It never
    makes batches smaller, because other batches would give other boxes.
    """

    detector: Any
    """A `Detector`; or, for `detect` alone, any other."""

    @property
    def runs_on(self) -> str:
        return str(self.detector.runs_on)

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        """Detect boxes in chips.

        Raises:
            DetectorOutOfMemory: when the GPU has too little memory, twice.
            DetectorLost: when the GPU failed.
        """
        return self._tried_twice(lambda: self.detector.detect(chips))

    def submit(self, *parts: AnyWindows) -> Ticket:
        """Start on windows of one shape; raises what `detect` raises."""
        return self._tried_twice(lambda: self.detector.submit(*parts))

    def collect(self, ticket: Ticket) -> DetectorOutput:
        """Wait for windows, and return their boxes; raises what `detect` raises."""
        try:
            return self.detector.collect(ticket)
        except RuntimeError as error:
            raise _as_loss(error) from error

    def _tried_twice(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except RuntimeError as error:
            if fault_of(error) != "memory":
                raise _as_loss(error) from error
        free_cached_memory()
        try:
            return act()
        except RuntimeError as error:
            raise _as_loss(error) from error


def _as_loss(error: RuntimeError) -> Exception:
    """Return the loss that an error of the GPU means, or the error itself if it is another."""
    fault, why = fault_of(error), shortened(f"{type(error).__name__}: {error}")
    if fault == "memory":
        return DetectorOutOfMemory(
            f"the GPU has too little memory ({why}); set detect.batch or engine.detectors_per_gpu "
            "to less"
        )
    return DetectorLost(f"the GPU failed ({why})") if fault else error
