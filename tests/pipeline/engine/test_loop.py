"""The bounded loop with simulated workers: any order of events, any losses, no real clock."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenesweep.pipeline.engine.loop import Loop
from scenesweep.pipeline.engine.steps import DetectorUse, Listener, Planned, Unreadable
from scenesweep.pipeline.engine.tally import Tally
from scenesweep.pipeline.engine.workers import (
    LostForMemory,
    MachineUnfit,
    PixelsLost,
    Portion,
    ReadOutcome,
    Ref,
    StepRaised,
    T,
    WorkerLost,
    Workers,
    work_of,
)
from scenesweep.pipeline.errors import ScenesweepError
from scenesweep.pipeline.settings import EngineSettings


@dataclass(frozen=True)
class Chore:
    source: str
    number: int
    windows: int
    fate: str = ""
    pixels: int = 0


@dataclass
class Simulated(Workers[str, str]):
    """Workers whose calls end in any order: with their value, in an error, or in a loss."""

    chores: Mapping[str, Sequence[Chore]]
    chance: random.Random
    losses: int
    lost_pixels: int = 0
    detectors_started: int = 0
    risk: float = 0.1
    in_progress: dict[Hashable, tuple[str, Any, Any]] = field(default_factory=dict)
    living: set[int] = field(default_factory=set)
    blameless: set[int] = field(default_factory=set)
    detected: Counter[Chore] = field(default_factory=Counter)
    finished: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: count(1))

    def _begin(self, kind: str, what: Any, detector: object = None) -> Ref[Any]:
        number = next(self.numbers)
        self.in_progress[number] = (kind, what, detector)
        return Ref(number)

    def plan(self, source: object) -> Ref[Planned[str, str]]:
        return self._begin("plan", source)

    def read(
        self, work: Sequence[Portion], *, near: str | None = None
    ) -> tuple[Ref[ReadOutcome], object]:
        return self._begin("read", work_of(work)), "pixels"

    def start_detector(self, *, avoid: Collection[str] = ()) -> tuple[object, Ref[None]]:
        detector = next(self.numbers)
        self.living.add(detector)
        self.detectors_started += 1
        return detector, self._begin("start", None, detector)

    def detect(self, detector: object, work: Sequence[Portion], pixels: object) -> Ref[DetectorUse]:
        assert pixels == "pixels"
        return self._begin("detect", work_of(work), detector)

    def finish(self, state: str, seconds: Mapping[str, float]) -> Ref[str]:
        return self._begin("finish", state)

    def wait(self, refs: Collection[Ref[object]], timeout_s: float) -> list[Ref[object]]:
        """End some calls; of the calls of a detector, only the first one may end."""
        assert self.blameless <= self.living, "a detector was stopped because its pixels were lost"
        self.blameless.clear()
        firsts: dict[int, Ref[object]] = {}
        for ref in refs:
            kind, _, detector = self.in_progress[ref.handle]
            if kind == "detect" and detector is not None:
                firsts.setdefault(detector, ref)
        may_end = [
            ref
            for ref in refs
            if self.in_progress[ref.handle][0] != "detect" or ref in firsts.values()
        ]
        return self.chance.sample(may_end, self.chance.randint(1, min(3, len(may_end))))

    def busy_s(self, ref: Ref[object]) -> float | None:
        return 0.0

    def value(self, ref: Ref[T]) -> T:
        kind, what, detector = self.in_progress.pop(ref.handle)
        if detector is not None and detector not in self.living:
            raise WorkerLost("the detector is gone")
        if self.losses and self.chance.random() < self.risk:
            self.losses -= 1
            self._lose(detector)
        if kind == "detect" and self.lost_pixels and self.chance.random() < 0.5:
            self.lost_pixels -= 1
            self.blameless.add(detector)
            raise PixelsLost("the node is gone")
        value: T = getattr(self, f"_{kind}")(what, detector)
        return value

    def cancel(self, ref: Ref[object]) -> None:
        del self.in_progress[ref.handle]

    def stop_detector(self, detector: Any) -> None:
        self.living.discard(detector)
        for ref in [r for r, (_, _, whose) in self.in_progress.items() if whose == detector]:
            del self.in_progress[ref]

    def _lose(self, detector: int | None) -> None:
        self.living.discard(detector or 0)
        raise WorkerLost("killed")

    def _plan(self, source: str, _: Any) -> Planned[str, str]:
        work = self.chores[source]
        return Planned(source, work, sum(chore.windows for chore in work))

    def _read(self, work: Sequence[Chore], _: Any) -> ReadOutcome:
        if any(chore.fate == "kills" for chore in work):
            raise WorkerLost("killed by a chore")
        bad = Unreadable("unreadable")
        return ReadOutcome(tuple(bad if c.fate == "unreadable" else None for c in work), 0.1)

    def _start(self, *_: Any) -> None:
        return None

    def _detect(self, work: Sequence[Chore], detector: int) -> DetectorUse:
        if any(chore.fate == "kills detector" for chore in work):
            self._lose(detector)
        if any(chore.fate == "raises" for chore in work):
            raise StepRaised(ValueError("a bug"))
        self.detected.update(work)
        return DetectorUse(0.1)

    def _finish(self, source: str, _: Any) -> str:
        assert all(self.detected[chore] for chore in self.chores[source])
        self.finished.append(source)
        return f"done: {source}"


@st.composite
def nights(draw: st.DrawFn) -> dict[str, list[Chore]]:
    """Scenes with shards; in some, one is bad."""
    night = {}
    for number in range(draw(st.integers(1, 5))):
        sizes = draw(st.lists(st.integers(1, 8), max_size=8))
        fates = ["", "", "", "unreadable", "kills", "kills detector", "raises"]
        fate = draw(st.sampled_from(fates))
        bad = draw(st.integers(0, 7))
        source = f"s{number}"
        night[source] = [
            Chore(source, i, windows, fate if i == bad else "") for i, windows in enumerate(sizes)
        ]
    return night


def loop_on(
    workers: Simulated,
    results: list[str],
    warnings: list[str],
    *,
    detectors: int = 3,
    expect_work: bool = True,
    **engine: Any,
) -> Loop[str, str]:
    return Loop(
        iter(workers.chores),
        workers,
        Tally(
            Listener(results.append, warning=warnings.append),
            lambda source, reason, bug: f"failed: {source}: {reason}",
        ),
        settings=EngineSettings(**engine),
        detectors=detectors,
        expect_work=expect_work,
    )


@settings(max_examples=60, deadline=None)
@given(nights(), st.integers(0, 2**32), st.booleans())
def test_each_scene_ends_once_and_only_bad_ones_fail(
    night: dict[str, list[Chore]], seed: int, expect_work: bool
) -> None:
    """A shard that kills, raises or cannot be read fails its scene only.

    At the end, no window is left in the total that is not done: those of failed scenes leave it.
    """
    workers = Simulated(night, random.Random(seed), losses=0)
    results: list[str] = []
    loop = loop_on(workers, results, [], expect_work=expect_work)
    for _ in range(10_000):
        if not loop.advance():
            break
    loop.close()
    bad = {source for source, work in night.items() if any(chore.fate for chore in work)}
    assert sorted(r.split(": ")[1] for r in results) == sorted(night)
    assert {r.split(": ")[1] for r in results if r.startswith("failed")} == bad
    assert sorted(workers.finished) == sorted(night.keys() - bad)
    good = [chore for source in night.keys() - bad for chore in night[source]]
    assert all(workers.detected[chore] == 1 for chore in good)
    progress = loop.progress()
    assert (progress.scenes_done, progress.scenes_planned) == (len(night), len(night))
    assert progress.windows_done == progress.windows_known
    assert workers.in_progress == {}
    assert workers.living == set()


@dataclass
class UpToDate(Simulated):
    """Scenes that are up to date; `most` is the largest number of scenes planned at once."""

    most: int = 0

    def wait(self, refs: Collection[Ref[object]], timeout_s: float) -> list[Ref[object]]:
        self.most = max(self.most, len(refs))
        return super().wait(refs, timeout_s)

    def _plan(self, source: str, _: Any) -> Planned[str, str]:
        return Planned(None, result=f"up to date: {source}")


@pytest.mark.parametrize(("doubled_s", "most"), [(1000.0, 1), (1e-9, 6)])
def test_where_nothing_is_to_do_no_detector_starts_and_few_planners(
    doubled_s: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scene is planned after the other, and several at once only if that takes long."""
    monkeypatch.setattr("scenesweep.pipeline.engine.loop._DOUBLED_EVERY_S", doubled_s)
    sources: dict[str, list[Chore]] = {f"s{number}": [] for number in range(40)}
    workers = UpToDate(sources, random.Random(0), losses=0)
    results: list[str] = []
    loop = loop_on(workers, results, [], expect_work=False)
    while loop.advance():
        pass
    assert sorted(results) == sorted(f"up to date: {source}" for source in sources)
    assert workers.detectors_started == 0
    assert workers.most == most


