"""How far a run is, and the one way in which a scene ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from scenesweep.pipeline.engine.calls import Piece, SceneInProgress
from scenesweep.pipeline.engine.steps import Listener, Planned, Progress, R, S


@dataclass(slots=True)
class Tally(Generic[S, R]):
    """Counts scenes, windows and pixels, and reports the result of each scene that ends.

    `fail` makes the result of a failed source, as `Steps.fail` does.
    """

    listener: Listener[R]
    fail: Callable[[object, str, bool], R]
    scenes_begun: int = 0
    scenes_planned: int = 0
    scenes_done: int = 0
    windows_known: int = 0
    windows_done: int = 0
    pixels_done: int = 0

    @property
    def all_ended(self) -> bool:
        """Say whether all scenes that were begun have ended."""
        return self.scenes_done == self.scenes_begun

    def progress(self, detectors: int) -> Progress:
        """Return how far the run is, with the number of detectors that are up."""
        return Progress(
            scenes_done=self.scenes_done,
            windows_done=self.windows_done,
            windows_known=self.windows_known,
            detectors=detectors,
            scenes_planned=self.scenes_planned,
            pixels_done=self.pixels_done,
        )

    def plan_ended(self, scene: SceneInProgress[S], planned: Planned[S, R]) -> None:
        """Count a scene's plan and its windows."""
        scene.state, scene.work, scene.planned = planned.state, planned.work, True
        scene.windows_each, scene.pixels_each = planned.windows_each, planned.pixels_each
        scene.pieces_left, scene.windows_left = len(planned.work), planned.windows
        scene.publish_rounds = [list(names) for names in planned.publish_rounds]
        self.scenes_planned += 1
        self.windows_known += planned.windows

    def detected(self, piece: Piece[S]) -> None:
        """Count a piece whose part file is written."""
        piece.scene.pieces_left -= 1
        self.pixels_done += piece.pixels
        if piece.ended:  # its windows were taken from the total when it failed
            return
        piece.scene.windows_left -= piece.windows
        self.windows_done += piece.windows

    def end(self, scene: SceneInProgress[S], result: R) -> None:
        """End a scene with its result.

        A scene that failed in between leaves windows that nobody will look at. They leave the
        total, or the run would seem to have work left until its end. Likewise a scene whose
        planning failed counts as planned.
        """
        self.windows_known -= scene.windows_left
        if not scene.planned:
            self.scenes_planned += 1
        scene.ended = True
        self.scenes_done += 1
        self.listener.result(result)

    def give_up(self, scene: SceneInProgress[S], reason: str, *, bug: bool = False) -> None:
        """End a scene as failed, unless it has ended already."""
        if not scene.ended:
            self.end(scene, self.fail(scene.source, reason, bug))
