"""Figures of a run in progress for monitoring: gauges on Ray's metrics endpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol, get_args

from scenesweep.pipeline.engine.steps import DetectorUse, Progress
from scenesweep.pipeline.runs.report import SceneResult, Status

TOTALS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "scenes": ("scenes that have ended", ("status",)),
    "detections": ("detections published", ()),
    "megapixels": ("megapixels looked at, at the model's resolution", ()),
    "seconds": ("seconds of workers", ("stage",)),
}
"""Grow with each scene, from 0: description, and tags in addition to those of the run."""
PROGRESS = {
    "windows_done": "windows detected so far",
    "windows_known": "windows of the scenes planned so far",
    "detectors": "detectors that are up",
}
"""Follow the run: description of each."""
USE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "detector_seconds": ("seconds of detectors", ("activity",)),
    "chips": ("chips computed so far", ()),
    "detector_peak_bytes": ("most memory that one detector used, on its GPU if it has one", ()),
}
"""What detectors did so far: description, and tags in addition to those of the run."""
_STAGES = ("plan", "read", "detect", "stage", "publish")
ACTIVITIES = ("computing", "waiting", "staging")


class Gauge(Protocol):
    """A figure that monitoring sees."""

    def set(self, value: float, tags: dict[str, str] = ...) -> None: ...


class MakeGauge(Protocol):
    """Makes a gauge with fixed `tags` and the names of `more`: `engine.ray.make_gauge`."""

    def __call__(
        self, name: str, description: str, tags: Mapping[str, str], *more: str
    ) -> Gauge: ...


class Metrics:
    """The gauges of one run.

    On Ray's endpoint their names begin with `ray_scenesweep_`, and each has the tags `run` and
    `night`; `deploy/grafana.json` draws them. All are gauges, although totals only grow: Ray's
    counters cannot be set to 0, and to Prometheus the first value of a counter is no increase.

    How a run ended is not among them: Ray exports the figures of a driver at intervals, and may
    drop what is set just before the driver leaves. `pipeline.runs.night_metrics` writes that to a
    file.
    """

    def __init__(self, make_gauge: MakeGauge, *, run_id: str, night: str) -> None:
        tags = {"run": run_id, "night": night}
        self._gauges: dict[str, Gauge] = {}
        for name, (description, more) in (*TOTALS.items(), *USE.items()):
            self._gauges[name] = make_gauge(f"scenesweep_{name}", description, tags, *more)
        for name, description in PROGRESS.items():
            self._gauges[name] = make_gauge(f"scenesweep_{name}", description, tags)
        self._totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for status in get_args(Status):
            self._add("scenes", 0, status=status)
        for stage in _STAGES:
            self._add("seconds", 0, stage=stage)
        self._add("detections", 0)
        self._add("megapixels", 0)
        self.show_use(DetectorUse())

    def count(self, result: SceneResult) -> None:
        """Add the result of a scene."""
        self._add("scenes", 1, status=result.status)
        if result.status != "done":
            return
        self._add("detections", result.detections)
        self._add("megapixels", result.megapixels)
        for stage, seconds in result.seconds.items():
            self._add("seconds", seconds, stage=stage)

    def show(self, progress: Progress) -> None:
        """Show how far the run is."""
        self._gauges["windows_done"].set(progress.windows_done)
        self._gauges["windows_known"].set(progress.windows_known)
        self._gauges["detectors"].set(progress.detectors)

    def show_use(self, use: DetectorUse) -> None:
        """Show what all detectors did so far."""
        seconds = (use.computed_s, use.waited_s, use.staged_s)
        for activity, spent in zip(ACTIVITIES, seconds, strict=True):
            self._gauges["detector_seconds"].set(spent, {"activity": activity})
        self._gauges["chips"].set(use.chips)
        self._gauges["detector_peak_bytes"].set(use.peak_bytes)

    def _add(self, name: str, amount: float, **tags: str) -> None:
        key = (name, *tags.values())
        self._totals[key] += amount
        self._gauges[name].set(self._totals[key], tags)
