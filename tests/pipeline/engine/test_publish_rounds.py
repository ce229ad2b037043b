"""The loop publishes a large scene in rounds of pieces, also when workers are lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenesweep.pipeline.engine.steps import Planned
from scenesweep.pipeline.engine.workers import (
    Cluster,
    LostForMemory,
    NodeLost,
    Ref,
    StepRaised,
    WorkerLost,
)
from tests.pipeline.engine.test_loop import Chore, Simulated, loop_on

T = TypeVar("T")
ROUNDS = (("a", "b", "c"), ("d",), (), ("e", "f"))


@dataclass
class InPieces(Simulated):
    """Scenes that are published in pieces; the piece `raises` of a scene has a bug."""

    raises: str = ""
    pieces: Counter[tuple[str, str]] = field(default_factory=Counter)

    def publish_piece(self, state: str, name: str) -> Ref[None]:
        return self._begin("piece", (state, name))

    def _plan(self, source: str, detector: Any) -> Planned[str, str]:
        return replace(super()._plan(source, detector), publish_rounds=ROUNDS)

    def _piece(self, what: tuple[str, str], _: Any) -> None:
        source, name = what
        number = next(i for i, names in enumerate(ROUNDS) if name in names)
        assert all(self.pieces[source, n] for names in ROUNDS[:number] for n in names)
        if f"{source} {name}" == self.raises:
            raise StepRaised(ValueError("a bug"))
        self.pieces[what] += 1

    def _finish(self, source: str, detector: Any) -> str:
        assert all(self.pieces[source, name] == 1 for names in ROUNDS for name in names)
        return super()._finish(source, detector)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.integers(0, 2**32), st.integers(0, 6))
def test_each_piece_is_done_once_in_its_round(shards: int, seed: int, losses: int) -> None:
    chores = {name: [Chore(name, i, 1) for i in range(shards)] for name in ("x", "y", "z")}
    workers = InPieces(chores, random.Random(seed), losses=losses)
    results: list[str] = []
    loop = loop_on(workers, results, [], attempts=20)
    for _ in range(10_000):
        if not loop.advance():
            break
    loop.close()
    assert sorted(results) == ["done: x", "done: y", "done: z"]
    assert workers.finished.count("x") == 1


def test_no_more_pieces_than_workers() -> None:
    class Few(InPieces):
        most = 0

        def cluster(self) -> Cluster:
            return Cluster(readers=5)

        def wait(self, refs: Collection[Ref[object]], timeout_s: float) -> list[Ref[object]]:
            pieces = [kind for kind, _, _ in self.in_progress.values() if kind == "piece"]
            self.most = max(self.most, len(pieces))
            return super().wait(refs, timeout_s)

    most = []
    for seed in range(20):
        chores = {name: [Chore(name, 0, 1)] for name in ("x", "y", "z", "w")}
        workers = Few(chores, random.Random(seed), losses=0)
        results: list[str] = []
        loop = loop_on(workers, results, [])
        while loop.advance():
            pass
        loop.close()
        assert len(results) == 4
        most.append(workers.most)
    assert max(most) == 5


def test_a_piece_that_raises_fails_its_scene_only() -> None:
    chores = {name: [Chore(name, 0, 1)] for name in ("x", "y")}
    for seed in range(20):
        workers = InPieces(chores, random.Random(seed), losses=0, raises="x b")
        results: list[str] = []
        loop = loop_on(workers, results, [])
        while loop.advance():
            pass
        loop.close()
        assert sorted(results) == ["done: y", "failed: x: ValueError: a bug"]
        assert workers.finished == ["y"]


def test_a_stopped_run_ends_its_pieces_and_begins_no_other() -> None:
    for seed in range(20):
        workers = InPieces({"x": [Chore("x", 0, 1)]}, random.Random(seed), losses=0)
        loop = loop_on(workers, [], [])
        while not any(kind == "piece" for kind, _, _ in workers.in_progress.values()):
            assert loop.advance()
        begun = {what for kind, what, _ in workers.in_progress.values() if kind == "piece"}
        begun |= set(workers.pieces)
        while loop.drain():
            pass
        assert set(workers.pieces) == begun
        assert not workers.finished
        loop.close()


@dataclass
class Waiting(InPieces):
    """Only the first piece has a worker."""

    first: object = None

    def busy_s(self, ref: Ref[object]) -> float | None:
        if self.first is None:
            self.first = ref.handle
        return 0.0 if ref.handle == self.first else None


def test_a_stopped_run_does_not_wait_for_pieces_that_no_worker_has_begun() -> None:
    for seed in range(20):
        workers = Waiting({"x": [Chore("x", 0, 1)]}, random.Random(seed), losses=0)
        loop = loop_on(workers, [], [])
        while not any(kind == "piece" for kind, _, _ in workers.in_progress.values()):
            assert loop.advance()
        while loop.drain():
            pass
        assert len(workers.pieces) <= 1
        assert not any(kind == "piece" for kind, _, _ in workers.in_progress.values())
        loop.close()


@dataclass
class Hurt(InPieces):
    """Loses the worker of each call of some kinds once, for one reason."""

    steps: tuple[str, ...] = ()
    why: WorkerLost = field(default_factory=lambda: WorkerLost("crash"))
    once: bool = False
    hurt: set[object] = field(default_factory=set)

    def value(self, ref: Ref[T]) -> T:
        kind, what, detector = self.in_progress[ref.handle]
        event = kind if self.once else (kind, what)
        if kind in self.steps and event not in self.hurt:
            self.hurt.add(event)
            del self.in_progress[ref.handle]
            self.living.discard(detector or 0)
            raise self.why
        return super().value(ref)


def results_of(workers: Simulated) -> list[str]:
    results: list[str] = []
    loop = loop_on(workers, results, [])
    for _ in range(3_000):
        if not loop.advance():
            break
    loop.close()
    return results


@pytest.mark.parametrize("shards", [0, 1, 4])
@pytest.mark.parametrize("step", ["plan", "read", "piece", "finish"])
def test_a_scene_that_was_killed_for_memory_is_published(step: str, shards: int) -> None:
    for seed in range(20):
        chores = {"x": [Chore("x", i, 1) for i in range(shards)]}
        workers = Hurt(chores, random.Random(seed), losses=0, steps=(step,), once=True)
        workers.why = LostForMemory("killed by Ray")
        assert results_of(workers) == ["done: x"]


@pytest.mark.parametrize(
    "why", [WorkerLost("crash"), LostForMemory("memory"), NodeLost("its node is gone", "n1")]
)
def test_each_piece_has_its_own_losses(why: WorkerLost) -> None:
    """Many pieces run at once: one event must not cost the scene all its attempts."""
    for seed in range(20):
        chores = {"x": [Chore("x", i, 1) for i in range(2)]}
        workers = Hurt(chores, random.Random(seed), losses=0, steps=("piece",), why=why)
        assert results_of(workers) == ["done: x"]
