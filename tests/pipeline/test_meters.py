"""What Prometheus is told, against the results; the dashboard asks for nothing else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pipeline.runs.meters import COUNTERS, GAUGES, Meters
from pipeline.runs.report import SceneResult
from pipeline.steps import Progress

BOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"


class Sums:
    """Stands in for `ray.util.metrics`: sums and last values by name and tags."""

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()

    def module(self) -> Any:
        return SimpleNamespace(Counter=self.meter, Gauge=self.meter)

    def meter(self, name: str, *, description: str, tag_keys: tuple[str, ...] = ()) -> Any:
        def inc(amount: float, tags: dict[str, str] | None = None) -> None:
            assert amount > 0
            assert tuple(tags or {}) == tag_keys
            self.values[":".join([name, *(tags or {}).values()])] += cast(int, amount)

        def put(amount: float) -> None:
            self.values[name] = cast(int, amount)

        return SimpleNamespace(inc=inc, set=put)


def test_counters_are_the_sums_of_the_results() -> None:
    sums = Sums()
    meters = Meters(sums.module())
    seconds = {"read": 1.5, "detect": 4.0, "publish": 0.0}
    done = SceneResult("a", "a", "done", detections=3, megapixels=2.5, seconds=seconds)
    for result in (done, done, SceneResult("b", "b", "failed"), SceneResult("c", "c", "done")):
        meters.count(result)
    for windows in (1, 7):
        meters.show(Progress(0, windows, 9, 2))
    assert sums.values == {
        "scenesweep_scenes:done": 3,
        "scenesweep_scenes:failed": 1,
        "scenesweep_detections": 6,
        "scenesweep_megapixels": 5.0,
        "scenesweep_seconds:read": 3.0,
        "scenesweep_seconds:detect": 8.0,
        "scenesweep_windows_done": 7,
        "scenesweep_windows_known": 9,
        "scenesweep_detectors": 2,
    }


def test_the_dashboard_draws_every_meter_and_no_other() -> None:
    drawn = set(re.findall(r"ray_scenesweep_\w+", BOARD.read_text()))
    there = {f"ray_scenesweep_{name}_total" for name in COUNTERS}
    assert drawn == there | {f"ray_scenesweep_{name}" for name in GAUGES}
