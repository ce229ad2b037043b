"""The detectors of a run: how many to start and where, which one is free, when to give up on them.

A node on which detectors fail is avoided: no other starts there as long as another node is left.
So one bad node or GPU costs its share only. Nodes that were told to go finish what they have.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Generic

from scenesweep.pipeline.engine.calls import DetectorSlot, StartCall
from scenesweep.pipeline.engine.steps import R, S
from scenesweep.pipeline.engine.workers import Cluster, Workers
from scenesweep.pipeline.errors import ScenesweepError

log = logging.getLogger(__name__)

_FAILED_STARTS = 5  # generations in a row that died before they were up: then no more is started
FAILED_ON_NODE = 3  # detectors in a row that a node lost: then it is avoided
_LONG_START_S = 120.0  # without any detector, after which a warning says so


class Detectors(Generic[S, R]):
    """The detectors that are up or starting, at most `limit` of them.

    If it `grows`, the limit grows with the cluster.
    """

    def __init__(self, workers: Workers[S, R], limit: int, *, grows: bool = False) -> None:
        self.limit = limit
        self._grows, self._room = grows, 0
        self._workers = workers
        self._slots: list[DetectorSlot] = []
        self._unfit: list[DetectorSlot] = []
        self._reasons: set[str] = set()
        self._cluster = Cluster()
        self._failed_on: Counter[str] = Counter()
        self._newest_before: dict[str, int] = {}  # the newest detector when a node failed last
        self._avoided: set[str] = set()
        self._gone: set[str] = set()
        self._started = self._newest_failed = self._failed_starts = 0
        self._began, self._none_yet = time.monotonic(), True
        self.on_nodes: Counter[str | None] = Counter()
        """Number of detectors that are up on each node, without those that leave."""

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def up(self) -> int:
        """Number of detectors that are up and stay."""
        return self.on_nodes.total()

    @property
    def queued(self) -> int:
        """Number of calls at all detectors."""
        return sum(len(slot.queued) for slot in self._slots)

    def first_calls(self) -> set[object]:
        """Return the references of the calls that detectors are running."""
        return {slot.queued[0] for slot in self._slots if slot.queued}

    def idle(self) -> list[DetectorSlot]:
        """Return the detectors without a call."""
        return [slot for slot in self._slots if not slot.queued]

    def on_nodes_but(self, avoid: Collection[str]) -> Mapping[str | None, int]:
        """Return `on_nodes` without nodes to avoid, unless no other node has a detector."""
        if not avoid:
            return self.on_nodes
        others = {node: up for node, up in self.on_nodes.items() if node not in avoid}
        return others or self.on_nodes

    def least_busy(
        self,
        most: int,
        *,
        node: str | None = None,
        alone: bool = False,
        avoid: Collection[str] = (),
    ) -> DetectorSlot | None:
        """Return the detector to give the next call to; None while all have enough.

        Its pixels lie on `node`. Detectors there take it while they have fewer than `most` calls,
        others only if they have none: they wait for the pixels of their own node. A call that is
        to be `alone` needs a detector without another call. Nodes to avoid are taken only if no
        other node has a detector.
        """
        most = 1 if alone else most
        if avoid and self.on_nodes.keys() <= set(avoid):
            avoid = ()
        is_anywhere = node is None or node not in self.on_nodes
        best, least = None, most
        for slot in self._slots:
            calls = len(slot.queued)
            may_take = slot.up and not (slot.alone or slot.leaving or slot.node in avoid)
            if calls < least and may_take:
                is_near = is_anywhere or slot.node == node
                if is_near or (not calls and best is None):
                    best, least = slot, calls if is_near else least
                if is_near and not calls:
                    break
        return best

    def start_missing(self, waiting: int) -> list[StartCall]:
        """Start detectors for so many `waiting` calls, up to the limit.

        All start at once, not one by one as reads end: an autoscaler starts the nodes that it is
        asked for together at the same time.
        """
        staying = sum(not slot.leaving for slot in self._slots)
        if staying >= self.limit:
            return []
        busy = sum(bool(slot.queued) and not slot.leaving for slot in self._slots)
        missing = min(self.limit, busy + waiting) - staying
        return [self._start() for _ in range(missing)]

    def _start(self) -> StartCall:
        handle, ref = self._workers.start_detector(avoid=self._to_avoid())
        self._started += 1
        slot = DetectorSlot(handle, self._started)
        self._slots.append(slot)
        return StartCall(ref, slot)

    def _to_avoid(self) -> Collection[str]:
        avoided = self._avoided | self._cluster.leaving | self._gone
        return avoided if self._cluster.nodes - avoided else ()

    def has_started(self, slot: DetectorSlot) -> None:
        """Note that a detector is up."""
        slot.up, self._none_yet = True, False
        slot.node = self._workers.node_of(slot.handle)
        self._failed_starts = 0
        if not slot.leaving:
            self.on_nodes[slot.node] += 1

    def has_detected(self, slot: DetectorSlot) -> None:
        """Note that a detector did its work: its node is well.

        On a node with several GPUs, this says nothing about the GPU of a detector that was lost.
        So only a detector that was started since counts.
        """
        node = slot.node
        if node in self._failed_on and slot.number > self._newest_before.get(node or "", 0):
            del self._failed_on[node]

    def start_failed(self, slot: DetectorSlot, reason: str) -> str | None:
        """Note that a detector died before it was up, and stop it.

        Detectors that were started together and die together count as one failure. If that
        happens too often in a row, the run goes on with the detectors that are up. Return what
        `lost` returns.

        Raises:
            ScenesweepError: if there is none.
        """
        avoided = self._failed(self._workers.node_of(slot.handle))
        self.stop(slot)
        if slot.number > self._newest_failed:
            self._failed_starts += 1
            self._newest_failed = self._started
        if self._failed_starts < _FAILED_STARTS:
            return avoided
        if not self.up:
            raise ScenesweepError(f"no detector starts; the last one died: {reason}")
        self.limit = max(1, len(self._slots))
        return avoided

    def start_raised(self, slot: DetectorSlot, error: BaseException) -> None:
        """Note that the start of a detector raised an error: its node is avoided from now on.

        Raises:
            BaseException: the error, if no other detector and no other node is left, or if it is
                an error of the model or the settings, which are the same on each node.
        """
        node = self._workers.node_of(slot.handle)
        self.stop(slot)
        if isinstance(error, ScenesweepError) or node is None:
            raise error
        self._avoided.add(node)
        if self._cluster.nodes - self._avoided:
            return
        if not self._slots:
            raise error
        self.limit = len(self._slots)

    def lost(self, slot: DetectorSlot) -> str | None:
        """Stop a detector that died at its work. Avoid its node if that happens often in a row.

        Return the node if it is avoided from now on.
        """
        avoided = self._failed(slot.node)
        self.stop(slot)
        return avoided

    def _failed(self, node: str | None) -> str | None:
        if node is None or node in self._avoided:
            return None
        self._failed_on[node] += 1
        self._newest_before[node] = self._started
        if self._failed_on[node] < FAILED_ON_NODE:
            return None
        self._avoided.add(node)
        return node

    def machine_unfit(self, slot: DetectorSlot, reason: str) -> bool:
        """Note that a detector cannot start on its machine, and go on with one less.

        It keeps what it has reserved until the run ends, so that no other starts in its place.
        Return whether this reason is new: each GPU of a machine gives the same one.

        Raises:
            ScenesweepError: if no machine is left.
        """
        self._slots.remove(slot)
        self._unfit.append(slot)
        self.limit -= 1
        if not self.limit:
            raise ScenesweepError(f"no machine can run a detector: {reason}")
        is_new = reason not in self._reasons
        self._reasons.add(reason)
        return is_new

    def now_in(self, cluster: Cluster) -> None:
        """Take note of the cluster: detectors on nodes that leave get no more work."""
        self._cluster = cluster
        self._grow(cluster.detectors)
        self._gone = {node for node in self._gone if self._workers.is_gone(node)}
        for slot in self._slots:
            if slot.node in cluster.leaving:
                self._leave(slot)
        for slot in self.idle():
            if slot.leaving:
                self.stop(slot)

    def _grow(self, room: int) -> None:
        """Raise the limit by what the cluster has more room for than ever before."""
        if self._grows and self._room:
            self.limit += max(0, room - self._room)
        self._room = max(self._room, room)

    def node_of(self, slot: DetectorSlot) -> str | None:
        """Return the node of a detector, which may not be up yet; None if it is not known."""
        return slot.node or self._workers.node_of(slot.handle)

    def leave_if_gone(self, node: str | None) -> bool:
        """Say whether a node is gone. If so, its detectors get no more work.

        It may come back: then it is used again as soon as the cluster is looked at.
        """
        if node is None or not self._workers.is_gone(node):
            return False
        self._gone.add(node)
        for slot in self._slots:
            if slot.node == node:
                self._leave(slot)
        return True

    def _leave(self, slot: DetectorSlot) -> None:
        if not slot.leaving:
            slot.leaving = True
            if slot.up:
                self._uncount(slot)

    def _uncount(self, slot: DetectorSlot) -> None:
        self.on_nodes[slot.node] -= 1
        if not self.on_nodes[slot.node]:
            del self.on_nodes[slot.node]

    def has(self, slot: DetectorSlot) -> bool:
        """Say whether a detector was not stopped yet."""
        return slot in self._slots

    def stop(self, slot: DetectorSlot) -> None:
        """Kill a detector, unless that was done before."""
        if slot in self._slots:
            self._slots.remove(slot)
            if slot.up and not slot.leaving:
                self._uncount(slot)
            self._workers.stop_detector(slot.handle)

    def stop_idle(self) -> None:
        """Stop the detectors that are up and have no call."""
        for slot in self.idle():
            if slot.up:
                self.stop(slot)

    def stop_all(self) -> None:
        for slot in list(self._slots):
            self.stop(slot)
        for slot in self._unfit:
            self._workers.stop_detector(slot.handle)
        self._unfit.clear()

    def warn_if_none(self) -> None:
        """Log a warning, once, if the first detector takes long to start."""
        waited = time.monotonic() - self._began
        if self._none_yet and self._slots and waited > _LONG_START_S:
            log.warning(
                "no detector has started after %.0f s: check that the cluster has room for one, "
                "or can grow",
                waited,
            )
            self._none_yet = False
