"""Scenes that fail every night: how many may, and which are left alone until they change."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from scenesweep.jobs import cli
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.runs.failures import failures_allowed, own_fault
from scenesweep.pipeline.runs.report import Run, SceneResult
from tests.rasters import paint_squares, write_raster
from tests.small_models import a_model


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """A night over a good scene and a file that is none."""
    a_model(tmp_path)
    pixels, _ = paint_squares(64, 64, largest=10, seed=1)
    write_raster(tmp_path / "scenes" / "good.tif", pixels)
    (tmp_path / "scenes" / "bad.tif").write_text("text")
    tree = {
        "sources": [str(tmp_path / "scenes")],
        "model": str(tmp_path / "m.safetensors"),
        "out": str(tmp_path / "out"),
        "address": "none",
        "publish": {"quicklook": False, "stac": False},
        "quarantine_after": 2,
    }
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "night.yaml"


def detect(*arguments: object) -> int:
    return cli.main(["detect", *map(str, arguments)])


def report(night: Path) -> dict[str, Any]:
    """Return the report of the last run: names sort by time, but not within a second."""
    newest = max((night.parent / "out" / "runs").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
    said: dict[str, Any] = json.loads(newest.read_text())
    return said


def listed(night: Path) -> Path:
    return night.parent / "out" / ".work" / "failures.json"


@pytest.mark.parametrize(
    ("asked", "scenes", "allowed"),
    [(0, 10, 0), ("3", 10, 3), ("5%", 200, 10), ("5%", 19, 0), ("2.5 %", 100, 2), ("100%", 7, 7)],
)
def test_failures_are_allowed_by_number_or_share(
    asked: int | str, scenes: int, allowed: int
) -> None:
    assert failures_allowed(asked, scenes) == allowed


@pytest.mark.parametrize("asked", ["-1", "0.05", "many", "101%", "%", ""])
def test_another_allowance_is_refused(asked: str) -> None:
    with pytest.raises(UsageError, match="expected a number of scenes, or a share such as 5%"):
        failures_allowed(asked, 10)


@pytest.mark.parametrize(
    ("statuses", "allowed", "code"),
    [
        ("done failed", 0, 3),
        ("done failed", 1, 0),
        ("done failed failed", 1, 3),
        ("up-to-date failed", 1, 0),
        ("failed failed", 5, 4),  # the mount or the model, rather than the scenes
        ("failed quarantined", 5, 4),
        ("quarantined", 0, 0),
        ("done quarantined", 0, 0),
    ],
)
def test_allowed_failures_do_not_fail_the_run(statuses: str, allowed: int, code: int) -> None:
    results = tuple(SceneResult(s, s, s) for s in statuses.split())  # type: ignore[arg-type]
    run = Run("r", datetime.now(UTC), 1.0, results, allowed_failed=allowed)
    assert run.exit_code == code


def test_a_bug_of_ours_is_never_allowed() -> None:
    results = (SceneResult("a", "a", "done"), SceneResult("b", "b", "failed", bug=True))
    assert Run("r", datetime.now(UTC), 1.0, results, allowed_failed=9).exit_code == 1


def test_a_failure_that_is_allowed_is_still_reported(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect("--config", night, "--allow-failed", "50%", "--dry-run") == 0
    assert "1 would fail" in capsys.readouterr().out
    assert detect("--config", night, "--allow-failed", "50%") == 0
    assert "scenes: 1 done, 1 failed" in capsys.readouterr().out
    said = report(night)
    assert (said["exit_code"], said["allowed_failed"], said["scenes"]["failed"]) == (0, 1, 1)
    assert detect("--config", night, "--allow-failed", "0.5") == 2
    assert "--allow-failed 0.5: expected a number of scenes" in capsys.readouterr().err


def test_a_scene_that_fails_again_and_again_is_left_alone_until_it_changes(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = night.parent / "scenes" / "bad.tif"
    assert [detect("--config", night) for _ in range(4)] == [3, 3, 0, 0]
    said = report(night)
    assert said["scenes"]["quarantined"] == 1
    (quarantined,) = [r for r in said["results"] if r["status"] == "quarantined"]
    assert "skipped: failed 2 times in a row and has not changed since (" in quarantined["reason"]
    assert "expected one of the formats" in quarantined["reason"]
    assert "scenes: 1 up-to-date, 1 quarantined" in capsys.readouterr().out
    assert detect("--config", night, "--dry-run") == 0
    assert "quarantined: " in capsys.readouterr().out
    assert detect("--config", night, "--set", "read.gsd_tolerance=0.2") == 3  # another job
    assert detect("--config", night, "--set", "quarantine_after=null") == 3
    os.utime(bad, (1, 1))
    assert [detect("--config", night) for _ in range(3)] == [3, 3, 0]
    bad.with_suffix(".tfw").write_text("1")  # a file beside it may repair it
    assert [detect("--config", night) for _ in range(3)] == [3, 3, 0]


def test_retry_failed_tries_again_and_clears_the_count(night: Path) -> None:
    assert [detect("--config", night) for _ in range(3)] == [3, 3, 0]
    assert detect("--config", night, "--retry-failed") == 3
    assert [detect("--config", night) for _ in range(2)] == [3, 0]


def test_a_scene_that_is_repaired_leaves_the_list(night: Path) -> None:
    bad = night.parent / "scenes" / "bad.tif"
    assert detect("--config", night) == 3
    assert list(json.loads(listed(night).read_text())) == ["bad"]
    write_raster(bad, paint_squares(64, 64, largest=10, seed=2)[0])
    assert detect("--config", night) == 0
    assert json.loads(listed(night).read_text()) == {}


def test_what_is_missing_or_fails_with_all_others_is_not_counted(night: Path) -> None:
    """A mount that is away, say, says nothing about the scenes."""
    scenes = night.parent / "scenes"
    missing = ("--config", night, scenes / "good.tif", scenes / "none.tif")
    assert [detect(*missing) for _ in range(3)] == [3, 3, 3]
    alone = ("--config", night, scenes / "bad.tif")
    assert [detect(*alone) for _ in range(3)] == [4, 4, 4]
    assert not listed(night).exists()


def test_a_list_that_cannot_be_read_is_an_empty_one(night: Path) -> None:
    assert [detect("--config", night) for _ in range(2)] == [3, 3]
    listed(night).write_text('{"bad": {"times": 9}}')
    assert detect("--config", night) == 3


@pytest.mark.parametrize(
    ("reason", "bug", "own"),
    [
        ("a.tif: expected one of the formats GTiff", False, True),
        ("KeyError: 'x'", True, False),
        ("given up: a worker was lost 2 times in read (killed)", False, False),
    ],
)
def test_a_lost_worker_and_a_bug_are_not_the_scenes_fault(
    reason: str, bug: bool, own: bool
) -> None:
    assert own_fault(SceneResult("a", "a", "failed", reason, bug)) == own
