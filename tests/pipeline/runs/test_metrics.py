"""The figures for monitoring agree with the results; the dashboard asks for no others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scenesweep.pipeline.engine.steps import DetectorUse, Progress
from scenesweep.pipeline.errors import Exit
from scenesweep.pipeline.runs.ending import CutShort
from scenesweep.pipeline.runs.metrics import (
    PROGRESS,
    TOTALS,
    USE,
    Metrics,
)
from scenesweep.pipeline.runs.night_metrics import metrics_text, write_metrics
from scenesweep.pipeline.runs.report import Run, SceneResult, detector_figures

BOARD = Path(__file__).parents[3] / "deploy" / "grafana.json"
OF_RUN = {"run": "r1", "night": "nightly"}
THEN = datetime(2026, 11, 21, 4, tzinfo=UTC)


@dataclass
class FakeGauge:
    """Keeps the values of one gauge, by the name with the values of its varying tags."""

    name: str
    tags: dict[str, str]
    more: tuple[str, ...]
    values: dict[str, float]

    def set(self, value: float, tags: Mapping[str, str] = {}) -> None:
        assert tuple(tags) == self.more
        assert self.tags == OF_RUN
        self.values[":".join([self.name, *tags.values()])] = value


class Gauges:
    """Stands in for `engine.ray.make_gauge`, and keeps the last value of each gauge."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def make(self, name: str, description: str, tags: Mapping[str, str], *more: str) -> FakeGauge:
        assert description
        return FakeGauge(name, dict(tags), more, self.values)


def test_totals_start_at_0_and_are_the_sums_of_the_results() -> None:
    gauges = Gauges()
    meters = Metrics(gauges.make, run_id="r1", night="nightly")
    assert set(gauges.values.values()) == {0}
    assert "scenesweep_scenes:failed" in gauges.values
    seconds = {"read": 1.5, "detect": 4.0, "publish": 0.0}
    done = SceneResult("a", "a", "done", detections=3, megapixels=2.5, seconds=seconds)
    for result in (done, done, SceneResult("b", "b", "failed"), SceneResult("c", "c", "done")):
        meters.count(result)
    for windows in (1, 7):
        meters.show(Progress(0, windows, 9, 2))
    meters.show_use(DetectorUse(3.0, 1.0, 0.5, 48, 7_000))
    assert gauges.values == {
        "scenesweep_scenes:done": 3,
        "scenesweep_scenes:up-to-date": 0,
        "scenesweep_scenes:failed": 1,
        "scenesweep_scenes:quarantined": 0,
        "scenesweep_scenes:in-use": 0,
        "scenesweep_detections": 6,
        "scenesweep_megapixels": 5.0,
        "scenesweep_seconds:plan": 0,
        "scenesweep_seconds:read": 3.0,
        "scenesweep_seconds:detect": 8.0,
        "scenesweep_seconds:stage": 0,
        "scenesweep_seconds:publish": 0,
        "scenesweep_detector_seconds:computing": 3.0,
        "scenesweep_detector_seconds:waiting": 1.0,
        "scenesweep_detector_seconds:staging": 0.5,
        "scenesweep_chips": 48,
        "scenesweep_detector_peak_bytes": 7_000,
        "scenesweep_windows_done": 7,
        "scenesweep_windows_known": 9,
        "scenesweep_detectors": 2,
    }


def test_a_file_keeps_the_last_run_and_the_last_success(tmp_path: Path) -> None:
    results = (SceneResult("a", "a", "done", detections=3), SceneResult("b", "b", "failed"))
    good = Run("r1", THEN, 60.0, results[:1])
    bad = Run("r2", THEN.replace(day=22), 30.0, results)
    stopped = Run("r3", THEN.replace(day=23), 3.0, (), 2, CutShort("stopped", Exit.STOPPED))
    file = tmp_path / "runs" / "nightly.prom"
    write_metrics(bad, "nightly", tmp_path)
    assert "last_success" not in file.read_text()
    write_metrics(good, "nightly", tmp_path)
    success = f'last_success_timestamp_seconds{{night="nightly"}} {THEN.timestamp() + 60:.0f}\n'
    assert success in file.read_text()
    for run, code in ((bad, 3), (stopped, 130)):
        write_metrics(run, "nightly", tmp_path)
        said = file.read_text()
        assert success in said
        assert f'scenesweep_last_run_exit_code{{night="nightly"}} {code}\n' in said
    assert 'scenesweep_last_run_scenes{night="nightly",status="unfinished"} 2\n' in said


def test_figures_of_detectors_are_shares_of_their_time() -> None:
    use = DetectorUse(3.0, 1.0, 0.5, 48, 7_000)
    assert detector_figures(use) == {
        "computing": 0.75,
        "waiting": 0.25,
        "staging": 0.125,
        "chips": 48,
        "chips_per_second": 12.0,
        "peak_memory_bytes": 7_000,
    }
    assert set(detector_figures(DetectorUse()).values()) == {0}
    said = metrics_text(Run("r", THEN, 1.0, (), use=use), "nightly")
    assert '_detector_share{night="nightly",activity="waiting"} 0.25\n' in said
    assert 'last_run_detector_chips_per_second{night="nightly"} 12.0\n' in said
    assert 'last_run_detector_peak_bytes{night="nightly"} 7000\n' in said


def test_the_file_is_in_the_text_format() -> None:
    """Each line is a sample or names the type of those that follow it, once."""
    lines = metrics_text(Run("r", THEN, 1.0, ()), "nightly").splitlines()
    types = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert len(types) == len(set(types))
    name = ""
    for line in lines:
        if line.startswith("#"):
            name = re.fullmatch(r"# TYPE (scenesweep_\w+) gauge", line)[1]  # type: ignore[index]
        else:
            assert re.fullmatch(
                name + r'\{night="nightly"(,(status|activity)="[a-z-]+")?\} [\d.]+', line
            )


def test_the_dashboard_draws_every_meter_of_one_run_and_no_other() -> None:
    board = json.loads(BOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    drawn = {name for expr in asked for name in re.findall(r"ray_scenesweep_\w+", expr)}
    assert drawn == {f"ray_scenesweep_{name}" for name in (*TOTALS, *PROGRESS, *USE)}
    for expr in asked:
        selectors = re.findall(r"ray_scenesweep_\w+(\{[^}]*\})?", expr)
        assert all('run="$run"' in s for s in selectors), expr
    assert [one["name"] for one in board["templating"]["list"]] == ["source", "night", "run"]
