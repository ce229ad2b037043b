"""What monitoring is told of a run: gauges on Ray's endpoint, and a text file that stays."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from contextlib import suppress
from types import ModuleType
from typing import Any, get_args

from scenesweep.pipeline.engine.steps import Progress
from scenesweep.pipeline.errors import Exit
from scenesweep.pipeline.runs.report import Run, SceneResult, Status
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output

TOTALS = {
    "scenes": ("scenes that have ended", ("status",)),
    "detections": ("detections published", ()),
    "megapixels": ("megapixels looked at, at the model's resolution", ()),
    "seconds": ("seconds of workers", ("stage",)),
}
"""Grow with each scene, from 0: what they count, and their tags besides those of the run."""
PROGRESS = {
    "windows_done": "windows detected so far",
    "windows_known": "windows of the scenes planned so far",
    "detectors": "detectors that are up",
}
"""Follow the run."""
ENDS = {
    "last_run_exit_code": "exit code of the run, once it has ended",
    "last_success_timestamp_seconds": "when the run ended with exit code 0, in seconds since 1970",
}
"""Are there when the run has ended."""
_STAGES = ("plan", "read", "detect", "publish")


class Metrics:
    """The meters of one run, made with the module `ray.util.metrics`.

    On Ray's endpoint their names begin with `ray_scenesweep_`, and each has the tags `run` and
    `night`; `deploy/grafana.json` draws them. All are gauges: Ray's counters cannot start at 0,
    and what a counter begins with is no increase to Prometheus.
    """

    def __init__(self, metrics: ModuleType, *, run_id: str, night: str) -> None:
        said = TOTALS | {name: (text, ()) for name, text in (PROGRESS | ENDS).items()}
        self._gauges: dict[str, Any] = {}
        for name, (description, tags) in said.items():
            gauge = metrics.Gauge(
                f"scenesweep_{name}", description=description, tag_keys=("run", "night", *tags)
            )
            self._gauges[name] = gauge.set_default_tags({"run": run_id, "night": night})
        self._totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for status in get_args(Status):
            self._add("scenes", 0, status=status)
        for stage in _STAGES:
            self._add("seconds", 0, stage=stage)
        self._add("detections", 0)
        self._add("megapixels", 0)

    def count(self, result: SceneResult) -> None:
        """Add what became of a scene."""
        self._add("scenes", 1, status=result.status)
        if result.status != "done":
            return
        self._add("detections", result.detections)
        self._add("megapixels", result.megapixels)
        for stage, seconds in result.seconds.items():
            self._add("seconds", seconds, stage=stage)

    def show(self, progress: Progress) -> None:
        """Say how far the run is."""
        for name in PROGRESS:
            self._gauges[name].set(getattr(progress, name))

    def end(self, code: Exit) -> None:
        """Say how the run ended."""
        self._gauges["last_run_exit_code"].set(int(code))
        if code == Exit.DONE:
            self._gauges["last_success_timestamp_seconds"].set(time.time())

    def _add(self, name: str, amount: float, **tags: str) -> None:
        key = (name, *tags.values())
        self._totals[key] += amount
        self._gauges[name].set(self._totals[key], tags)


def metrics_file(out: Location, night: str) -> Location:
    """Return the file with the figures of a night's last run."""
    return Output(out).metrics(night)


def write_metrics(run: Run, night: str, out: Location) -> None:
    """Write the figures of a run in Prometheus's text format.

    The time of the last success is that of this run, or the one that was written before.

    Raises:
        OutputError: when they cannot be written.
    """
    path, before = metrics_file(out, night), ""
    with suppress(OSError, ValueError):
        before = path.read_text(encoding="utf-8")
    text = metrics_text(run, night, before)
    with atomic_write(path, Output(out).aside) as aside:
        aside.write_text(text, encoding="utf-8")


def metrics_text(run: Run, night: str, before: str = "") -> str:
    """Return what `write_metrics` writes, given what there is from the run before."""
    ended = round(run.started_at.timestamp() + run.seconds)
    success = re.search(r"^scenesweep_last_success_timestamp_seconds\{.*\} (\d+)$", before, re.M)
    values: list[tuple[str, str, float]] = [
        ("last_run_timestamp_seconds", "", ended),
        ("last_run_exit_code", "", int(run.exit_code)),
        ("last_run_seconds", "", round(run.seconds, 3)),
        ("last_run_detections", "", run.detections),
        ("last_run_megapixels", "", round(run.megapixels, 3)),
    ]
    for status in get_args(Status):
        values.append(("last_run_scenes", f',status="{status}"', run.count(status)))
    values.append(("last_run_scenes", ',status="unfinished"', run.unfinished))
    if run.exit_code == Exit.DONE:
        values.append(("last_success_timestamp_seconds", "", ended))
    elif success:
        values.append(("last_success_timestamp_seconds", "", int(success[1])))
    lines: list[str] = []
    for name, tags, value in values:
        kind = f"# TYPE scenesweep_{name} gauge"
        lines += [] if kind in lines else [kind]
        lines.append(f'scenesweep_{name}{{night="{night}"{tags}}} {value}')
    return "\n".join(lines) + "\n"
