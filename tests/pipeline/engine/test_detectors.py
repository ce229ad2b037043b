"""One bad node costs its share: it is avoided, and the run goes on with the others."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from scenesweep.pipeline.engine.detectors import Detectors
from scenesweep.pipeline.engine.workers import Cluster, Ref
from scenesweep.pipeline.errors import ModelError, ScenesweepError

A, B = frozenset({"a"}), frozenset({"b"})


class Nodes:
    """Starts each detector on the first node that is not avoided."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.avoided: list[set[str]] = []
        self.gone: set[str] = set()

    def start_detector(self, *, avoid: Collection[str] = ()) -> tuple[object, Ref[None]]:
        self.avoided.append(set(avoid))
        self.started.append(min({"a", "b"} - set(avoid)))
        return len(self.started) - 1, Ref(len(self.started))

    def node_of(self, detector: Any) -> str:
        return self.started[detector]

    def stop_detector(self, detector: object) -> None:
        pass

    def is_gone(self, node: str) -> bool:
        return node in self.gone


def detectors(nodes: Nodes, limit: int = 2) -> Detectors[Any, Any]:
    workers: Any = nodes
    found: Detectors[Any, Any] = Detectors(workers, limit)
    found.now_in(Cluster(nodes=A | B))
    return found


def test_a_node_on_which_a_start_raises_is_avoided() -> None:
    nodes = Nodes()
    those = detectors(nodes)
    first, _ = those.start_missing(2)
    those.start_raised(first.detector, RuntimeError("no CUDA"))
    those.start_missing(2)
    assert nodes.avoided == [set(), set(), {"a"}]


def test_a_run_ends_when_a_start_raised_on_all_nodes() -> None:
    those = detectors(Nodes(), limit=1)
    (first,) = those.start_missing(2)
    those.start_raised(first.detector, RuntimeError("no CUDA"))
    (second,) = those.start_missing(2)
    with pytest.raises(RuntimeError, match="no CUDA"):
        those.start_raised(second.detector, RuntimeError("no CUDA"))


def test_a_bad_model_ends_the_run_at_once() -> None:
    those = detectors(Nodes())
    first, _ = those.start_missing(2)
    with pytest.raises(ModelError):
        those.start_raised(first.detector, ModelError("no such model"))


def test_a_node_that_loses_three_detectors_in_a_row_is_avoided() -> None:
    nodes = Nodes()
    those = detectors(nodes, limit=1)
    for _ in range(3):
        (call,) = those.start_missing(1)
        those.has_started(call.detector)
        avoided = those.lost(call.detector)
    those.start_missing(1)
    assert nodes.started == ["a", "a", "a", "b"]
    assert avoided == "a"


def test_a_node_that_works_in_between_is_not_avoided() -> None:
    nodes = Nodes()
    those = detectors(nodes, limit=1)
    for _ in range(5):
        (call,) = those.start_missing(1)
        those.has_started(call.detector)
        those.has_detected(call.detector)
        those.lost(call.detector)
    assert set(nodes.started) == {"a"}


def test_a_node_with_a_sick_gpu_is_avoided_although_its_other_gpus_work() -> None:
    """Each detector that replaces the lost one gets the same GPU, because it is the free one."""
    nodes = Nodes()
    those = detectors(nodes, limit=2)
    well, sick = those.start_missing(2)
    those.has_started(well.detector)
    for _ in range(3):
        those.has_started(sick.detector)
        those.lost(sick.detector)
        those.has_detected(well.detector)
        (sick,) = those.start_missing(2)
    assert nodes.started == ["a", "a", "a", "a", "b"]


