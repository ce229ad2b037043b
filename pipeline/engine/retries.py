"""What to do when a call fails: retry its work, retry it alone, or give its scene up."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Generic

from scenesweep.pipeline.engine.calls import (
    Call,
    Calls,
    DetectCall,
    FinishCall,
    Piece,
    PieceCall,
    PlanCall,
    ReadCall,
    SceneInProgress,
    StartCall,
    described,
    pieces_of,
    scenes_of,
)
from scenesweep.pipeline.engine.detectors import FAILED_ON_NODE, Detectors
from scenesweep.pipeline.engine.queue import WorkQueue
from scenesweep.pipeline.engine.steps import R, S, one_line, reason_of
from scenesweep.pipeline.engine.tally import Tally
from scenesweep.pipeline.engine.workers import LostForMemory, NodeLost, WorkerLost
from scenesweep.pipeline.settings import EngineSettings

log = logging.getLogger(__name__)

_NODES = 5  # that died with the same work: then the work may be the cause
_NODE_LOSSES = 20  # of the same work, however few nodes they were


@dataclass(frozen=True, slots=True)
class Losses(Generic[S, R]):
    """Decides about failed calls. It starts nothing: the loop starts what is in the queue."""

    settings: EngineSettings
    calls: Calls[S, R]
    queue: WorkQueue[S]
    detectors: Detectors[S, R]
    tally: Tally[S, R]

    def raised(self, call: Call[S, R], error: BaseException) -> None:
        """Handle an error that a step raised: a retry would raise it again.

        If several pieces were in the batch, each is tried alone, because only one of them need be
        the cause. Otherwise the scene fails.

        Raises:
            BaseException: the error, if it came from the start of a detector and none is left.
            OutputError: if the output cannot be written: this ends the run.
        """
        if isinstance(call, StartCall):
            self.detectors.start_raised(call.detector, error)
            self.tally.listener.warning(f"a detector did not start: {one_line(error)}")
            return
        if isinstance(call, DetectCall):
            self.calls.remove_detect(call, self.settings.detect_timeout_s)
        reason, bug = reason_of(error)
        if len(pieces_of(call)) > 1:
            self._retry_alone(pieces_of(call))
            return
        if bug and not all(scene.ended for scene in scenes_of(call)):
            log.error("unexpected error in %s", call.step, exc_info=error)
        for scene in scenes_of(call):
            self.tally.give_up(scene, reason, bug=bug)

    def pixels_lost(self, call: Call[S, R], reason: str) -> None:
        """Read pixels again whose node died, and blame nobody.

        The detector is well and stays. This does not count as an attempt: on nodes that may be
        taken away at any time, a run loses pixels often.
        """
        if not isinstance(call, DetectCall):
            self.worker_lost(call, NodeLost(reason))  # it had ended there
            return
        self.tally.listener.warning(
            f"{described(call)}: pixels lost with their node ({reason}); reading them again"
        )
        self.calls.remove_detect(call, self.settings.detect_timeout_s)
        self.queue.put_back(call.pieces)

    def worker_lost(self, call: Call[S, R], lost: WorkerLost) -> None:
        """Retry the work of a worker that died, up to the limit of attempts.

        Raises:
            ScenesweepError: if too many detectors in a row died before they were up.
        """
        lost = self._with_its_node(call, lost)
        what = "node" if isinstance(lost, NodeLost) else "worker"
        self.tally.listener.warning(f"{described(call)}: {what} lost ({lost})")
        match call:
            case StartCall():
                self._start_lost(call, lost)
            case DetectCall():
                self._detector_lost(call, lost)
            case ReadCall():
                self._retry_pieces(call, lost)
            case PieceCall():
                call.scene.publishing -= 1
                call.scene.publish_rounds[0].append(call.name)
                if not self._may_retry_publishing(call, lost):
                    self._give_up(call.scene, call.step, lost)
            case PlanCall() | FinishCall():
                if self._may_retry(call.scene, lost):
                    self.queue.add_scene(call.scene)
                else:
                    self._give_up(call.scene, call.step, lost)

    def _with_its_node(self, call: Call[S, R], lost: WorkerLost) -> WorkerLost:
        """Find out whether a worker died with its node. If so, no more work goes there."""
        node = lost.node if isinstance(lost, NodeLost) else None
        if isinstance(call, StartCall | DetectCall):
            node = node or self.detectors.node_of(call.detector)
        elif isinstance(call, ReadCall):
            node = node or call.near
        gone = self.detectors.leave_if_gone(node)
        return NodeLost(str(lost), node) if gone else lost

    def _start_lost(self, call: StartCall, lost: WorkerLost) -> None:
        if isinstance(lost, NodeLost):
            self.detectors.stop(call.detector)
        else:
            self._tell_avoided(self.detectors.start_failed(call.detector, str(lost)))

    def _tell_avoided(self, node: str | None) -> None:
        if node is not None:
            self.tally.listener.warning(
                f"node {node} lost {FAILED_ON_NODE} detectors in a row: no other starts there"
            )

    def machine_unfit(self, call: Call[S, R], reason: str) -> None:
        """Go on without a detector that cannot start on its machine.

        Raises:
            ScenesweepError: if no machine is left.
        """
        if not isinstance(call, StartCall):
            self.worker_lost(call, WorkerLost(reason))
        elif self.detectors.machine_unfit(call.detector, reason):
            self.tally.listener.warning(f"going on without a machine: {reason}")

    def _detector_lost(self, call: DetectCall[S], lost: WorkerLost) -> None:
        """Retry the work of a dead detector.

        One call may have been computing while another one wrote its parts. So nobody is blamed if
        there were several. Each piece is then retried on a detector without other calls.
        """
        if not self.detectors.has(call.detector):
            return
        calls = self.calls.take_all_of(call)
        for one in calls:
            for piece in one.pieces:
                piece.lost_on = call.detector.node
            if isinstance(lost, LostForMemory | NodeLost) or len(calls) == 1:
                self._retry_pieces(one, lost)
            else:
                self._retry_alone(one.pieces)
        if isinstance(lost, NodeLost):
            self.detectors.stop(call.detector)
        else:
            self._tell_avoided(self.detectors.lost(call.detector))

    def _retry_pieces(self, call: ReadCall[S] | DetectCall[S], lost: WorkerLost) -> None:
        for piece in call.pieces:
            if not self._may_retry(piece, lost):
                self._give_up(piece.scene, call.step, lost)
        # A node takes many shards with it. A shard that was on two of them may be the cause.
        if isinstance(lost, NodeLost) and all(len(p.nodes_lost) == 1 for p in call.pieces):
            self.queue.put_back(call.pieces)
        else:
            self._retry_alone(call.pieces)

    def _retry_alone(self, pieces: tuple[Piece[S], ...]) -> None:
        for piece in pieces:
            piece.alone = True
        self.queue.put_back(pieces)

    def _may_retry(self, work: Piece[S] | SceneInProgress[S], lost: WorkerLost) -> bool:
        """Count a lost worker and say whether the work may be tried again.

        The first kill for lack of memory does not count: another process may have caused it. Lost
        nodes have a limit of their own, because a cloud may take several away at once. A node
        counts once: some calls go to a dead node before Ray knows.
        """
        if isinstance(lost, LostForMemory) and not work.suspect:
            work.suspect = True
            return True
        if isinstance(lost, NodeLost):
            work.nodes_lost += (lost.node,)
            return len(set(work.nodes_lost)) < _NODES and len(work.nodes_lost) < _NODE_LOSSES
        work.crashes += 1
        return work.crashes < self.settings.attempts

    def _may_retry_publishing(self, call: PieceCall[S], lost: WorkerLost) -> bool:
        """Count a worker that a piece to publish cost: many run at once, and each has its own."""
        piece = call.scene.publish_losses.setdefault(call.name, Piece(call.scene, 0))
        may_retry = self._may_retry(piece, lost)
        call.scene.suspect = call.scene.suspect or piece.suspect
        return may_retry

    def _give_up(self, scene: SceneInProgress[S], step: str, lost: WorkerLost) -> None:
        what = f"a worker was lost {self.settings.attempts} times"
        if isinstance(lost, NodeLost):
            what = "too many nodes were lost"
        self.tally.give_up(scene, f"given up: {what} in {step} ({lost})")