@settings(max_examples=60, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(1, 8))
def test_criterion_are_told_and_cost_no_scene(
    night: dict[str, list[Chore]], seed: int, losses: int
) -> None:
    """Workers die at random, less often than attempts are allowed: each loss is one warning."""
    night = {s: [Chore(c.source, c.number, c.windows) for c in work] for s, work in night.items()}
    workers = Simulated(night, random.Random(seed), losses)
    results: list[str] = []
    warnings: list[str] = []
    loop = loop_on(workers, results, warnings, attempts=losses + 1)
    for _ in range(10_000):
        if not loop.advance():
            break
    loop.close()
    assert sorted(results) == sorted(f"done: {source}" for source in night)
    assert len(warnings) == losses - workers.losses


class Overlapping(Simulated):
    """Detectors that run their calls at the same time: any of them may end, or kill, first."""

    def wait(self, refs: Collection[Ref[object]], timeout_s: float) -> list[Ref[object]]:
        return self.chance.sample(list(refs), self.chance.randint(1, min(3, len(refs))))


@settings(max_examples=60, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(1, 3))
def test_a_shard_that_kills_detectors_costs_no_scene_beside_it(
    night: dict[str, list[Chore]], seed: int, attempts: int
) -> None:
    """While one call computes, the next one or the one before is at the same detector."""
    workers = Overlapping(night, random.Random(seed), losses=0)
    results: list[str] = []
    loop = loop_on(workers, results, [], attempts=attempts)
    while loop.advance():
        pass
    loop.close()
    bad = {source for source, work in night.items() if any(chore.fate for chore in work)}
    assert {r.split(": ")[1] for r in results if r.startswith("failed")} == bad
    assert sorted(workers.finished) == sorted(night.keys() - bad)
    assert workers.in_progress == {}
    assert workers.living == set()


