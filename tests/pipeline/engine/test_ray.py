"""The Ray loop: equal to the plain loop, also when workers are killed, hang or raise."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
from ray.experimental import internal_kv

from scenesweep.pipeline.engine import local
from scenesweep.pipeline.engine import ray as engine
from scenesweep.pipeline.engine.resources import Resources
from scenesweep.pipeline.engine.steps import Listener, Progress, Steps
from scenesweep.pipeline.errors import (
    DetectorLost,
    DetectorOutOfMemory,
    ModelError,
    UnfitMachine,
)
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.raster import survey
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.settings import EngineSettings
from tests.chores import Chore, fake_steps, run
from tests.rasters import SquareDetector, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import digests, tables

pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with engine.ray_session("local"):
        yield


def test_everything_is_done_once_and_progress_adds_up(tmp_path: Path) -> None:
    chores = {f"s{i}": [Chore(f"s{i}", j, windows=3) for j in range(i)] for i in range(6)}
    steps = fake_steps(tmp_path, chores)
    seen: list[Progress] = []
    results: list[str] = []
    engine.sweep(
        list(chores),
        steps,
        None,
        EngineSettings(batch_windows=6),
        Resources(2, 0.5, 0, 0.5),
        listener=Listener(results.append, seen.append),
    )
    expected: list[str] = []
    local.sweep(list(chores), steps, "weights", listener=Listener(expected.append))
    assert sorted(results) == sorted(expected)
    assert seen[-1].scenes_done == 6
    assert seen[-1].windows_done == seen[-1].windows_known == 45
    assert (seen[-1].scenes_planned, seen[-1].pixels_done) == (6, 1500)


@pytest.mark.parametrize("trouble", ["read kill", "detect kill", "detect hang", "read hang"])
def test_lost_workers_are_replaced_and_their_work_redone(tmp_path: Path, trouble: str) -> None:
    chores = {
        "a": [Chore("a", 0), Chore("a", 1, trouble=trouble, times=1), Chore("a", 2)],
        "b": [Chore("b", 0), Chore("b", 1)],
    }
    steps = fake_steps(tmp_path, chores)
    limits = {"read_timeout_s": 20, "detect_timeout_s": 5} if "hang" in trouble else {}
    # A busy machine may exceed a limit once more: so allow more attempts than the 2 that it takes.
    results = run(steps, list(chores), batch_windows=1, attempts=5, **limits)
    assert sorted(results) == ["done: a 0+10+20", "done: b 0+10"]


@pytest.mark.parametrize("step", ["read", "detect"])
def test_work_that_kills_its_workers_is_given_up_with_its_scene_alone(
    tmp_path: Path, step: str
) -> None:
    chores = {
        "bad": [Chore("bad", 0), Chore("bad", 1, trouble=f"{step} kill", times=99)],
        "good": [Chore("good", i) for i in range(4)],
    }
    results = run(fake_steps(tmp_path, chores), list(chores), attempts=2)
    assert sorted(results)[0] == "done: good 0+10+20+30"
    assert "failed: bad: given up: a worker was lost 2 times in " + step in sorted(results)[1]
    assert len(results) == 2


def test_what_cannot_be_read_or_planned_fails_alone(tmp_path: Path) -> None:
    chores = {"bad": [Chore("bad", 0, trouble="unreadable")], "good": [Chore("good", 0)]}
    results = run(fake_steps(tmp_path, chores), ["unplannable", "bad", "good"])
    assert sorted(results) == ["done: good 0", "failed: bad: unreadable", "failed: unplannable"]


def test_a_plan_that_hangs_fails_its_scene_alone(tmp_path: Path) -> None:
    chores = {"good": [Chore("good", 0), Chore("good", 1)]}
    steps, warnings = fake_steps(tmp_path, chores), list[str]()
    results: list[str] = []
    engine.sweep(
        ["hanging", "good"],
        steps,
        "weights",
        EngineSettings(plan_timeout_s=4, attempts=1),
        Resources(2, 0.5, 0, 0.5),
        listener=Listener(results.append, warning=warnings.append),
    )
    reason = "it took longer than engine.plan_timeout_s"
    assert sorted(results) == [
        "done: good 0+10",
        f"failed: hanging: given up: a worker was lost 1 times in plan ({reason})",
    ]
    assert warnings == [f"plan of hanging: worker lost ({reason})"]


@pytest.mark.parametrize("trouble", ["", "detect raise"])
def test_what_lands_last_may_be_seen_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Both calls of a detector have ended, and Ray reports the second one first."""
    wait = ray.wait

    def backwards(refs: list[Any], **how: Any) -> Any:
        time.sleep(0.05)
        return wait(refs[::-1], **how)

    monkeypatch.setattr(ray, "wait", backwards)
    chores = {
        "a": [Chore("a", number) for number in range(12)],
        "b": [Chore("b", number, trouble=trouble, times=1) for number in range(12)],
    }
    results = run(fake_steps(tmp_path, chores), list(chores), detectors=1, batch_windows=1)
    assert len(results) == 2
    assert any(one.startswith("done: a 0+10+") for one in results)


