"""The queue of work: pieces to read, scenes to retry or publish, and what is suspect."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Generic

from scenesweep.pipeline.engine.calls import Piece, SceneInProgress
from scenesweep.pipeline.engine.steps import S


class WorkQueue(Generic[S]):
    """Work that waits for its next call. Work of scenes that have ended is dropped on the way.

    A process that takes all memory of a node takes others down with it. So nobody is blamed the
    first time. From then on that work is suspect, and runs one piece at a time, so that the
    guilty one cannot take the innocent with it again.
    """

    def __init__(self) -> None:
        self._pieces: deque[Piece[S]] = deque()
        self._scenes: deque[SceneInProgress[S]] = deque()
        self._suspects: deque[Piece[S] | SceneInProgress[S]] = deque()

    def __len__(self) -> int:
        """Return the number of pieces that wait to be read, without suspects."""
        return len(self._pieces)

    def add_pieces(self, scene: SceneInProgress[S]) -> None:
        """Append all pieces of a scene that has been planned."""
        self._pieces.extend(Piece(scene, index) for index in range(len(scene.work)))

    def put_back(self, pieces: Iterable[Piece[S]]) -> None:
        """Put pieces at the front, to be tried again."""
        left = [piece for piece in pieces if not piece.ended]
        self._suspects.extend(piece for piece in left if piece.suspect)
        self._pieces.extendleft(reversed([piece for piece in left if not piece.suspect]))

    def add_scene(self, scene: SceneInProgress[S]) -> None:
        """Append a scene that is to be published, or planned again."""
        if scene.ended:
            return
        (self._suspects if scene.suspect else self._scenes).append(scene)

    def take_scene(self) -> SceneInProgress[S] | None:
        """Remove and return the next scene to plan again or to publish."""
        return self._scenes.popleft() if self._scenes else None

    def next_suspect(self) -> Piece[S] | SceneInProgress[S] | None:
        """Return the first suspect and leave it in the queue."""
        while self._suspects and self._suspects[0].ended:
            self._suspects.popleft()
        return self._suspects[0] if self._suspects else None

    def drop_suspect(self) -> None:
        """Remove the suspect that `next_suspect` returned."""
        self._suspects.popleft()

    def waiting(self, limit: int) -> int:
        """Count the pieces that wait to be read, up to `limit`: the queue may be long.

        All suspects count as one, because they run one at a time.
        """
        pieces = islice((piece for piece in self._pieces if not piece.ended), limit)
        count = sum(1 for _ in pieces)
        return count + 1 if self._suspects else count

    def take(self, batch_windows: int, parallel: int) -> tuple[Piece[S], ...]:
        """Remove and return a piece, with further ones while all have at most `batch_windows`.

        The queue is shared out among `parallel` batches at most: batches get smaller towards the
        end, so that all detectors end at the same time. A piece that failed in a batch is taken
        alone, so that its next failure shows whether it is the cause.
        """
        pieces: list[Piece[S]] = []
        windows = 0
        most = max(1, len(self._pieces) // parallel)
        while self._pieces and len(pieces) < most:
            piece = self._pieces[0]
            if piece.ended:
                self._pieces.popleft()
                continue
            windows += piece.work.windows
            if pieces and (windows > batch_windows or piece.alone):
                break
            pieces.append(self._pieces.popleft())
            if piece.alone:
                break
        return tuple(pieces)
