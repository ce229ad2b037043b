"""The queue of work: pieces to read, scenes to retry or publish, and what is suspect.

The order of pieces, so that no scene waits for a giant one and none is forgotten:

1. Pieces that are tried again come first.
2. Of four batches, three come from the scenes with the fewest windows: small scenes end soon.
3. The fourth comes from the scene that was begun first: a giant one makes progress as well.

A batch that the first scene of its order does not fill goes on with the next one. Within a scene,
pieces are taken in their order. Equal sizes are ordered by the scenes' begin. So the order follows
from the order of calls of this queue alone.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic

from scenesweep.pipeline.engine.calls import Piece, SceneInProgress
from scenesweep.pipeline.engine.steps import S

_EARLIEST_EVERY = 4  # batches, of which one comes from the earliest scene


@dataclass(slots=True, eq=False)
class _Lane(Generic[S]):
    """The pieces of a scene that were never taken: those from `index` on."""

    scene: SceneInProgress[S]
    windows: int
    index: int = 0

    @property
    def left(self) -> int:
        return len(self.scene.work) - self.index


@dataclass(slots=True)
class _Order(Generic[S]):
    """Lanes by a key that does not change. Empty lanes are dropped when they come first."""

    heap: list[tuple[int, int, _Lane[S]]] = field(default_factory=list)

    def add(self, key: int, lane: _Lane[S]) -> None:
        heapq.heappush(self.heap, (key, lane.scene.number, lane))

    def first(self) -> _Lane[S] | None:
        while self.heap and not self.heap[0][2].left:
            heapq.heappop(self.heap)
        return self.heap[0][2] if self.heap else None


class WorkQueue(Generic[S]):
    """Work that waits for its next call. Work of scenes that have ended is dropped on the way.

    A process that takes all memory of a node takes others down with it. So nobody is blamed the
    first time. From then on that work is suspect, and runs one piece at a time, so that the
    guilty one cannot take the innocent with it again.

    `ahead` counts the pieces that wait, but at most `counted_each` of a scene: a giant scene must
    not keep others from being planned.
    """

    def __init__(self, counted_each: int = 1) -> None:
        self._again: deque[Piece[S]] = deque()
        self._by_size: _Order[S] = _Order()
        self._by_age: _Order[S] = _Order()
        self._in_lanes, self._turn = 0, 0
        self._counted_each, self._counted = counted_each, 0
        self._scenes: deque[SceneInProgress[S]] = deque()
        self._suspects: deque[Piece[S] | SceneInProgress[S]] = deque()

    def __len__(self) -> int:
        """Return the number of pieces that wait to be read, without suspects."""
        return self._in_lanes + len(self._again)

    @property
    def ahead(self) -> int:
        return self._counted + len(self._again)

    def add_pieces(self, scene: SceneInProgress[S]) -> None:
        """Append all pieces of a scene that has been planned."""
        lane = _Lane(scene, scene.windows_left)
        if not lane.left:
            return
        self._in_lanes += lane.left
        self._counted += min(lane.left, self._counted_each)
        self._by_size.add(lane.windows, lane)
        self._by_age.add(0, lane)

    def put_back(self, pieces: Iterable[Piece[S]]) -> None:
        """Put pieces at the front, to be tried again."""
        left = [piece for piece in pieces if not piece.ended]
        self._suspects.extend(piece for piece in left if piece.suspect)
        self._again.extendleft(reversed([piece for piece in left if not piece.suspect]))

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
        """Count the pieces that wait to be read, up to `limit`.

        All suspects count as one, because they run one at a time.
        """
        count = min(limit, len(self))
        return count + 1 if self._suspects else count

    def take(self, batch_windows: int, parallel: int) -> tuple[Piece[S], ...]:
        """Remove and return a piece, with further ones while all have at most `batch_windows`.

        The queue is shared out among `parallel` batches at most: batches get smaller towards the
        end, so that all detectors end at the same time. A piece that failed in a batch is taken
        alone, so that its next failure shows whether it is the cause.
        """
        order = self._by_size if self._turn % _EARLIEST_EVERY else self._by_age
        pieces: list[Piece[S]] = []
        windows = 0
        most = max(1, len(self) // parallel)
        while len(pieces) < most:
            piece, lane = self._first(order)
            if piece is None:
                break
            windows += piece.windows
            if pieces and (windows > batch_windows or piece.alone):
                break
            pieces.append(piece)
            self._remove_first(lane)
            if piece.alone:
                break
        self._turn += 1
        return tuple(pieces)

    def _first(self, order: _Order[S]) -> tuple[Piece[S] | None, _Lane[S] | None]:
        """Return the next piece, and its lane if it was never taken before; leave it there."""
        while self._again and self._again[0].ended:
            self._again.popleft()
        if self._again:
            return self._again[0], None
        while (lane := order.first()) is not None and lane.scene.ended:
            self._skip(lane, lane.left)
        return (Piece(lane.scene, lane.index) if lane else None), lane

    def _remove_first(self, lane: _Lane[S] | None) -> None:
        if lane is None:
            self._again.popleft()
            return
        self._skip(lane, 1)

    def _skip(self, lane: _Lane[S], count: int) -> None:
        counted = min(lane.left, self._counted_each)
        lane.index += count
        self._in_lanes -= count
        self._counted += min(lane.left, self._counted_each) - counted
