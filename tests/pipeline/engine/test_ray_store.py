"""Ray into a bucket: the bytes of the plain loop into a folder, without a disk in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from scenesweep.pipeline.engine import local
from scenesweep.pipeline.engine import ray as engine
from scenesweep.pipeline.engine.steps import Steps
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.storage.location import Location
from tests.chores import run
from tests.rasters import SquareDetector, make_job, paint_squares, ref_of, write_raster
from tests.stores import bucket_served, contents


def _squares(_: Any) -> SquareDetector:
    return SquareDetector()


def steps(out: Location) -> Steps[Any, SceneResult]:
    s = scene_steps(make_job(out, "tiling.shard=2", "publish.quicklook=true"))
    return Steps(s.plan, s.read, _squares, s.detect, s.finish, s.fail)


def test_ray_publishes_the_same_into_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = []
    for seed in range(2):
        pixels, _ = paint_squares(220, 200, largest=10, seed=seed)
        sources.append(ref_of(write_raster(tmp_path / f"scene{seed}.tif", pixels)))
    local.sweep(sources, steps(tmp_path / "plain"), None)
    home = os.environ["HOME"]  # with the token that this process has for Ray
    with bucket_served(monkeypatch) as out:
        monkeypatch.setenv("HOME", home)
        with engine.ray_session("local"):
            assert [r.status for r in run(steps(out), sources)] == ["done", "done"]
            assert contents(out) == contents(tmp_path / "plain") != {}
            assert [r.status for r in run(steps(out), sources)] == ["up-to-date"] * 2