@dataclass
class SomeUnfit(Simulated):
    """The first `unfit` detectors are on machines that cannot run one."""

    unfit: int = 0

    def _start(self, _: Any, detector: Any) -> None:
        if self.unfit:
            self.unfit -= 1
            raise MachineUnfit("node7: expected a CUDA GPU, found none: driver too old")


@settings(max_examples=30, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(1, 3))
def test_an_unfit_machine_costs_its_detectors_and_one_line(
    night: dict[str, list[Chore]], seed: int, unfit: int
) -> None:
    """It keeps its place to the end, so that no other detector starts there."""
    night = {s: [Chore(c.source, c.number, c.windows) for c in work] for s, work in night.items()}
    workers = SomeUnfit(night, random.Random(seed), losses=0, unfit=unfit)
    results: list[str] = []
    warnings: list[str] = []
    loop = loop_on(workers, results, warnings, detectors=4)
    while loop.advance():
        pass
    loop.close()
    assert sorted(results) == sorted(f"done: {source}" for source in night)
    met = unfit - workers.unfit
    assert loop._detectors.limit == 4 - met
    line = "going on without a machine: node7: expected a CUDA GPU, found none: driver too old"
    assert warnings == [line] * min(met, 1)
    assert workers.living == set()


def test_a_run_without_a_fit_machine_ends_with_the_reason() -> None:
    workers = SomeUnfit({"a": [Chore("a", 0, 1)]}, random.Random(0), losses=0, unfit=9)
    loop = loop_on(workers, [], [])

    def run() -> None:
        while loop.advance():
            pass

    with pytest.raises(ScenesweepError, match="no machine can run a detector: node7: expected a"):
        run()
    loop.close()
    assert workers.living == set()


