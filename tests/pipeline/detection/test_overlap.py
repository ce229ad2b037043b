"""A detector computes while other threads stage, and its time is measured."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenesweep.model.boxes import DetectorOutput
from scenesweep.model.inference.windows import AnyWindows, chips_of
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


def windows(count: int) -> AnyWindows:
    return chips_of(np.zeros((count, 1, 64, 64), np.uint8))


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
        watch.detect_windows([windows(3)])
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
        detector.compute([windows(1)])
    assert len(detector.compute([windows(2)]).output.capped) == 2


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
        for _ in callers.map(detector.compute, [[windows(1)]] * 6):
            pass
    assert len(seen) == 7
    assert len(set(seen)) == 1
    assert seen[0] != threading.current_thread().name


class Gpu(SquareDetector):
    """Starts at once, and computes when the host waits. A third start fails."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.may_end = threading.Event()
        self.waiting = 0

    def submit(self, *parts: AnyWindows) -> GpuTicket:
        count = sum(map(len, parts))
        self.log.append(f"submit {count}")
        if count == 3:
            raise ValueError("a bug")
        self.waiting += 1
        assert self.waiting <= 2
        return GpuTicket(self, np.concatenate([part.chips() for part in parts]))

    def collect(self, ticket: GpuTicket) -> DetectorOutput:
        self.log.append(f"collect {len(ticket.chips)}")
        assert self.may_end.wait(_LONG_S)
        self.waiting -= 1
        return self.detect(ticket.chips)


@dataclass(frozen=True)
class GpuTicket:
    gpu: Gpu
    chips: NDArray[np.uint8]

    @property
    def is_done(self) -> bool:
        return self.gpu.may_end.is_set()


def test_a_gpu_gets_the_next_windows_before_the_last_ones_are_done() -> None:
    gpu = Gpu()
    detector = DetectorThread(lambda: gpu)
    with ThreadPoolExecutor(4) as callers:
        calls = []
        for count in (1, 2):
            calls.append(callers.submit(detector.compute, [windows(count)]))
            while f"submit {count}" not in gpu.log:
                time.sleep(0.001)
        assert gpu.log[:2] == ["submit 1", "submit 2"]
        bad = callers.submit(detector.compute, [windows(3)])
        calls.append(callers.submit(detector.compute, [windows(4)]))
        gpu.may_end.set()
        assert [len(call.result().output.capped) for call in calls] == [1, 2, 4]
        with pytest.raises(ValueError, match="a bug"):
            bad.result()
    assert gpu.log.index("collect 1") < gpu.log.index("collect 2") < gpu.log.index("collect 4")
    assert gpu.waiting == 0


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
