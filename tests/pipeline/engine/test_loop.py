"""The bounded loop under simulated workers: any order of events, any losses, no clock."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenesweep.pipeline.engine.loop import Hear, Loop
from scenesweep.pipeline.engine.steps import Planned, Work
from scenesweep.pipeline.engine.workers import LostForMemory, PixelsLost, StepRaised, WorkerLost
from scenesweep.pipeline.settings import EngineSettings


@dataclass(frozen=True)
class Chore:
    source: str
    number: int
    windows: int
    fate: str = ""
    pixels: int = 0


@dataclass
class Simulated:
    """Workers whose calls end in any order: with their value, in an error, or in a loss."""

    chores: Mapping[str, Sequence[Chore]]
    chance: random.Random
    losses: int
    lost_pixels: int = 0
    hired: int = 0
    risk: float = 0.1
    under_way: dict[int, tuple[str, Any, Any]] = field(default_factory=dict)
    living: set[int] = field(default_factory=set)
    detected: Counter[Chore] = field(default_factory=Counter)
    finished: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: count(1))

    def _begin(self, kind: str, what: Any, detector: int | None = None) -> int:
        number = next(self.numbers)
        self.under_way[number] = (kind, what, detector)
        return number

    def plan(self, source: str) -> int:
        return self._begin("plan", source)

    def read(self, work: Sequence[Work]) -> tuple[int, str]:
        return self._begin("read", work), "pixels"

    def hire(self) -> tuple[int, int]:
        detector = next(self.numbers)
        self.living.add(detector)
        self.hired += 1
        return detector, self._begin("start", None, detector)

    def detect(self, detector: int, work: Sequence[Work], pixels: Any) -> int:
        assert pixels == "pixels"
        return self._begin("detect", work, detector)

    def finish(self, state: Any, seconds: Mapping[str, float]) -> int:
        return self._begin("finish", state)

    def wait(self, refs: Sequence[int], timeout_s: float) -> list[int]:
        """End some calls; of a detector's, the one that it was given first."""
        firsts: dict[int, int] = {}
        for ref in refs:
            kind, _, detector = self.under_way[ref]
            if kind == "detect" and detector is not None:
                firsts.setdefault(detector, ref)
        may_end = [r for r in refs if self.under_way[r][0] != "detect" or r in firsts.values()]
        return self.chance.sample(may_end, self.chance.randint(1, min(3, len(may_end))))

    def busy_s(self, ref: int) -> float | None:
        return 0.0

    def value(self, ref: int) -> Any:
        kind, what, detector = self.under_way.pop(ref)
        if detector is not None and detector not in self.living:
            raise WorkerLost("the detector is gone")
        if self.losses and self.chance.random() < self.risk:
            self.losses -= 1
            self._lose(detector)
        if kind == "detect" and self.lost_pixels and self.chance.random() < 0.5:
            self.lost_pixels -= 1
            raise PixelsLost("the node is gone")
        return getattr(self, f"_{kind}")(what, detector)

    def cancel(self, ref: int) -> None:
        del self.under_way[ref]

    def dismiss(self, detector: int) -> None:
        self.living.discard(detector)
        for ref in [r for r, (_, _, whose) in self.under_way.items() if whose == detector]:
            del self.under_way[ref]

    def _lose(self, detector: int | None) -> None:
        self.living.discard(detector or 0)
        raise WorkerLost("killed")

    def _plan(self, source: str, _: Any) -> Planned[str, str]:
        work = self.chores[source]
        return Planned(source, work, sum(chore.windows for chore in work))

    def _read(self, work: Sequence[Chore], _: Any) -> tuple[dict[int, str], float]:
        if any(chore.fate == "kills" for chore in work):
            raise WorkerLost("killed by a chore")
        return {i: "unreadable" for i, c in enumerate(work) if c.fate == "unreadable"}, 0.1

    def _start(self, *_: Any) -> None:
        return None

    def _detect(self, work: Sequence[Chore], detector: int) -> float:
        if any(chore.fate == "kills detector" for chore in work):
            self._lose(detector)
        if any(chore.fate == "raises" for chore in work):
            raise StepRaised(ValueError("a bug"))
        self.detected.update(work)
        return 0.1

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
    hear = Hear(
        results.append, warnings.append, lambda source, reason, bug: f"failed: {source}: {reason}"
    )
    settings = EngineSettings(**engine)
    sources = iter(workers.chores)
    return Loop(sources, workers, settings, detectors, hear, expect_work=expect_work)


