"""Nodes that die with the work on them: the work is tried again, and is rarely to blame."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scenesweep.pipeline.engine.tasks import node_in
from scenesweep.pipeline.engine.workers import NodeLost, Ref, T, WorkerLost
from tests.pipeline.engine.test_loop import Chore, Simulated, loop_on, nights

NODES = 5  # lost with the same work: then it is given up


@dataclass
class Dying(Simulated):
    """Some calls lose their node: the system says so, or only an attempt to reach the node."""

    nodes_lost: int = 0
    told: bool = True
    gone: bool = False

    def value(self, ref: Ref[T]) -> T:
        self.gone = False
        kind, what, detector = self.in_progress[ref.handle]
        kills = kind == "detect" and any(chore.fate == "kills node" for chore in what)
        if kills or (self.nodes_lost and self.chance.random() < 0.3):
            self.nodes_lost -= not kills
            del self.in_progress[ref.handle]
            self.living.discard(detector or 0)
            self.gone = True
            if self.told or detector is None:
                raise NodeLost("its node died", f"node of {detector}")
            raise WorkerLost("its node died")
        return super().value(ref)

    def node_of(self, detector: Any) -> str:
        return f"node of {detector}"

    def is_gone(self, node: str) -> bool:
        return self.gone


def _run(workers: Simulated) -> tuple[list[str], list[str]]:
    results: list[str] = []
    warnings: list[str] = []
    loop = loop_on(workers, results, warnings, attempts=1)
    while loop.advance():
        pass
    loop.close()
    assert workers.in_progress == {}
    assert workers.living == set()
    return results, warnings


@settings(max_examples=60, deadline=None)
@given(nights(), st.integers(0, 2**32), st.integers(1, NODES - 1), st.booleans())
def test_lost_nodes_cost_no_attempt(
    night: dict[str, list[Chore]], seed: int, lost: int, told: bool
) -> None:
    night = {s: [Chore(c.source, c.number, c.windows) for c in work] for s, work in night.items()}
    workers = Dying(night, random.Random(seed), losses=0, nodes_lost=lost, told=told)
    results, warnings = _run(workers)
    assert sorted(results) == sorted(f"done: {source}" for source in night)
    assert len(warnings) == lost - workers.nodes_lost
    assert all("node lost (its node died)" in warning for warning in warnings)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_work_that_kills_each_node_is_given_up(seed: int, told: bool) -> None:
    good = [Chore("good", number, 1) for number in range(40)]  # some of them in the same batch
    night = {"bad": [Chore("bad", 0, 1, "kills node")], "good": good}
    results, warnings = _run(Dying(night, random.Random(seed), losses=0, told=told))
    reason = "given up: too many nodes were lost in detect (its node died)"
    assert sorted(results) == ["done: good", f"failed: bad: {reason}"]
    assert len(warnings) == NODES


def test_the_id_of_a_node_is_found_in_the_words_of_ray() -> None:
    words = "Node IP: 10.0.0.3, node ID: 3c1f2b4a5d6e7f80112233445566, . This can happen if the"
    assert node_in(words) == "3c1f2b4a5d6e7f80112233445566"
    assert node_in("The actor died.") is None