@pytest.mark.parametrize("step", ["read", "detect"])
def test_a_bug_fails_its_scene_and_is_not_tried_again(tmp_path: Path, step: str) -> None:
    chores = {
        "bad": [Chore("bad", 0, trouble=f"{step} raise", times=99)],
        "good": [Chore("good", 0)],
    }
    results = run(fake_steps(tmp_path, chores), ["bad", "good"], batch_windows=1)
    expected = ["done: good 0", "failed: bad: ValueError: a bug of ours (bug)"]
    assert sorted(results) == expected
    assert (tmp_path / f"bad-0-{step}").read_text() == "x"


def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path: Path) -> None:
    def no_model(_: Any) -> Any:
        raise ModelError("no such model")

    steps = fake_steps(tmp_path, {"a": [Chore("a", 0)]})
    broken = Steps(steps.plan, steps.read, no_model, steps.detect, steps.finish, steps.fail)
    with pytest.raises(ModelError, match="no such model"):
        run(broken, ["a"])


def test_sick_gpus_and_unfit_machines_cost_no_scene(tmp_path: Path) -> None:
    """One detector cannot start, one loses its GPU, one lacks memory: others do the work."""

    def once(name: str) -> bool:
        try:
            (tmp_path / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def make(weights: Any) -> Any:
        if once("unfit"):
            raise UnfitMachine("expected a CUDA GPU, found none")
        return weights

    def detect(detector: Any, work: Any, pixels: Any) -> None:
        if once("sick"):
            raise DetectorLost("the GPU failed (CUDA error: ECC)")
        if once("full"):
            raise DetectorOutOfMemory("the GPU has too little memory")
        steps.detect(detector, work, pixels)

    chores = {"a": [Chore("a", i) for i in range(4)], "b": [Chore("b", 0)]}
    steps = fake_steps(tmp_path, chores)
    results: list[str] = []
    warnings: list[str] = []
    engine.sweep(
        list(chores),
        replace(steps, make_detector=make, detect=detect),
        None,
        EngineSettings(batch_windows=1),
        Resources(3, 0.25, 0, 0.25),
        listener=Listener(results.append, warning=warnings.append),
    )
    assert sorted(results) == ["done: a 0+10+20+30", "done: b 0"]
    assert {path.name for path in tmp_path.iterdir()} > {"unfit", "sick", "full"}
    unfit = f"going on without a machine: {platform.node()}: expected a CUDA GPU, found none"
    assert warnings.count(unfit) == 1
    # Both errors may come from two calls of one detector: then they are one loss.
    assert sum("worker lost" in warning for warning in warnings) in (1, 2)


def test_detectors_of_a_run_agree_on_what_the_first_one_proposes() -> None:
    agree, other = engine.agreement("run-a"), engine.agreement("run-b")
    assert agree("cpu bfloat16") == "cpu bfloat16"
    assert agree("cpu float32") == "cpu bfloat16"
    assert other("cpu float32") == "cpu float32"


def test_a_machine_with_room_for_a_detector_is_asked(tmp_path: Path) -> None:
    """An unfit one is not the last word; another error is."""

    def answer() -> str:
        if not (tmp_path / "asked").exists():
            (tmp_path / "asked").touch()
            raise UnfitMachine("no GPU")
        return "cpu float32"

    def wrong() -> str:
        raise ModelError("no such device")

    resources = Resources(1, 0.5, 0, 0.5)
    assert engine.ask(answer, resources) == "cpu float32"
    with pytest.raises(ModelError, match="no such device"):
        engine.ask(wrong, resources)
    assert engine.ask(answer, Resources(1, 10_000, 0, 0.5), stop=lambda: True) is None


def test_no_detector_starts_where_nothing_is_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[None] = []
    monkeypatch.setattr(engine._RayWorkers, "start_detector", lambda *_, **__: started.append(None))
    results: list[str] = []
    engine.sweep(
        ["unplannable"] * 3,
        fake_steps(tmp_path, {}),
        None,
        EngineSettings(),
        Resources(2, 0.5, 0, 0.5, expect_work=False),
        listener=Listener(results.append),
    )
    assert results == ["failed: unplannable"] * 3
    assert started == []


def test_time_limits_are_by_the_clock_of_the_driver_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose clock is ten minutes behind has not worked for ten minutes."""
    behind = str(time.time() - 600).encode()
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda *_, **__: behind)
    monkeypatch.setattr(internal_kv, "_internal_kv_exists", lambda *_, **__: True)
    workers = engine._RayWorkers(fake_steps(tmp_path, {}), None, Resources(1, 0.5, 0, 0.5))
    ref = workers.plan("unplannable")
    busy = workers.busy_s(ref)
    assert busy is not None
    assert 0 <= busy < 500
    time.sleep(0.01)
    later = workers.busy_s(ref)
    assert later is not None
    assert later > busy
    workers.cancel(ref)


def test_a_step_that_waits_for_a_worker_is_not_at_work(tmp_path: Path) -> None:
    workers = engine._RayWorkers(fake_steps(tmp_path, {}), None, Resources(1, 0.5, 0, 10_000))
    ref = workers.plan("unplannable")
    assert workers.busy_s(ref) is None
    workers.cancel(ref)


def test_ray_that_runs_in_this_process_is_used_and_left_running() -> None:
    with engine.ray_session("local"):
        assert ray.cluster_resources()
    assert ray.is_initialized()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each `ray.init`, and an empty dict for each `ray.shutdown`."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **arguments: made.append(arguments))
    monkeypatch.setattr(ray, "shutdown", lambda: made.append({}))
    return made


def _session(address: str | None) -> None:
    with engine.ray_session(address):
        pass


def test_ray_started_by_default_is_ray_started_for_local(calls: list[dict[str, Any]]) -> None:
    for address in ("local", None):
        _session(address)
    local_, default = calls[0], calls[2]
    assert local_.pop("address") == "local"
    assert default.pop("address") is None
    assert local_ == default
    assert default["include_dashboard"] is False


def test_a_session_may_be_in_another_thread(calls: list[dict[str, Any]]) -> None:
    """As in a web worker or a scheduler, where no signal handler can be set."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_session, "local").result()
    assert len(calls) == 2
    assert calls[-1] == {}


def test_stdout_has_no_statistics_of_ray_when_a_node_is_lost() -> None:
    code = """
from scenesweep.pipeline.engine import ray
from ray._private.worker import print_to_stdstream
for line in ("Raylet is terminated. Last 20 lines of its log:\\n [state-dump] 1",
             "The node with node id: 12 and address: 10.0.0.1 has been marked dead", "another"):
    print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=True)
"""
    command = [sys.executable, "-c", code]
    # This process has set it by its own import.
    environment = {k: v for k, v in os.environ.items() if k != "RAY_DEDUP_LOGS_SKIP_REGEX"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "another\n"


def _squares(_: Any) -> SquareDetector:
    return SquareDetector()


def _mortal_squares(folder: Path, _: Any) -> SquareDetector:
    class Mortal(SquareDetector):
        def detect(self, chips: Any) -> Any:
            marks = folder / "deaths"
            with marks.open("a") as file:
                file.write("x")
            if marks.stat().st_size in (2, 5):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().detect(chips)

    return Mortal()


def test_ray_publishes_the_bytes_of_the_plain_loop(tmp_path: Path) -> None:
    """One detector, two, two that are killed, and scenes published in pieces: the same bytes."""
    sources = []
    for seed in range(3):
        pixels, _ = paint_squares(300, 250, largest=10, seed=seed)
        sources.append(ref_of(write_raster(tmp_path / f"scene{seed}.tif", pixels)))
    (tmp_path / "bad.tif").write_text("not a raster")
    sources.append(ref_of(tmp_path / "bad.tif"))

    def steps(out: str, make_detector: Any) -> Steps[Any, SceneResult]:
        pieces = f"engine.pieces_from_windows={1 if out == 'pieces' else 4096}"
        chosen = ("tiling.shard=2", "publish.quicklook=true", "publish.quicklook_px=90", pieces)
        return replace(scene_steps(make_job(tmp_path / out, *chosen)), make_detector=make_detector)

    local.sweep(sources, steps("plain", _squares), None)
    one = run(steps("one", _squares), sources, detectors=1)
    two = run(steps("two", _squares), sources, detectors=2)
    killed = run(steps("killed", partial(_mortal_squares, tmp_path)), sources, batch_windows=1)
    pieces = run(steps("pieces", _squares), sources)
    for found in (one, two, killed, pieces):
        assert sorted(r.status for r in found) == ["done", "done", "done", "failed"]
    assert (tmp_path / "deaths").stat().st_size > 5
    assert len(tables(digests(tmp_path / "plain"))) == 3
    for out in ("one", "two", "killed", "pieces"):
        assert digests(tmp_path / out) == digests(tmp_path / "plain")


def _as_large(step: Callable[..., Any], *given: Any) -> Any:
    """Run a step in a process of its own, in which every scene is too large for a survey."""
    survey.SURVEY_BYTES = 0
    return step(*given)


def _without_ground(out: Path) -> dict[str, str]:
    """Hash all files but those with the observed ground, which a large scene knows only roughly."""
    ground = ("coverage/", "items/", "checksums/")
    return {name: sha for name, sha in digests(out).items() if not name.startswith(ground)}


def test_large_scenes_have_the_same_bytes_and_counts_on_ray(tmp_path: Path) -> None:
    pixels, _ = paint_squares(500, 400, largest=10, seed=1)
    pixels[:, :150] = 0
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0)

    def steps(out: str, *, large: bool) -> Steps[Any, SceneResult]:
        job = make_job(tmp_path / out, "tiling.shard=1")
        s = scene_steps(job)
        plan = partial(_as_large, s.plan) if large else s.plan
        finish = partial(_as_large, s.finish) if large else s.finish
        return Steps(plan, s.read, _squares, s.detect, finish, s.fail)

    (small,) = run(steps("small", large=False), [ref_of(path)])
    (large,) = run(steps("ray", large=True), [ref_of(path)])
    plain: list[SceneResult] = []
    with mock.patch.object(survey, "SURVEY_BYTES", 0):
        job = make_job(tmp_path / "plain", "tiling.shard=1")
        local.sweep(
            [ref_of(path)],
            replace(scene_steps(job), make_detector=_squares),
            None,
            listener=Listener(plain.append),
        )
    counts = ("status", "windows", "skipped_windows", "shards", "detections", "on_nodata")
    assert [getattr(large, c) for c in counts] == [getattr(plain[0], c) for c in counts]
    assert large.shards > small.shards
    assert digests(tmp_path / "ray") == digests(tmp_path / "plain")
    assert _without_ground(tmp_path / "plain") == _without_ground(tmp_path / "small")


@pytest.mark.parametrize(
    ("there", "detectors", "device", "wanted"),
    [
        ({"CPU": 8.0}, None, "auto", Resources(8, 0.75, 0, 0.25)),
        ({"CPU": 8.0, "GPU": 2.0}, None, "auto", Resources(2, 1, 1, 1)),
        ({"CPU": 8.0, "GPU": 2.0}, 5, "cuda", Resources(5, 1, 1, 1)),
        ({"CPU": 8.0, "GPU": 2.0}, None, "cpu", Resources(8, 0.75, 0, 0.25)),
        ({}, 5, "cuda", Resources(5, 1, 1, 1)),  # a pool that is still empty
        ({}, 5, "cpu", Resources(5, 0.75, 0, 0.25)),
        ({"CPU": 8.0}, None, "cuda", Resources(8, 0.75, 0, 0.25)),  # which says there is no GPU
    ],
)
def test_detectors_take_gpus_where_there_are_or_will_be_some(
    monkeypatch: pytest.MonkeyPatch,
    there: dict[str, float],
    detectors: int | None,
    device: str,
    wanted: Resources,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    settings = EngineSettings(detectors=detectors)
    assert engine.resources_for(settings, threads=1, device=device) == wanted


def test_several_detectors_may_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    settings = EngineSettings(detectors_per_gpu=4)
    wanted = Resources(8, 1, 0.25, 1)
    assert engine.resources_for(settings, threads=1, device="auto") == wanted