@settings(max_examples=60, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(1, 200))
def test_lost_pixels_are_read_again_and_blame_nobody(
    night: dict[str, list[Chore]], seed: int, lost: int
) -> None:
    """No scene fails, no attempt is counted, and no detector is stopped for it."""
    night = {s: [Chore(c.source, c.number, c.windows) for c in work] for s, work in night.items()}
    workers = Simulated(night, random.Random(seed), losses=0, lost_pixels=lost)
    results: list[str] = []
    warnings: list[str] = []
    loop = loop_on(workers, results, warnings, attempts=1)
    while loop.advance():
        pass
    loop.close()
    assert sorted(results) == sorted(f"done: {source}" for source in night)
    assert set(workers.detected.values()) <= {1}
    assert workers.detectors_started <= 3 + lost  # idle ones may have left by then
    ending = "pixels lost with their node (the node is gone); reading them again"
    assert len(warnings) == lost - workers.lost_pixels
    assert all(warning.endswith(ending) for warning in warnings)
    assert workers.in_progress == {}


@settings(max_examples=200, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 2))
def test_after_a_request_to_stop_nothing_is_begun(
    night: dict[str, list[Chore]], seed: int, rounds: int, losses: int
) -> None:
    """The first call of each detector ends, and others that it has may end; no call is started."""
    workers = Simulated(night, random.Random(seed), losses=0)
    loop = loop_on(workers, [], [])
    for _ in range(rounds):
        if not loop.advance():
            break
    begun = next(workers.numbers)
    held: Counter[Chore] = Counter()
    firsts: dict[int, Sequence[Chore]] = {}
    for kind, work, detector in workers.in_progress.values():
        if kind == "detect" and detector is not None:
            held.update(work)
            firsts.setdefault(detector, work)
    detected = workers.detected.copy()
    workers.losses, workers.risk = losses, 0.5
    for _ in range(1000):
        if not loop.drain():
            break
    in_progress = [kind for kind, _, _ in workers.in_progress.values()]
    assert "finish" not in in_progress
    assert next(workers.numbers) == begun + 1
    gained = workers.detected - detected
    assert gained <= held
    good = [work for work in firsts.values() if not any(chore.fate for chore in work)]
    assert losses or all(gained >= Counter(work) for work in good)
    loop.close()
    assert workers.living == set()


@dataclass
class Growing(Simulated):
    """A cluster that must grow first: no detector starts."""

    def wait(self, refs: Collection[Ref[object]], timeout_s: float) -> list[Ref[object]]:
        may_end = [ref for ref in refs if self.in_progress[ref.handle][0] != "start"]
        return super().wait(may_end, timeout_s) if may_end else []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=5),
    st.integers(1, 64),
    st.integers(0, 2**32),
)
def test_a_growing_cluster_is_asked_for_all_detectors_at_once(
    shards: list[int], detectors: int, seed: int
) -> None:
    """All that are allowed, but never more than there is work, before the first one is up."""
    night = {f"s{i}": [Chore(f"s{i}", j, 16) for j in range(n)] for i, n in enumerate(shards)}
    workers = Growing(night, random.Random(seed), losses=0)
    loop = loop_on(workers, [], [], detectors=detectors)
    for _ in range(50):
        if not loop.advance():
            break
    # The first one is asked for while the first scene is planned.
    assert len(workers.living) == max(1, min(detectors, sum(shards)))
    loop.close()


