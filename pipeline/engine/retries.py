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
from scenesweep.pipeline.engine.detectors import Detectors
from scenesweep.pipeline.engine.queue import WorkQueue
from scenesweep.pipeline.engine.steps import R, S, one_line, reason_of
from scenesweep.pipeline.engine.tally import Tally
from scenesweep.pipeline.settings import EngineSettings

log = logging.getLogger(__name__)


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
            self.worker_lost(call, reason)
            return
        self.tally.listener.warning(
            f"{described(call)}: pixels lost with their node ({reason}); reading them again"
        )
        self.calls.remove_detect(call, self.settings.detect_timeout_s)
        self.queue.put_back(call.pieces)

    def worker_lost(self, call: Call[S, R], reason: str, *, for_memory: bool = False) -> None:
        """Retry the work of a worker that died, up to the limit of attempts.

        Raises:
            ScenesweepError: if too many detectors in a row died before they were up.
        """
        self.tally.listener.warning(f"{described(call)}: worker lost ({reason})")
        match call:
            case StartCall():
                self.detectors.start_failed(call.detector, reason)
            case DetectCall():
                self._detector_lost(call, reason, for_memory=for_memory)
            case ReadCall():
                self._retry_pieces(call, reason, for_memory=for_memory)
            case PieceCall():
                call.scene.publishing -= 1
                call.scene.publish_rounds[0].append(call.name)
                if not self._may_retry(call.scene, for_memory=for_memory):
                    self._give_up(call.scene, call.step, reason)
            case PlanCall() | FinishCall():
                if self._may_retry(call.scene, for_memory=for_memory):
                    self.queue.add_scene(call.scene)
                else:
                    self._give_up(call.scene, call.step, reason)

    def machine_unfit(self, call: Call[S, R], reason: str) -> None:
        """Go on without a detector that cannot start on its machine.

        Raises:
            ScenesweepError: if no machine is left.
        """
        if not isinstance(call, StartCall):
            self.worker_lost(call, reason)
        elif self.detectors.machine_unfit(call.detector, reason):
            self.tally.listener.warning(f"going on without a machine: {reason}")

    def _detector_lost(self, call: DetectCall[S], reason: str, *, for_memory: bool) -> None:
        """Retry the work of a dead detector.

        One call may have been computing while another one wrote its parts. So nobody is blamed if
        there were several. Each piece is then retried on a detector without other calls.
        """
        if not self.detectors.has(call.detector):
            return
        calls = self.calls.take_all_of(call)
        for one in calls:
            if for_memory or len(calls) == 1:
                self._retry_pieces(one, reason, for_memory=for_memory)
            else:
                self._retry_alone(one.pieces)
        self.detectors.lost(call.detector)

    def _retry_pieces(
        self, call: ReadCall[S] | DetectCall[S], reason: str, *, for_memory: bool
    ) -> None:
        for piece in call.pieces:
            if not self._may_retry(piece, for_memory=for_memory):
                self._give_up(piece.scene, call.step, reason)
        self._retry_alone(call.pieces)

    def _retry_alone(self, pieces: tuple[Piece[S], ...]) -> None:
        for piece in pieces:
            piece.alone = True
        self.queue.put_back(pieces)

    def _may_retry(self, lost: Piece[S] | SceneInProgress[S], *, for_memory: bool) -> bool:
        """Count a lost worker and say whether the work may be tried again.

        The first kill for lack of memory does not count: another process may have caused it.
        """
        if for_memory and not lost.suspect:
            lost.suspect = True
            return True
        lost.crashes += 1
        return lost.crashes < self.settings.attempts

    def _give_up(self, scene: SceneInProgress[S], step: str, reason: str) -> None:
        attempts = self.settings.attempts
        self.tally.give_up(
            scene, f"given up: a worker was lost {attempts} times in {step} ({reason})"
        )
