"""The sweep as a plain loop, in this process: the specification of every other runner."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic

from scenesweep.pipeline.engine.calls import Piece, SceneInProgress
from scenesweep.pipeline.engine.steps import (
    DetectorUse,
    Listener,
    Planned,
    R,
    S,
    Steps,
    Stop,
    Unreadable,
    never,
    reason_of,
)
from scenesweep.pipeline.engine.tally import Tally
from scenesweep.pipeline.errors import SceneError

log = logging.getLogger(__name__)


def sweep(
    sources: Iterable[object],
    steps: Steps[S, R],
    weights: object,
    *,
    listener: Listener[R] | None = None,
    stop: Stop = never,
) -> None:
    """Take one source after the other through plan, read, detect and finish.

    Raises:
        ModelError: if the detector cannot be made.
        OutputError: if the output cannot be written.
    """
    listener = listener or Listener()
    loop = _Loop(steps, weights, Tally(listener, steps.fail), listener, stop)
    for source in sources:
        if stop() or not loop.sweep_scene(SceneInProgress(source)):
            return
        loop.report()


@dataclass(slots=True)
class _Loop(Generic[S, R]):
    steps: Steps[S, R]
    weights: object
    tally: Tally[S, R]
    listener: Listener[R]
    stop: Stop
    detector: object = None

    def sweep_scene(self, scene: SceneInProgress[S]) -> bool:
        """Sweep one scene to its end; return False if the run was asked to stop before."""
        self.tally.scenes_begun += 1
        try:
            planned = self.steps.plan(scene.source)
        except Exception as error:
            self._failed(scene, error)
            return True
        self.tally.plan_ended(scene, planned)
        if planned.work and self.detector is None:  # if this raises, the run ends
            self.detector = self.steps.make_detector(self.weights)
        try:
            result = self._result_of(scene, planned)
        except Exception as error:
            self._failed(scene, error)
            return True
        if result is not None:
            self.tally.end(scene, result)
        return scene.ended

    def report(self) -> None:
        """Report how far the run is."""
        self.listener.progress(self.tally.progress(detectors=1))

    def _result_of(self, scene: SceneInProgress[S], planned: Planned[S, R]) -> R | None:
        """Detect on a planned scene and publish it; return None if the run was asked to stop."""
        if planned.result is not None:
            return planned.result
        scene.seconds.update(read=0.0, detect=0.0, stage=0.0)
        for index in range(len(planned.work)):
            if self.stop():
                return None
            self._detect(Piece(scene, index))
            self.report()
        assert planned.state is not None
        for name in (name for of_round in planned.publish_rounds for name in of_round):
            if self.stop():
                return None
            self.steps.publish_piece(planned.state, name)
        return self.steps.finish(planned.state, scene.seconds)

    def _detect(self, piece: Piece[S]) -> None:
        """Read and detect one piece of work.

        Raises:
            SceneError: if it cannot be read.
        """
        started = time.monotonic()
        (pixels,) = self.steps.read([piece.work])
        if isinstance(pixels, Unreadable):
            raise SceneError(pixels.reason)
        read = time.monotonic()
        use = self.steps.detect(self.detector, [piece.work], [pixels])
        use = use or DetectorUse(computed_s=time.monotonic() - read)
        piece.scene.add_seconds("read", read - started)
        piece.scene.add_use(use)
        self.listener.detected(use)
        self.tally.detected(piece)

    def _failed(self, scene: SceneInProgress[S], error: Exception) -> None:
        reason, bug = reason_of(error)
        if bug:
            log.exception("unexpected error in %s", scene.source)
        self.tally.give_up(scene, reason, bug=bug)
