"""A night in one file: what it says, what wins over it, what it tells and what it throws away."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
import yaml

from scenesweep.jobs import cli
from scenesweep.jobs.detect import tidy
from scenesweep.pipeline.planning.plan import Method, Plan, plan_scene
from scenesweep.pipeline.runs.cost import rates_for
from scenesweep.pipeline.runs.report import Run, SceneResult, write_report
from scenesweep.pipeline.runs.retention import Retention, discard, expired
from scenesweep.pipeline.runs.workload import Workload
from scenesweep.pipeline.scene import SceneRef
from tests.rasters import make_job, paint_squares, write_raster
from tests.small_models import a_model

NOW = datetime(2026, 11, 21, 4, tzinfo=UTC)


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """A night over one scene, and everything it names."""
    a_model(tmp_path)
    pixels, _ = paint_squares(200, 150, largest=10, seed=1)
    write_raster(tmp_path / "scenes" / "scene.tif", pixels)
    tree = {
        "sources": [str(tmp_path / "scenes")],
        "model": str(tmp_path / "m.safetensors"),
        "out": str(tmp_path / "out"),
        "address": "none",
        "publish": {"quicklook": False},
        "retention": {"runs_days": 30, "work_days": 7},
    }
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "night.yaml"


def detect(*arguments: object) -> int:
    return cli.main(["detect", *map(str, arguments)])


def test_a_night_needs_nothing_but_its_file(night: Path) -> None:
    assert detect("--config", night) == 0
    out = night.parent / "out"
    assert len(list(out.rglob("part-*.parquet"))) == 24
    assert len(list((out / "detections").rglob("*.parquet"))) == 1
    assert not list(out.rglob("*.png"))


def test_a_night_with_a_name_leaves_its_figures(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect("--config", night) == 0
    assert not list((night.parent / "out" / "runs").glob("*.prom"))
    assert detect("--config", night, "--set", "name=nightly") == 0
    said = (night.parent / "out" / "runs" / "nightly.prom").read_text()
    assert 'scenesweep_last_run_exit_code{night="nightly"} 0\n' in said
    assert 'scenesweep_last_run_scenes{night="nightly",status="up-to-date"} 1\n' in said
    assert detect("--config", night, "--set", "name=../night") == 2
    assert "settings: name: " in capsys.readouterr().err


def test_the_command_line_wins_over_the_file(night: Path, tmp_path: Path) -> None:
    pixels, _ = paint_squares(64, 64, largest=10, seed=2)
    other = write_raster(tmp_path / "other.tif", pixels)
    assert detect(other, "--config", night, "--out", tmp_path / "there") == 0
    assert [path.stem for path in tmp_path.rglob("detections/date=*/*.parquet")] == ["other"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": None}, "expected SCENE, --stac-api, or `sources` in --config"),
        ({"model": None}, "--model is missing: give it, or `model` in --config"),
        ({"out": None}, "--out is missing: give it, or `out` in --config"),
        ({"source": ["x"]}, "source: there is no such name"),
        ({"retention": {"weeks": 2}}, "retention.weeks: there is no such name"),
        ({"retention": {"runs_days": 0}}, "retention.runs_days: expected at least 1, got 0"),
        ({"sources": "scenes/"}, "sources: expected a list, got 'scenes/'"),
        ({"merge": {"min_scores": {"ship": 0.5}}}, "expected classes of the model (square)"),
        ({"merge": {"min_scores": {"square": 0.01}}}, "at least detect.score_threshold"),
    ],
)
def test_a_wrong_night_is_named(
    night: Path, change: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {k: v for k, v in (yaml.safe_load(night.read_text()) | change).items() if v is not None}
    night.write_text(yaml.safe_dump(tree))
    assert detect("--config", night) == 2
    assert said in capsys.readouterr().err


def test_inspect_reads_the_same_file(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "--config", str(night), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cut"]["windows"] == 24
    assert cli.main(["inspect"]) == 2


def test_a_dry_run_says_what_is_left_and_what_it_takes(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (night.parent / "scenes" / "bad.tif").write_text("text")
    assert detect("--config", night, "--dry-run", "--json") == 3
    said = json.loads(capsys.readouterr().out)
    bad, scene = said["scenes"]
    assert (bad["state"], scene["state"]) == ("would fail", "to do")
    assert "expected one of the formats" in bad["reason"]
    assert scene["work"]["windows"] == said["work"]["windows"] == 24
    assert scene["work"]["core_px"] == 200 * 150
    assert scene["work"]["read_bytes"] >= 200 * 150
    assert said["estimate"]["seconds"] >= 25
    assert said["estimate"]["seconds_per_megapixel"]["detect"] > 0
    assert "arithmetic" in said["estimate"]["origin"]
    assert not (night.parent / "out").exists()
    assert detect("--config", night) == 3
    parts = sorted((night.parent / "out" / ".work").rglob("part-*.parquet"))
    capsys.readouterr()
    assert detect("--config", night, "--dry-run") == 3
    assert "up to date: scene\nscenes: 1 up to date, 1 would fail\nwork: 0 windows" in (
        capsys.readouterr().out
    )
    (published,) = (night.parent / "out").rglob("detections/date=*/scene.parquet")
    published.unlink()
    for part in parts[:20]:
        part.unlink()
    assert detect("--config", night, "--dry-run", "--json") == 3
    said = json.loads(capsys.readouterr().out)
    assert said["work"]["windows"] == 20
    assert said["estimate"]["origin"].startswith("1 scene of earlier runs")


def test_a_dry_run_opens_no_scene_that_is_up_to_date(
    night: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It recognises scenes as a run does, and plans the others at the same time."""
    assert detect("--config", night) == 0
    for number in range(2):
        pixels, _ = paint_squares(90, 80, largest=10, seed=number)
        write_raster(night.parent / "scenes" / f"new{number}.tif", pixels)
    together, opened = Barrier(2, timeout=60), list[str]()

    def plan_together(ref: SceneRef, method: Method) -> Plan:
        opened.append(ref.scene_id)
        together.wait()
        return plan_scene(ref, method)

    monkeypatch.setattr("scenesweep.jobs.shared.dry_run.plan_scene", plan_together)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    capsys.readouterr()
    assert detect("--config", night, "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)["scenes"]
    assert [(one["scene_id"], one["state"]) for one in said] == [
        ("new0", "to do"),
        ("new1", "to do"),
        ("scene", "up to date"),
    ]
    assert sorted(opened) == ["new0", "new1"]


def test_many_small_scenes_cost_more_than_one_of_their_size(tmp_path: Path) -> None:
    """Publishing has a cost a scene, kept apart from that of a megapixel in what was measured."""
    job = make_job(tmp_path / "out")
    one, many = Workload(1, 1, 10**6, 10**6, scenes=1), Workload(1, 1, 10**6, 10**6, scenes=200)
    rates = rates_for(job, one)
    more = rates.wall_seconds(many, 2) - rates.wall_seconds(one, 2)
    assert more == pytest.approx(199 * rates.scene_seconds / 2)
    assert more > 4
    results = [
        SceneResult("a", "a", "done", megapixels=m, seconds={"detect": 2 * m, "publish": s})
        for m, s in ((1.0, 0.5), (9.0, 1.5))
    ]
    write_report(Run("20260901T040000-0a1b2c", NOW, 1.0, tuple(results)), job)
    rates = rates_for(job, one)
    both = sum(rates.seconds.values()) * 10 + rates.scene_seconds * 2
    assert both == pytest.approx(22)  # what the two took
    assert rates.scene_seconds == pytest.approx(0.05)


def test_a_dry_run_and_a_report_have_hours_and_with_a_price_the_cost(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    priced = ("--set", "engine.price_per_core_hour=3600", "--set", "detect.threads=2")
    assert detect("--config", night, "--dry-run", "--json") == 0
    estimate = json.loads(capsys.readouterr().out)["estimate"]
    assert estimate["gpu_hours"] == 0
    assert "cost" not in estimate
    assert detect("--config", night, "--dry-run", *priced, "--json") == 0
    estimate = json.loads(capsys.readouterr().out)["estimate"]
    work_s = sum(estimate["seconds_per_megapixel"].values()) * 200 * 150 / 1e6
    detect_s = estimate["seconds_per_megapixel"]["detect"] * 200 * 150 / 1e6
    expected = work_s + detect_s + estimate["seconds_per_scene"]  # two threads of the detector
    assert estimate["cost"] == pytest.approx(expected, abs=0.01)
    assert estimate["cost_per_megapixel"] == pytest.approx(expected / 0.03, rel=0.05)
    assert detect("--config", night, "--dry-run", *priced) == 0
    assert "core hours; cost: " in capsys.readouterr().out
    assert detect("--config", night, *priced) == 0
    said = capsys.readouterr().out
    (report,) = (night.parent / "out" / "runs").glob("*.json")
    spending = json.loads(report.read_text())["spending"]
    assert spending.keys() == {"gpu_hours", "core_hours", "cost", "cost_per_megapixel"}
    assert spending["cost"] == pytest.approx(spending["core_hours"] * 3600, rel=0.2, abs=0.2)
    assert f"cost: {spending['cost']:.2f} (" in said
    assert detect("--config", night) == 0
    assert "cost: " not in capsys.readouterr().out


def test_only_our_own_old_files_are_thrown_away(tmp_path: Path) -> None:
    """Beside each file that goes lies one that differs in one thing and stays."""
    runs, work = tmp_path / "runs", tmp_path / ".work"
    old, new = "20260901T040000-0a1b2c.json", "20261120T040000-0a1b2c.json"
    theirs = ["20260901T040000.json", "notes.json", "20260901T040000-0a1b2c.json.bak"]
    for name in (old, new, *theirs):
        _write(runs / name)
    (runs / "20260901T050000-0a1b2c.json").symlink_to(runs / "notes.json")
    gone = [work / "gone-0123456789abcdef", work / "scene-b2-0123456789abcdef"]
    kept = [
        work / "scene-0123456789abcdef",  # of this run
        work / "gone-0123456789abcde",  # another form of name
        work / "nested-0123456789abcdef",
        work / "linked-0123456789abcdef",
        work / "young-0123456789abcdef",
    ]
    for folder in (*gone, *kept):
        _write(folder / "part-000001.parquet", days=20)
    _write(kept[2] / "more" / "file", days=20)
    (kept[3] / "link").symlink_to(runs)
    _write(kept[4] / "part-000002.parquet", days=1)
    for folder in (*gone, *kept):
        _age(folder, 1 if folder == kept[4] else 20)
    before = sorted(tmp_path.rglob("*"))
    found = expired(tmp_path, Retention(runs_days=30, work_days=14), scene_ids={"scene"}, now=NOW)
    assert found == [runs / old, *gone]
    assert expired(tmp_path, Retention(), scene_ids=set(), now=NOW) == []
    assert expired(tmp_path / "none", Retention(runs_days=1), scene_ids=set(), now=NOW) == []
    assert discard(found, tmp_path) == found
    lost = {runs / old, *gone, *(folder / "part-000001.parquet" for folder in gone)}
    assert sorted(tmp_path.rglob("*")) == [path for path in before if path not in lost]


def test_the_newest_report_stays_however_old(tmp_path: Path) -> None:
    for day in (1, 2):
        _write(tmp_path / "runs" / f"2020010{day}T040000-0a1b2c.json")
    found = expired(tmp_path, Retention(runs_days=1), scene_ids=set(), now=NOW)
    assert [path.name for path in found] == ["20200101T040000-0a1b2c.json"]


def test_a_run_throws_away_what_has_had_its_time(night: Path) -> None:
    out = night.parent / "out"
    _write(out / "runs" / "20200101T040000-0a1b2c.json")
    _write(out / ".work" / "gone-0123456789abcdef" / "part-000001.parquet", days=4000)
    _age(out / ".work" / "gone-0123456789abcdef", 4000)
    assert detect("--config", night, "--dry-run") == 0
    assert len(list((out / "runs").iterdir())) == 1
    assert detect("--config", night) == 0
    assert [path.name[:4] for path in (out / "runs").iterdir()] != ["2020"]
    assert not list((out / ".work").glob("gone-*"))
    assert list((out / ".work").glob("scene-*"))


def test_a_run_that_was_cut_short_throws_nothing_away(tmp_path: Path) -> None:
    """It does not know all its scenes."""
    for number in (1, 2):
        _write(tmp_path / "runs" / f"2020010{number}T040000-0a1b2c.json")
    for unfinished, left in ((1, 2), (0, 1)):
        tidy(Run("run", NOW, 1.0, (), unfinished), Retention(runs_days=1), make_job(tmp_path))
        assert len(list((tmp_path / "runs").iterdir())) == left


def _write(path: Path, *, days: float = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    _age(path, days)


def _age(path: Path, days: float) -> None:
    then = (NOW - timedelta(days=days)).timestamp()
    os.utime(path, (then, then))
