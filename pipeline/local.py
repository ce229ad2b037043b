"""The sweep as a plain loop, in this process: the specification of every other runner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.steps import Progress, R, S, Steps


def sweep(
    sources: Iterable[str],
    steps: Steps[S, R],
    weights: Any,
    *,
    on_result: Callable[[R], None],
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Take one source after the other through plan, read, detect and finish."""
    detector = None
    windows = known = 0
    for scenes, source in enumerate(sources, start=1):
        planned = steps.plan(source)
        result = planned.result
        seconds = {"read": 0.0, "detect": 0.0}
        known += planned.windows
        for work in planned.work:
            detector = detector or steps.make_detector(weights)
            started = time.monotonic()
            pixels, unreadable = steps.read([work])
            if unreadable:
                result = steps.fail(source, unreadable[0], False)
                break
            read = time.monotonic()
            steps.detect(detector, [work], pixels)
            seconds["read"] += read - started
            seconds["detect"] += time.monotonic() - read
            windows += work.windows
            on_progress(Progress(scenes - 1, windows, known, 1))
        if result is None:
            assert planned.state is not None
            result = steps.finish(planned.state, seconds)
        on_result(result)
        on_progress(Progress(scenes, windows, known, 1))
