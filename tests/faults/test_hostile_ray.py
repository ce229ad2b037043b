"""Thirty good and sixty bad rasters in one run on Ray: the bytes of the plain loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
from ray._private import worker

from scenesweep.pipeline.engine import ray as engine
from scenesweep.pipeline.engine.resources import Resources
from scenesweep.pipeline.engine.steps import Listener, Steps
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.settings import EngineSettings
from scenesweep.pipeline.sources.ids import identified
from tests.faults.hostile import CASES, make, sweep, sweep_job
from tests.rasters import SquareDetector, ref_of
from tests.sweeps import digests, tables


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with engine.ray_session("local"):
        yield


def _squares(_: Any) -> SquareDetector:
    return SquareDetector()


def test_a_session_of_our_own_asks_for_a_token_and_has_no_dashboard() -> None:
    """Ray's ports listen on every interface: a token is what closes them."""
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert not worker.get_dashboard_url()


def test_bad_scenes_fail_alone(tmp_path: Path) -> None:
    good = [case for case in CASES if case.outcome == "done"][:30]
    bad = [case for case in CASES if case.outcome == "refused"][:60]
    made = make((*good, *bad), tmp_path / "inputs")
    sweep([str(made[case]) for case in good], tmp_path / "plain")
    mixed = [
        identified(ref_of(made[case]), "path")
        for pair in zip(bad[::2], good, bad[1::2], strict=True)
        for case in pair
    ]
    job = sweep_job(tmp_path / "ray")
    s = scene_steps(job)
    results: list[SceneResult] = []
    engine.sweep(
        mixed,
        Steps(s.plan, s.read, _squares, s.detect, s.finish, s.fail),
        None,
        EngineSettings(),
        Resources(2, 0.5, 0, 0.5),
        listener=Listener(results.append),
    )
    failed = {result.href: result.reason for result in results if result.status == "failed"}
    assert set(failed) == {str(made[case]) for case in bad}
    assert all(reason.startswith(href) for href, reason in failed.items())
    assert not any(result.bug for result in results)
    assert digests(tmp_path / "ray") == digests(tmp_path / "plain")
    assert len(tables(digests(tmp_path / "ray"))) == len(good)
