"""Two nodes: one of them dies with the pixels that were read on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scenesweep.pipeline.engine import local
from scenesweep.pipeline.engine import ray as engine
from scenesweep.pipeline.engine.resources import Resources
from scenesweep.pipeline.engine.steps import Listener, Steps
from scenesweep.pipeline.engine.workers import PixelsLost, Portion
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.settings import EngineSettings
from tests.rasters import SquareDetector, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import digests

_RAY = {
    "health_check_period_ms": 500,  # a killed raylet refuses connections: this soon it is noticed
    "health_check_failure_threshold": 2,
    "max_direct_call_object_size": 4096,  # small test shards lie on their node, as large ones do
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a head node, which runs detectors, and connect this driver to it."""
    head = {"num_cpus": 2, "include_dashboard": False, "resources": {"head": 1}}
    there = Cluster(initialize_head=True, head_node_args=head | {"_system_config": _RAY})
    try:
        with engine.ray_session(there.address):
            yield there
    finally:
        there.shutdown()


@pytest.fixture
def doomed(cluster: Cluster) -> Any:
    """Add a second node, which runs readers until its raylet is killed."""
    return cluster.add_node(num_cpus=1, object_store_memory=100_000_000)


def _zeros(work: Any) -> list[Any]:
    return [np.zeros(100_000, np.uint8) for _ in work]


def _is_zero(_: Any, work: Any, pixels: Any) -> None:
    assert not any(chip.any() for chip in pixels)


class _Workers(engine._RayWorkers[Any, Any]):
    """Detectors run on the head, everything else on the doomed node while it lives."""

    doomed: Any = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        there = NodeAffinitySchedulingStrategy(self.doomed.node_id, soft=True)
        self._task = self._task | {"scheduling_strategy": there}
        self._actor = self._actor | {"resources": {"head": 0.01}}

    def read(self, work: Any, *, near: str | None = None) -> Any:
        return super().read(work)


def _ended(workers: Any, ref: Any) -> Any:
    """Wait for a call and return its value."""
    until = time.monotonic() + 60
    while not workers.wait([ref], 1) and time.monotonic() < until:
        pass
    return workers.value(ref)


def test_pixels_that_died_with_their_node_are_lost_and_their_detector_is_not(doomed: Any) -> None:
    steps: Any = Steps(lambda s: s, _zeros, lambda w: w, _is_zero, lambda s, _: s, lambda *a: a)
    _Workers.doomed = doomed
    workers = _Workers(steps, None, Resources(1, 0.5, 0, 0.5))
    chores: Any = ["work"]
    work = [Portion(workers.share(chores), (0,))]
    detector, up = workers.start_detector()
    outcome, pixels = workers.read(work)
    assert _ended(workers, outcome).unreadable == (None,)
    _ended(workers, up)
    doomed.kill_raylet()
    with pytest.raises(PixelsLost, match=r"^ObjectReconstructionFailedError: "):
        _ended(workers, workers.detect(detector, work, pixels))
    outcome, pixels = workers.read(work)
    assert _ended(workers, outcome).unreadable == (None,)
    assert _ended(workers, workers.detect(detector, work, pixels)).computed_s >= 0
    workers.stop_detector(detector)


def _squares(_: Any) -> SquareDetector:
    return SquareDetector()


def test_a_run_that_loses_a_node_publishes_the_bytes_of_the_plain_loop(
    doomed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, _ = paint_squares(400, 400, largest=10, seed=1)
    scene = str(write_raster(tmp_path / "scene.tif", pixels))

    def steps(out: str) -> Steps[Any, SceneResult]:
        s = scene_steps(make_job(tmp_path / out, "tiling.shard=2"))
        return Steps(s.plan, s.read, _squares, s.detect, s.finish, s.fail)

    class Killing(_Workers):
        """Kills the doomed node when it has read the pixels for the second detection."""

        def detect(self, detector: Any, work: Any, pixels: Any) -> Any:
            self.given = getattr(self, "given", 0) + 1
            if self.given == 2:
                doomed.kill_raylet()
            return super().detect(detector, work, pixels)

    Killing.doomed = doomed
    monkeypatch.setattr(engine, "_RayWorkers", Killing)
    warnings: list[str] = []
    results: list[SceneResult] = []
    engine.sweep(
        [ref_of(scene)],
        steps("ray"),
        None,
        EngineSettings(batch_windows=1, attempts=9),  # reads are lost too, before that is known
        Resources(1, 0.5, 0, 0.25),
        listener=Listener(results.append, warning=warnings.append),
    )
    assert [result.status for result in results] == ["done"], warnings
    lost = [warning for warning in warnings if warning.startswith("detect ")]
    assert lost
    assert all("pixels lost with their node" in warning for warning in lost), lost
    local.sweep([ref_of(scene)], steps("plain"), None)
    assert digests(tmp_path / "ray") == digests(tmp_path / "plain")
