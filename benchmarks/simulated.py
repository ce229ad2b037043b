"""Workers on virtual time: the project's own `Loop` runs, and no work is done and nobody sleeps.

A simulated call takes the seconds that `Speeds` says. The driver's own work costs virtual
time too: what Ray takes for a call, and, if asked for, the Python of the loop itself.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from unittest import mock

from scenesweep.pipeline.engine.loop import Loop
from scenesweep.pipeline.engine.steps import DetectorUse, Listener, Planned
from scenesweep.pipeline.engine.tally import Tally
from scenesweep.pipeline.engine.workers import (
    Portion,
    ReadOutcome,
    Ref,
    T,
    WorkerLost,
    Workers,
)
from scenesweep.pipeline.settings import EngineSettings

WINDOWS = 16


@dataclass(frozen=True, slots=True)
class RayCost:
    """Seconds of the driver for each call that it starts, each result, and each waiting call.

    The defaults were measured with `benchmarks.engine --measure-ray` on 2 cores of an AMD EPYC:
    process time of the driver, Ray's threads in it included, for a task whose options exist, with
    small arguments and a small result. `hop_s` is the time on the way to a worker and back, which
    the driver does not spend. It was not measured.
    """

    start_s: float = 350e-6
    fetch_s: float = 12e-6
    waiting_s: float = 0.12e-6
    hop_s: float = 2e-3


@dataclass(frozen=True, slots=True)
class Speeds:
    """How fast the simulated workers are, and how often they are lost.

    `read_s` and `shard_s` are seconds a shard. `reader_cpus` run plans, reads and publications;
    None is as many as are asked for. `lost` is the share of calls whose worker dies.
    """

    detectors: int
    read_s: float
    shard_s: float
    reader_cpus: int | None = None
    plan_s: float = 0.2
    publish_s: float = 0.5
    start_s: float = 5.0
    lost: float = 0.0
    ray: RayCost = RayCost()


@dataclass(frozen=True, slots=True)
class Shard:
    """A piece of work that is nothing but its size."""

    windows: int = WINDOWS
    pixels: int = WINDOWS * 2**18


def _shards(work: Sequence[Portion]) -> int:
    return sum(len(portion.indices) for portion in work)


@dataclass(frozen=True, slots=True)
class Detected:
    """A call of a detector: when its result came, and from when to when it computed."""

    at: float
    shards: int
    began: float
    ended: float


@dataclass(slots=True)
class _Task:
    """A call that needs a CPU: its seconds, and the reference that ends with it."""

    number: int
    seconds: float


@dataclass
class SimulatedWorkers(Workers[str, str]):
    """Ends each call at its virtual time. `scenes` has the number of shards of each source."""

    speeds: Speeds
    scenes: Mapping[str, int]
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    now: float = 0.0
    calls: int = 0
    detected: list[Detected] = field(default_factory=list)
    _numbers: Any = field(default_factory=count)
    _ends: list[tuple[float, int]] = field(default_factory=list)
    _values: dict[int, Callable[[], object]] = field(default_factory=dict)
    _free_at: dict[object, float] = field(default_factory=dict)
    _waiting: deque[_Task] = field(default_factory=deque)
    _tasks: set[int] = field(default_factory=set)

    def _begin(self, value: Callable[[], object]) -> int:
        self.now += self.speeds.ray.start_s
        self.calls += 1
        number = next(self._numbers)
        self._values[number] = value
        return number

    def _task(self, seconds: float, value: Callable[[], object]) -> Ref[Any]:
        number = self._begin(value)
        self._waiting.append(_Task(number, seconds))
        self._start_tasks()
        return Ref(number)

    def _start_tasks(self) -> None:
        most = self.speeds.reader_cpus
        while self._waiting and (most is None or len(self._tasks) < most):
            task = self._waiting.popleft()
            self._tasks.add(task.number)
            at = self.now + task.seconds + 2 * self.speeds.ray.hop_s
            heapq.heappush(self._ends, (at, task.number))

    def plan(self, source: object) -> Ref[Planned[str, str]]:
        source = str(source)
        shards = self.scenes[source]
        planned: Planned[str, str] = Planned(source, [Shard()] * shards, shards * WINDOWS)
        return self._task(self.speeds.plan_s, lambda: planned)

    def read(
        self, work: Sequence[Portion], *, near: str | None = None
    ) -> tuple[Ref[ReadOutcome], object]:
        shards = _shards(work)
        seconds = self.speeds.read_s * shards
        outcome = ReadOutcome((None,) * shards, seconds)
        return self._task(seconds, lambda: outcome), None

    def start_detector(self, *, avoid: Collection[str] = ()) -> tuple[object, Ref[None]]:
        number = self._begin(lambda: None)
        self._free_at[number] = up = self.now + self.speeds.start_s
        heapq.heappush(self._ends, (up, number))
        return number, Ref(number)

    def detect(self, detector: object, work: Sequence[Portion], pixels: object) -> Ref[DetectorUse]:
        shards = _shards(work)
        seconds = self.speeds.shard_s * shards

        number, hop_s = self._begin(lambda: None), self.speeds.ray.hop_s
        end = max(self.now + hop_s, self._free_at[detector]) + seconds

        def value() -> DetectorUse:
            self.detected.append(Detected(self.now, shards, end - seconds, end))
            return DetectorUse(seconds)

        self._values[number] = value
        self._free_at[detector] = end
        heapq.heappush(self._ends, (end + hop_s, number))
        return Ref(number)

    def finish(self, state: str, seconds: Mapping[str, float]) -> Ref[str]:
        return self._task(self.speeds.publish_s, lambda: state)

    def wait(self, refs: Collection[Ref[object]], timeout_s: float) -> list[Ref[object]]:
        """Go on to the next end of a call, and return all calls that have ended by then."""
        until = self.now + timeout_s
        self.now += self.speeds.ray.waiting_s * len(refs)
        if self._ends:
            self.now = max(self.now, min(self._ends[0][0], until))
        else:
            self.now = until
        ended: list[Ref[object]] = []
        while self._ends and self._ends[0][0] <= self.now:
            number = heapq.heappop(self._ends)[1]
            self._tasks.discard(number)
            if number in self._values:
                ended.append(Ref(number))
        self._start_tasks()
        return ended

    def busy_s(self, ref: Ref[object]) -> float | None:
        return 0.0 if ref.handle in self._tasks else None

    def value(self, ref: Ref[T]) -> T:
        self.now += self.speeds.ray.fetch_s
        value: Any = self._values.pop(ref.handle)  # type: ignore[call-overload]
        if self.speeds.lost and self.chance.random() < self.speeds.lost:
            raise WorkerLost("simulated")
        return value()

    def cancel(self, ref: Ref[object]) -> None:
        self._values.pop(ref.handle, None)  # type: ignore[call-overload]
        self._tasks.discard(ref.handle)

    def stop_detector(self, detector: object) -> None:
        self._free_at.pop(detector, None)


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of a run. Times are virtual seconds from the first detector that was up.

    `share` is the share of the detectors' time in which they computed, between the first quarter
    of the shards and the last tenth. `python_s` is process time of the loop for a shard, with the
    little that the simulated workers need. `published_s` has the time of each scene's end.
    """

    share: float
    python_s: float
    calls: int
    shards: int
    published_s: Mapping[str, float]
    failed: int

    @property
    def first_published_s(self) -> float:
        return min(self.published_s.values())


