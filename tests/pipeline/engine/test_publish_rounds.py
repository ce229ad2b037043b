"""The loop publishes a large scene in rounds of pieces, also when workers are lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scenesweep.pipeline.engine.steps import Planned
from scenesweep.pipeline.engine.workers import Cluster, Ref, StepRaised
from tests.pipeline.engine.test_loop import Chore, Simulated, loop_on

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
