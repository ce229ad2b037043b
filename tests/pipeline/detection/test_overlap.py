"""A detector computes while other threads stage, and its time is measured."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenesweep.model.boxes import DetectorOutput
from scenesweep.pipeline import flow
from scenesweep.pipeline.detection.detect import ShardDetections
from scenesweep.pipeline.detection.overlap import DetectorThread, Stopwatch, TimedDetector
from scenesweep.pipeline.detection.parts import write_part
from scenesweep.pipeline.engine.steps import DetectorUse
from scenesweep.pipeline.errors import OutputError
from scenesweep.pipeline.flow import SceneState
from scenesweep.pipeline.planning.plan import Job
from tests.rasters import SquareDetector, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import digests, tables

_LONG_S = 30.0  # never reached unless a test fails


class FakeClock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


class SlowSquares(SquareDetector):
    """Takes 8 ms of a fake clock for each call."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        self.clock.spend(0.008)
        return super().detect(chips)


def test_computing_waiting_and_staging_are_told_apart() -> None:
    clock = FakeClock()
    detector = TimedDetector(SlowSquares(clock), clock)
    clock.spend(2.0)  # the first pixels come after 2 s
    watch = Stopwatch(detector, clock)
    clock.spend(0.001)  # chips are cut
    for _ in range(2):
        watch.detect(np.zeros((3, 1, 64, 64), np.uint8))
        clock.spend(0.05)
    assert watch.computed_s == pytest.approx(0.016)
    assert watch.waited_s == pytest.approx(2.001 + 0.05)
    assert watch.staged_s == pytest.approx(0.101)
    assert watch.chips == 6


def test_a_detector_that_raises_goes_on_with_the_next_call() -> None:
    class Moody(SquareDetector):
        def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
            if len(chips) == 1:
                raise ValueError("a bug")
            return super().detect(chips)

    detector = DetectorThread(Moody)
    with pytest.raises(ValueError, match="a bug"):
        detector.detect(np.zeros((1, 1, 64, 64), np.uint8))
    assert len(detector.detect(np.zeros((2, 1, 64, 64), np.uint8)).capped) == 2


def test_a_detector_is_made_and_computes_in_one_thread() -> None:
    """Torch's number of threads belongs to the thread that sets it."""
    seen: list[str] = []

    class Noting(SquareDetector):
        def __init__(self) -> None:
            seen.append(threading.current_thread().name)

        def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
            seen.append(threading.current_thread().name)
            return super().detect(chips)

    detector = DetectorThread(Noting)
    with ThreadPoolExecutor(3) as callers:
        for _ in callers.map(detector.detect, [np.zeros((1, 1, 64, 64), np.uint8)] * 6):
            pass
    assert len(seen) == 7
    assert len(set(seen)) == 1
    assert seen[0] != threading.current_thread().name


def _planned(folder: Path, out: str) -> tuple[Job, SceneState, list[Any]]:
    """Return a job on a painted scene, the scene's state, and its shards."""
    scene = folder / "scene.tif"
    if not scene.exists():
        pixels, _ = paint_squares(300, 250, largest=10, seed=4)
        write_raster(scene, pixels)
    job = make_job(folder / out, "tiling.shard=2")
    planned = flow.prepare(ref_of(scene), job=job)
    assert planned.state is not None
    return job, planned.state, list(planned.work)


def _overlapped(detector: DetectorThread, tasks: list[Any]) -> list[Future[DetectorUse]]:
    """Detect on shards with two calls at a time, as an actor does."""
    chips: list[Any] = [flow.read([task]) for task in tasks]
    with ThreadPoolExecutor(2) as calls:
        return [
            calls.submit(flow.detect_and_stage, detector, [task], one)
            for task, one in zip(tasks, chips, strict=True)
        ]


def test_computing_goes_on_while_a_part_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of part i waits until the detector has begun shard i + 1: no clock is needed.

    If writing blocked the detector's thread, it would wait in vain. The published bytes are those
    of the plain loop.
    """
    job, state, tasks = _planned(tmp_path, "plain")
    for task in tasks:
        chips: list[Any] = flow.read([task])
        flow.detect_and_stage(SquareDetector(), [task], chips)
    flow.finish(state, {}, job=job)

    job, state, tasks = _planned(tmp_path, "overlapped")
    begun = [threading.Event() for _ in tasks]
    order = iter(begun)

    class Telling(SquareDetector):
        def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
            next(order).set()
            return super().detect(chips)

    after = dict(zip([task.shard.number for task in tasks], begun[1:], strict=False))

    def slow_write(folder: Path, number: int, part: ShardDetections) -> None:
        assert number not in after or after[number].wait(_LONG_S), "the detector waited for a part"
        write_part(folder, number, part)

    monkeypatch.setattr("scenesweep.pipeline.flow.write_part", slow_write)
    uses = [call.result() for call in _overlapped(DetectorThread(Telling), tasks)]
    assert len(tasks) > 5
    assert sum(use.chips for use in uses) == sum(task.windows for task in tasks)
    flow.finish(state, {}, job=job)
    assert len(tables(digests(tmp_path / "plain"))) == 1
    assert digests(tmp_path / "overlapped") == digests(tmp_path / "plain")


def test_an_error_of_the_writer_reaches_its_own_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the shard whose part was not written is left to do."""
    _, _, tasks = _planned(tmp_path, "out")
    bad = tasks[2].shard.number

    def full(folder: Path, number: int, part: ShardDetections) -> None:
        if number == bad:
            raise OutputError("the disk is full")
        write_part(folder, number, part)

    monkeypatch.setattr("scenesweep.pipeline.flow.write_part", full)
    errors = [call.exception() for call in _overlapped(DetectorThread(SquareDetector), tasks)]
    assert [type(error) for error in errors if error] == [OutputError]
    assert errors[2] is not None
    _, _, left = _planned(tmp_path, "out")
    assert [task.shard.number for task in left] == [bad]