@settings(max_examples=60, deadline=None)
@given(nights(), st.integers(0, 2**32), st.booleans())
def test_each_scene_ends_once_and_only_bad_ones_fail(
    night: dict[str, list[Chore]], seed: int, expect_work: bool
) -> None:
    """In company with a shard that kills, raises or cannot be read, the others are done."""
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
    assert workers.under_way == {}
    assert workers.living == set()


@dataclass
class UpToDate(Simulated):
    """Scenes with nothing to do; `most` is how many were planned at once."""

    most: int = 0

    def wait(self, refs: Sequence[int], timeout_s: float) -> list[int]:
        self.most = max(self.most, len(refs))
        return super().wait(refs, timeout_s)

    def _plan(self, source: str, _: Any) -> Planned[str, str]:
        return Planned(None, result=f"up to date: {source}")


@pytest.mark.parametrize(("doubled_s", "most"), [(1000.0, 1), (1e-9, 6)])
def test_where_nothing_is_to_do_no_detector_starts_and_few_planners(
    doubled_s: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scene is looked at after the other, and more at once only if that takes long."""
    monkeypatch.setattr("scenesweep.pipeline.engine.loop._DOUBLED_S", doubled_s)
    sources: dict[str, list[Chore]] = {f"s{number}": [] for number in range(40)}
    workers = UpToDate(sources, random.Random(0), losses=0)
    results: list[str] = []
    loop = loop_on(workers, results, [], expect_work=False)
    while loop.advance():
        pass
    assert sorted(results) == sorted(f"up to date: {source}" for source in sources)
    assert workers.hired == 0
    assert workers.most == most


@settings(max_examples=60, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(1, 8))
def test_criterion_are_told_and_cost_no_scene(
    night: dict[str, list[Chore]], seed: int, losses: int
) -> None:
    """Workers that die for reasons of their own, while more attempts are allowed than they die."""
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


@settings(max_examples=60, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(1, 200))
def test_lost_pixels_are_read_again_and_blame_nobody(
    night: dict[str, list[Chore]], seed: int, lost: int
) -> None:
    """However many: no scene fails for it, no attempt is charged, and every detector stays."""
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
    assert workers.hired <= 3
    said = "pixels lost with their node (the node is gone); read again"
    assert len(warnings) == lost - workers.lost_pixels
    assert all(warning.endswith(said) for warning in warnings)
    assert workers.under_way == {}


@settings(max_examples=200, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 2))
def test_after_a_request_to_stop_nothing_is_begun(
    night: dict[str, list[Chore]], seed: int, rounds: int, losses: int
) -> None:
    """What detectors hold may end, and the first shard of each does; no call is made."""
    workers = Simulated(night, random.Random(seed), losses=0)
    loop = loop_on(workers, [], [])
    for _ in range(rounds):
        if not loop.advance():
            break
    begun = next(workers.numbers)
    held: Counter[Chore] = Counter()
    firsts: dict[int, Sequence[Chore]] = {}
    for kind, work, detector in workers.under_way.values():
        if kind == "detect" and detector is not None:
            held.update(work)
            firsts.setdefault(detector, work)
    detected = workers.detected.copy()
    workers.losses, workers.risk = losses, 0.5
    for _ in range(1000):
        if not loop.drain():
            break
    under_way = [kind for kind, _, _ in workers.under_way.values()]
    assert "finish" not in under_way
    assert next(workers.numbers) == begun + 1
    gained = workers.detected - detected
    assert gained <= held
    good = [work for work in firsts.values() if not any(chore.fate for chore in work)]
    assert losses or all(gained >= Counter(work) for work in good)
    loop.close()
    assert workers.living == set()


@dataclass
class Growing(Simulated):
    """A cluster that has yet to grow: no detector comes up."""

    def wait(self, refs: Sequence[int], timeout_s: float) -> list[int]:
        may_end = [ref for ref in refs if self.under_way[ref][0] != "start"]
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
    """As many as may be, but never more than there is work, before the first is up."""
    night = {f"s{i}": [Chore(f"s{i}", j, 16) for j in range(n)] for i, n in enumerate(shards)}
    workers = Growing(night, random.Random(seed), losses=0)
    loop = loop_on(workers, [], [], detectors=detectors)
    for _ in range(50):
        if not loop.advance():
            break
    # The first one is asked for while the first scene is planned.
    assert len(workers.living) == max(1, min(detectors, sum(shards)))
    loop.close()


@dataclass
class Queueing(Simulated):
    """Tasks that wait for a worker until they were asked `looks` times whether they have begun."""

    looks: int = 0

    def wait(self, refs: Sequence[int], timeout_s: float) -> list[int]:
        if self.looks <= 0:
            return super().wait(refs, timeout_s)
        time.sleep(timeout_s)
        return []

    def busy_s(self, ref: int) -> float | None:
        self.looks -= 1
        return None


def test_waiting_for_a_worker_does_not_count_as_work() -> None:
    night = {"s": [Chore("s", 0, 1)]}
    workers = Queueing(night, random.Random(0), losses=0, looks=20)
    results: list[str] = []
    warnings: list[str] = []
    loop = loop_on(workers, results, warnings, read_timeout_s=0.005, publish_timeout_s=0.005)
    while loop.advance():
        pass
    assert (results, warnings) == (["done: s"], [])


@dataclass
class Watched(Simulated):
    """Tasks that end only when they were asked whether they have begun."""

    asked: int = 0

    def wait(self, refs: Sequence[int], timeout_s: float) -> list[int]:
        if self.asked:
            return super().wait(refs, timeout_s)
        time.sleep(min(timeout_s, 0.01))
        return []

    def busy_s(self, ref: int) -> float | None:
        self.asked += 1
        return 0.0


def test_a_time_limit_begins_soon_after_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver hears late that a task has begun, or not at all, unless it asks before the end."""
    monkeypatch.setattr("scenesweep.pipeline.engine.loop._QUEUED_S", 0.01)
    workers = Watched({"s": []}, random.Random(0), losses=0)
    results: list[str] = []
    loop = loop_on(workers, results, [], read_timeout_s=600)
    for _ in range(500):
        if not loop.advance():
            break
    loop.close()
    assert results == ["done: s"]
    assert workers.asked == 1


@dataclass
class Hanging(Simulated):
    """Tasks that began long ago and do not end."""

    def wait(self, refs: Sequence[int], timeout_s: float) -> list[int]:
        time.sleep(timeout_s)
        return []

    def busy_s(self, ref: int) -> float | None:
        return 1.0


def test_what_hangs_is_given_up_after_its_attempts() -> None:
    results: list[str] = []
    warnings: list[str] = []
    workers = Hanging({"s": []}, random.Random(0), losses=0)
    loop = loop_on(workers, results, warnings, read_timeout_s=0.005)
    while loop.advance():
        pass
    loop.close()
    said = "it took longer than its time limit"
    assert results == [f"failed: s: given up: a worker was lost 2 times in plan ({said})"]
    assert warnings == [f"plan of s: worker lost ({said})"] * 2
    assert workers.under_way == {}


@dataclass
class Crowded(Simulated):
    """All on one node: a hungry read takes with it whatever else is under way."""

    doomed: set[int] = field(default_factory=set)
    tries: int = 0

    def value(self, ref: int) -> Any:
        kind, what, detector = self.under_way[ref]
        if ref in self.doomed:
            del self.under_way[ref]
            self.living.discard(detector or 0)
            raise LostForMemory("killed with others")
        if kind == "read" and any(chore.fate == "hungry" for chore in what):
            self.tries += 1
            del self.under_way[ref]
            self.doomed.update(self.under_way)
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
    said = f"failed: hungry: given up: a worker was lost {attempts} times in read (killed)"
    good = night.keys() - {"hungry"}
    assert sorted(results) == sorted([said, *(f"done: {source}" for source in good)])
    assert workers.tries == attempts + 1
    assert workers.living == set()


@pytest.mark.parametrize(("limit_s", "said"), [(-1, 1), (1000, 0)])
def test_a_cluster_without_room_is_told_once(
    limit_s: float, said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scenesweep.pipeline.engine.loop._LONG_START_S", limit_s)
    night = {"s": [Chore("s", number, 1) for number in range(5)]}
    loop = loop_on(Simulated(night, random.Random(0), losses=0), [], [])
    while loop.advance():
        pass
    assert sum("no detector has come up yet" in message for message in caplog.messages) == said