def test_a_detector_of_a_node_that_is_gone_gets_no_work_until_the_node_is_back() -> None:
    nodes = Nodes()
    those = detectors(nodes, limit=1)
    (call,) = those.start_missing(1)
    those.has_started(call.detector)
    running: Ref[Any] = Ref("running")
    call.detector.queued.append(running)
    assert not those.leave_if_gone("a")
    nodes.gone = {"a"}
    assert those.leave_if_gone("a")
    assert (those.up, those.least_busy(2)) == (0, None)
    those.start_missing(1)
    nodes.gone = set()
    those.now_in(Cluster(nodes=A | B))
    those.limit = 2
    those.start_missing(2)
    assert nodes.started == ["a", "b", "a"]


def test_work_that_cost_a_detector_goes_to_another_node_if_there_is_one() -> None:
    those = detectors(Nodes())
    first, second = those.start_missing(2)
    those.has_started(first.detector)
    assert those.least_busy(2, avoid=A) is first.detector
    those.has_started(second.detector)
    second.detector.node = "b"
    those.on_nodes.clear()
    those.on_nodes.update({"a": 1, "b": 1})
    assert those.least_busy(2, node="a", avoid=A) is second.detector
    assert those.on_nodes_but(A) == {"b": 1}
    assert those.on_nodes_but(A | B) == {"a": 1, "b": 1}
    works: Ref[Any] = Ref("works")
    second.detector.queued += [works, works]
    assert those.least_busy(2, node="a", avoid=A) is None


@pytest.mark.parametrize(("grows", "limit"), [(True, 3), (False, 2)])
def test_the_number_of_detectors_grows_with_the_cluster(grows: bool, limit: int) -> None:
    """It does not shrink, because a lost node is usually replaced."""
    workers: Any = Nodes()
    those: Detectors[Any, Any] = Detectors(workers, 2, grows=grows)
    for room in (2, 3, 1, 3, 2):
        those.now_in(Cluster(detectors=room, nodes=A | B))
    assert those.limit == limit


def test_the_others_go_on_if_a_place_never_starts_a_detector() -> None:
    those = detectors(Nodes(), limit=2)
    good, bad = those.start_missing(2)
    those.has_started(good.detector)
    for _ in range(4):
        those.start_failed(bad.detector, "died")
        (bad,) = those.start_missing(2)
    those.start_failed(bad.detector, "died")
    assert those.start_missing(2) == []
    assert (those.limit, those.up) == (1, 1)


def test_a_run_without_any_detector_ends_after_five_failures() -> None:
    those = detectors(Nodes(), limit=1)
    for _ in range(4):
        (call,) = those.start_missing(1)
        those.start_failed(call.detector, "died")
    (call,) = those.start_missing(1)
    with pytest.raises(ScenesweepError, match="no detector starts; the last one died: died"):
        those.start_failed(call.detector, "died")


def test_a_node_that_was_told_to_go_ends_its_work_and_is_replaced() -> None:
    nodes = Nodes()
    those = detectors(nodes, limit=1)
    (call,) = those.start_missing(1)
    those.has_started(call.detector)
    running: Ref[Any] = Ref("running")
    call.detector.queued.append(running)
    those.now_in(Cluster(nodes=A | B, leaving=A))
    assert those.least_busy(2) is None
    assert those.has(call.detector)
    assert len(those.start_missing(1)) == 1
    assert nodes.started == ["a", "b"]
    call.detector.queued.clear()
    those.now_in(Cluster(nodes=A | B, leaving=A))
    assert not those.has(call.detector)


def test_a_detector_waits_for_pixels_of_its_own_node_while_it_has_work() -> None:
    those = detectors(Nodes())
    first, second = those.start_missing(2)
    for call, node in ((first, "a"), (second, "b")):
        those.has_started(call.detector)
        call.detector.node = node
    those.on_nodes.clear()
    those.on_nodes.update({"a": 1, "b": 1})
    works: Ref[Any] = Ref("works")
    first.detector.queued += [works, works]
    second.detector.queued.append(works)
    assert those.least_busy(2, node="b") is second.detector
    assert those.least_busy(2, node="a") is None
    assert those.least_busy(2, node="gone") is second.detector
    second.detector.queued.clear()
    assert those.least_busy(2, node="a") is second.detector
