"""What monitoring is told, against the results; the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scenesweep.pipeline.engine.steps import Progress
from scenesweep.pipeline.errors import Exit
from scenesweep.pipeline.runs.ending import CutShort
from scenesweep.pipeline.runs.metrics import (
    ENDS,
    PROGRESS,
    TOTALS,
    Metrics,
    metrics_text,
    write_metrics,
)
from scenesweep.pipeline.runs.report import Run, SceneResult

BOARD = Path(__file__).parents[3] / "deploy" / "grafana.json"
OF_RUN = {"run": "r1", "night": "nightly"}
THEN = datetime(2026, 11, 21, 4, tzinfo=UTC)


class Values:
    """Stands in for `ray.util.metrics`: all values of each name with its tags, in order."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def module(self) -> Any:
        return SimpleNamespace(Gauge=self.gauge)

    def gauge(self, name: str, *, description: str, tag_keys: tuple[str, ...] = ()) -> Any:
        assert description
        defaults: dict[str, str] = {}

        def put(amount: float, tags: dict[str, str] | None = None) -> None:
            tags = defaults | (tags or {})
            assert set(tags) == set(tag_keys)
            assert tags.items() >= OF_RUN.items()
            key = ":".join([name, *(v for k, v in tags.items() if k not in OF_RUN)])
            self.values.setdefault(key, []).append(amount)

        def with_defaults(tags: dict[str, str]) -> Any:
            defaults.update(tags)
            return gauge

        gauge = SimpleNamespace(set=put, set_default_tags=with_defaults)
        return gauge

    def last(self) -> dict[str, float]:
        return {name: values[-1] for name, values in self.values.items()}


def test_totals_start_at_0_and_are_the_sums_of_the_results() -> None:
    told = Values()
    meters = Metrics(told.module(), run_id="r1", night="nightly")
    assert set(told.last().values()) == {0}
    assert "scenesweep_scenes:failed" in told.last()
    seconds = {"read": 1.5, "detect": 4.0, "publish": 0.0}
    done = SceneResult("a", "a", "done", detections=3, megapixels=2.5, seconds=seconds)
    for result in (done, done, SceneResult("b", "b", "failed"), SceneResult("c", "c", "done")):
        meters.count(result)
    for windows in (1, 7):
        meters.show(Progress(0, windows, 9, 2))
    assert told.last() == {
        "scenesweep_scenes:done": 3,
        "scenesweep_scenes:up-to-date": 0,
        "scenesweep_scenes:failed": 1,
        "scenesweep_scenes:quarantined": 0,
        "scenesweep_detections": 6,
        "scenesweep_megapixels": 5.0,
        "scenesweep_seconds:plan": 0,
        "scenesweep_seconds:read": 3.0,
        "scenesweep_seconds:detect": 8.0,
        "scenesweep_seconds:publish": 0,
        "scenesweep_windows_done": 7,
        "scenesweep_windows_known": 9,
        "scenesweep_detectors": 2,
    }


@pytest.mark.parametrize("code", [Exit.DONE, Exit.SOME_FAILED])
def test_the_end_of_a_run_is_told(code: Exit) -> None:
    told = Values()
    Metrics(told.module(), run_id="r1", night="nightly").end(code)
    assert told.last()["scenesweep_last_run_exit_code"] == int(code)
    assert ("scenesweep_last_success_timestamp_seconds" in told.last()) == (code == 0)


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
            assert re.fullmatch(name + r'\{night="nightly"(,status="[a-z-]+")?\} [\d.]+', line)


def test_the_dashboard_draws_every_meter_of_one_run_and_no_other() -> None:
    board = json.loads(BOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    drawn = {name for expr in asked for name in re.findall(r"ray_scenesweep_\w+", expr)}
    assert drawn == {f"ray_scenesweep_{name}" for name in (*TOTALS, *PROGRESS, *ENDS)}
    for expr in asked:
        selectors = re.findall(r"ray_scenesweep_\w+(\{[^}]*\})?", expr)
        assert all('run="$run"' in s or 'night="$night"' in s for s in selectors), expr
    assert [one["name"] for one in board["templating"]["list"]] == ["source", "night", "run"]