def simulate(
    speeds: Speeds,
    scenes: Mapping[str, int],
    *,
    count_python: bool = False,
    settings: EngineSettings | None = None,
) -> Simulation:
    """Sweep scenes of so many shards on a simulated cluster.

    With `count_python`, the process time of the loop passes on the virtual clock as well. Then
    results differ a little from run to run.
    """
    workers = SimulatedWorkers(speeds, scenes)
    published: dict[str, float] = {}
    failures: list[str] = []

    def publish(result: str) -> None:
        published[result] = workers.now - speeds.start_s

    def fail(source: object, reason: str, bug: bool) -> str:
        failures.append(reason)
        return str(source)

    def clock() -> float:
        return workers.now

    tally: Tally[str, str] = Tally(Listener(publish), fail)
    with mock.patch("time.monotonic", clock):
        loop: Loop[str, str] = Loop(
            iter(scenes),
            workers,
            tally,
            settings=settings or EngineSettings(),
            detectors=speeds.detectors,
        )
        began = last = time.process_time()
        while loop.advance():
            if count_python:
                spent = time.process_time()
                workers.now += spent - last
                last = spent
        python_s = time.process_time() - began
        loop.close()
    shards = sum(scenes.values())
    share = _steady_share(workers.detected, shards, speeds.detectors)
    return Simulation(
        share, python_s / max(1, shards), workers.calls, shards, published, len(failures)
    )


def _steady_share(detected: Sequence[Detected], shards: int, detectors: int) -> float:
    """Return the share of the detectors' time that was used, without the beginning and the end."""
    done, steady = 0, []
    for call in detected:
        done += call.shards
        if 0.25 * shards <= done <= 0.9 * shards:
            steady.append(call.at)
    if len(steady) < 2:
        return 0.0
    first, last = steady[0], steady[-1]
    busy_s = sum(max(0.0, min(call.ended, last) - max(call.began, first)) for call in detected)
    return busy_s / (detectors * (last - first))