class Clock:
    """A clock that only the test moves, in place of `time.monotonic`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@dataclass
class Stuck(Simulated):
    """No task ends until it was asked `looks` times whether it has begun.

    `busy` is the answer: seconds since it began, or None while it waits for a worker.
    """

    clock: Clock | None = None
    looks: int = 0
    busy: float | None = None
    asked: int = 0

    def wait(self, refs: Collection[Ref[object]], timeout_s: float) -> list[Ref[object]]:
        assert self.clock is not None
        if self.asked >= self.looks:
            return super().wait(refs, timeout_s)
        self.clock.now += timeout_s
        return []

    def busy_s(self, ref: Ref[object]) -> float | None:
        self.asked += 1
        return self.busy


def test_waiting_for_a_worker_does_not_count_as_work(clock: Clock) -> None:
    """Twenty looks at a limit of 0.1 s: the task has waited for 2 s, and nobody kills it."""
    night = {"s": [Chore("s", 0, 1)]}
    workers = Stuck(night, random.Random(0), losses=0, clock=clock, looks=20)
    results: list[str] = []
    warnings: list[str] = []
    loop = loop_on(workers, results, warnings, plan_timeout_s=0.1, publish_timeout_s=0.1)
    while loop.advance():
        pass
    assert (results, warnings) == (["done: s"], [])
    assert workers.asked == 20
    assert clock.now >= 1002


def test_a_time_limit_begins_soon_after_the_work(clock: Clock) -> None:
    """The loop looks every 5 s whether a task has begun, and then leaves it its time limit."""
    workers = Stuck({"s": []}, random.Random(0), losses=0, clock=clock, looks=1, busy=0.0)
    results: list[str] = []
    loop = loop_on(workers, results, [], plan_timeout_s=600)
    while loop.advance():
        pass
    loop.close()
    assert results == ["done: s"]
    assert workers.asked == 1
    assert clock.now == pytest.approx(1005)


def test_what_hangs_is_given_up_after_its_attempts(clock: Clock) -> None:
    """A task that began and does not end is killed after its time limit, twice."""
    results: list[str] = []
    warnings: list[str] = []
    workers = Stuck({"s": []}, random.Random(0), losses=0, clock=clock, looks=1000, busy=7.0)
    loop = loop_on(workers, results, warnings, plan_timeout_s=7)
    while loop.advance():
        pass
    loop.close()
    reason = "it took longer than engine.plan_timeout_s"
    assert results == [f"failed: s: given up: a worker was lost 2 times in plan ({reason})"]
    assert warnings == [f"plan of s: worker lost ({reason})"] * 2
    assert workers.asked == 2
    assert workers.in_progress == {}
    progress = loop.progress()
    assert (progress.scenes_planned, progress.scenes_done) == (1, 1)


@dataclass
class Crowded(Simulated):
    """All workers are on one node: a hungry read kills every other call in progress."""

    doomed: set[Hashable] = field(default_factory=set)
    tries: int = 0

    def value(self, ref: Ref[T]) -> T:
        kind, what, detector = self.in_progress[ref.handle]
        if ref.handle in self.doomed:
            del self.in_progress[ref.handle]
            self.living.discard(detector or 0)
            raise LostForMemory("killed with others")
        if kind == "read" and any(chore.fate == "hungry" for chore in what):
            self.tries += 1
            del self.in_progress[ref.handle]
            self.doomed.update(self.in_progress)
            raise LostForMemory("killed")
        return super().value(ref)


@settings(max_examples=100, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(2, 3))
def test_a_shard_that_takes_all_memory_costs_its_own_scene_alone(
    night: dict[str, list[Chore]], seed: int, attempts: int
) -> None:
    night = {s: [Chore(c.source, c.number, c.windows) for c in work] for s, work in night.items()}
    night["hungry"] = [Chore("hungry", 0, 1), Chore("hungry", 1, 1, "hungry")]
    workers = Crowded(night, random.Random(seed), losses=0)
    results: list[str] = []
    loop = loop_on(workers, results, [], attempts=attempts)
    while loop.advance():
        pass
    loop.close()
    failed = f"failed: hungry: given up: a worker was lost {attempts} times in read (killed)"
    good = night.keys() - {"hungry"}
    assert sorted(results) == sorted([failed, *(f"done: {source}" for source in good)])
    assert workers.tries == attempts + 1
    assert workers.living == set()


@pytest.mark.parametrize(("limit_s", "warned"), [(-1, 1), (1000, 0)])
def test_a_cluster_without_room_is_told_once(
    limit_s: float, warned: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scenesweep.pipeline.engine.detectors._LONG_START_S", limit_s)
    night = {"s": [Chore("s", number, 1) for number in range(5)]}
    loop = loop_on(Simulated(night, random.Random(0), losses=0), [], [])
    while loop.advance():
        pass
    assert sum("no detector has started after" in message for message in caplog.messages) == warned
