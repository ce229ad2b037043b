"""What a run on Ray tells Prometheus: counters and gauges beside Ray's own."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from pipeline.runs.report import SceneResult
from pipeline.steps import Progress

COUNTERS = {
    "scenes": ("scenes that are through", ("status",)),
    "detections": ("detections published", ()),
    "megapixels": ("megapixels of ground looked at", ()),
    "seconds": ("seconds of workers", ("stage",)),
}
"""Grow with each scene: what they count, and their tags."""
GAUGES = {
    "windows_done": "windows detected so far",
    "windows_known": "windows of the scenes planned so far",
    "detectors": "detectors that are up",
}
"""Follow the run."""


class Meters:
    """The meters of one run, made with the module `ray.util.metrics`.

    On Ray's endpoint their names begin with `ray_scenesweep_`, and those of counters end in
    `_total`; `deploy/grafana.json` draws them.
    """

    def __init__(self, metrics: ModuleType) -> None:
        self._counters: dict[str, Any] = {
            name: metrics.Counter(f"scenesweep_{name}", description=said, tag_keys=tags)
            for name, (said, tags) in COUNTERS.items()
        }
        self._gauges: dict[str, Any] = {
            name: metrics.Gauge(f"scenesweep_{name}", description=said)
            for name, said in GAUGES.items()
        }

    def count(self, result: SceneResult) -> None:
        """Add what became of a scene."""
        self._counters["scenes"].inc(1, {"status": result.status})
        if result.status != "done":
            return
        for name in ("detections", "megapixels"):
            if amount := getattr(result, name):  # a counter refuses nothing
                self._counters[name].inc(amount)
        for stage, seconds in result.seconds.items():
            if seconds > 0:
                self._counters["seconds"].inc(seconds, {"stage": stage})

    def show(self, progress: Progress) -> None:
        """Say how far the run is."""
        for name, gauge in self._gauges.items():
            gauge.set(getattr(progress, name))
