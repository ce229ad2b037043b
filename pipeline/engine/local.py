"""The sweep as a plain loop, in this process: the specification of every other runner."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic

from scenesweep.pipeline.engine.steps import Planned, Progress, R, S, Steps, Stop, never, reason_of

log = logging.getLogger(__name__)


def sweep(
    sources: Iterable[Any],
    steps: Steps[S, R],
    weights: Any,
    *,
    on_result: Callable[[R], None],
    on_progress: Callable[[Progress], None] = lambda _: None,
    stop: Stop = never,
) -> None:
    """Take one source after the other through plan, read, detect and finish.

    Raises:
        ModelError: when no detector can be made.
        OutputError: when nothing more can be written.
    """
    loop = _Loop(steps, weights, on_progress, stop)
    for source in sources:
        result = None if stop() else loop.result_of(source)
        if result is None:
            return
        on_result(result)
        loop.scenes += 1
        loop.tell()


@dataclass(slots=True)
class _Loop(Generic[S, R]):
    steps: Steps[S, R]
    weights: Any
    on_progress: Callable[[Progress], None]
    stop: Stop
    detector: Any = None
    scenes: int = 0
    windows: int = 0
    known: int = 0
    planned: int = 0
    pixels: int = 0

    def result_of(self, source: Any) -> R | None:
        """Sweep one source; None when asked to stop on the way."""
        try:
            planned = self.steps.plan(source)
        except Exception as error:
            return self._failed(source, error)
        self.planned += 1
        self.known += planned.windows
        if planned.work and self.detector is None:  # without one, the run ends
            self.detector = self.steps.make_detector(self.weights)
        try:
            return self._work(source, planned)
        except Exception as error:
            return self._failed(source, error)

    def tell(self) -> None:
        self.on_progress(
            Progress(self.scenes, self.windows, self.known, 1, self.planned, self.pixels)
        )

    def _work(self, source: Any, planned: Planned[S, R]) -> R | None:
        if planned.result is not None:
            return planned.result
        seconds = {"read": 0.0, "detect": 0.0}
        for work in planned.work:
            if self.stop():
                return None
            started = time.monotonic()
            pixels, unreadable = self.steps.read([work])
            if unreadable:
                return self.steps.fail(source, unreadable[0], False)
            read = time.monotonic()
            self.steps.detect(self.detector, [work], pixels)
            seconds["read"] += read - started
            seconds["detect"] += time.monotonic() - read
            self.windows += work.windows
            self.pixels += work.pixels
            self.tell()
        assert planned.state is not None
        return self.steps.finish(planned.state, seconds)

    def _failed(self, source: Any, error: Exception) -> R:
        reason, bug = reason_of(error)
        if bug:
            log.exception("unexpected error in %s", source)
        return self.steps.fail(source, reason, bug)
