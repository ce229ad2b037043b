"""Progress on stderr: bars on a terminal, otherwise a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from scenesweep.jobs.shared.causes import SharedCauses
from scenesweep.pipeline.engine.steps import Progress
from scenesweep.pipeline.errors import printable
from scenesweep.pipeline.runs.report import SceneResult, counted, one_line

log = logging.getLogger(__name__)

__all__ = ["Bars", "Display", "Pace", "shown_bars"]

LINE_EVERY_S = 5.0
_LEVELS = {"up-to-date": logging.DEBUG, "failed": logging.ERROR, "in-use": logging.WARNING}
_PACE_OVER_S = 60.0


@dataclass(slots=True)
class Pace:
    """The speed of a run over its last minute, so that a slow start does not count."""

    samples: deque[tuple[float, Progress]] = field(default_factory=deque)

    def add(self, progress: Progress, now: float) -> None:
        """Record the progress at a time, in seconds of a monotonic clock."""
        self.samples.append((now, progress))
        while len(self.samples) > 2 and self.samples[1][0] <= now - _PACE_OVER_S:
            self.samples.popleft()

    @property
    def megapixels_per_s(self) -> float | None:
        """Megapixels per second; None until some are done."""
        return self._rate(lambda progress: progress.pixels_done / 1e6)

    def seconds_left(self, scenes: int) -> float | None:
        """Estimate the seconds until all windows of all `scenes` are done.

        The estimate assumes that scenes without a plan have as many windows as the others.
        """
        rate = self._rate(lambda progress: progress.windows_done)
        if rate is None:
            return None
        last = self.samples[-1][1]
        planned = max(last.scenes_planned, last.scenes_done, 1)
        windows = last.windows_known * max(scenes, planned) / planned
        return max(0.0, windows - last.windows_done) / rate

    def _rate(self, amount: Callable[[Progress], float]) -> float | None:
        if len(self.samples) < 2:
            return None
        (start, first), (end, last) = self.samples[0], self.samples[-1]
        gained = amount(last) - amount(first)
        return gained / (end - start) if gained > 0 and end > start else None


class Display:
    """Shows the progress of a run over `scenes` scenes, and the result of each scene."""

    def __init__(self, scenes: int, *, stream: TextIO | None = None) -> None:
        self._scenes, self._stream = scenes, stream or sys.stderr
        self._pace = Pace()
        self._detections = self._failed = self._up_to_date = 0
        self._causes = SharedCauses()
        self._logged_at = time.monotonic()
        self._open = ExitStack()
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._bars = self._open.enter_context(shown_bars(self._stream))
            self._scene_bar = self._bars.add_task("scenes", total=self._scenes, said="")
            self._window_bar = self._bars.add_task("windows", total=None, said="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
        if self._up_to_date:
            log.info("up to date, nothing to do: %s", counted(self._up_to_date, "scene"))
        for line in self._causes.lines():
            log.error("%s", line)

    def count(self, result: SceneResult) -> None:
        """Count the result of a scene and log it."""
        failed = result.status == "failed"
        self._failed += failed
        self._detections += result.detections
        for warning in result.warnings:
            self.warn(printable(f"{result.scene_id}: {warning}"))
        unchanged = result.status == "up-to-date"  # often hundreds: one line for all at the end
        self._up_to_date += unchanged
        if failed and self._causes.is_repeated(result.reason):
            return
        log.log(_LEVELS.get(result.status, logging.INFO), "%s", one_line(result))

    def warn(self, line: str) -> None:
        """Log a warning."""
        log.warning("%s", line)

    def update(self, progress: Progress) -> None:
        """Show the progress."""
        now = time.monotonic()
        self._pace.add(progress, now)
        if self._bars is not None:
            self._bars.update(self._scene_bar, completed=progress.scenes_done, said=self._totals())
            self._bars.update(
                self._window_bar,
                completed=progress.windows_done,
                total=progress.windows_known or None,
                said=", ".join([*self._planning(progress), *self._work(progress)]),
            )
        elif now - self._logged_at >= LINE_EVERY_S:
            self._logged_at = now
            log.info("%s", self.line(progress))

    def line(self, progress: Progress) -> str:
        """Return the progress as one line."""
        return ", ".join(
            [
                f"{progress.scenes_done:,} of {counted(self._scenes, 'scene')}",
                *self._windows(progress),
                *self._planning(progress),
                *self._work(progress),
                self._totals(),
            ]
        )

    def _windows(self, progress: Progress) -> list[str]:
        """Return the windows done and known; the total is known once every scene has a plan."""
        if not progress.windows_known:
            return []
        known = counted(progress.windows_known, "window")
        least = "" if self._all_planned(progress) else "at least "
        return [f"{progress.windows_done:,} of {least}{known}"]

    def _planning(self, progress: Progress) -> list[str]:
        planned = progress.scenes_planned
        return [] if self._all_planned(progress) else [f"{counted(planned, 'scene')} planned"]

    def _work(self, progress: Progress) -> list[str]:
        """Return what happens now: publishing once all windows are done, before that detection."""
        windows_left = progress.windows_known - progress.windows_done
        if self._all_planned(progress) and windows_left <= 0:
            scenes_left = self._scenes - progress.scenes_done
            return [f"publishing {counted(scenes_left, 'scene')}"] if scenes_left > 0 else []
        return [counted(progress.detectors, "detector"), *self._speed(progress)]

    def _all_planned(self, progress: Progress) -> bool:
        return progress.scenes_planned >= self._scenes

    def _speed(self, progress: Progress) -> list[str]:
        rate, left = self._pace.megapixels_per_s, self._pace.seconds_left(self._scenes)
        speed = [] if rate is None else [f"{rate:.2f} Mpx/s"]
        if left is None:
            return speed
        about = "" if self._all_planned(progress) else "about "
        return [*speed, f"{about}{timedelta(seconds=round(left))} left"]

    def _totals(self) -> str:
        failed = f", {self._failed:,} failed" if self._failed else ""
        return f"{self._detections:,} detections published{failed}"


@contextmanager
def shown_bars(stream: TextIO) -> Iterator[Bars]:
    """Show bars on a terminal; log lines to the same stream appear above the bars."""
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        console=Console(file=stream),
        transient=True,
    )
    writers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream
    ]
    with bars:
        for handler in writers:
            handler.setStream(_Above(bars.console))
        try:
            yield bars
        finally:
            for handler in writers:
                handler.setStream(stream)


@dataclass(frozen=True, slots=True)
class _Above:
    """A stream whose lines appear above the bars; brackets in them are not markup."""

    console: Console

    def write(self, text: str) -> int:
        self.console.out(text, end="", highlight=False)
        return len(text)

    def flush(self) -> None:
        self.console.file.flush()
