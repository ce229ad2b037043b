"""Pixels that are being read or wait for a detector, by the node that they lie on.

Pixels that stay on their node cross no network. So a read begins before it is known which detector
takes its pixels, but on the node whose detectors have the fewest: `place` counts for each node.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic

from scenesweep.pipeline.engine.calls import Piece
from scenesweep.pipeline.engine.steps import S


@dataclass(frozen=True, slots=True)
class ReadPieces(Generic[S]):
    """Pieces of work whose pixels are there. `near` is the node that they were to be read on."""

    pieces: tuple[Piece[S], ...]
    pixels: object
    near: str | None = None

    @property
    def alone(self) -> bool:
        """Say whether a detector must have no other call beside this one."""
        return any(piece.alone for piece in self.pieces)


@dataclass(slots=True)
class Pixels(Generic[S]):
    """What waits for a detector, first in, first out on each node."""

    _ready: dict[str | None, deque[ReadPieces[S]]] = field(default_factory=dict)
    _reading: Counter[str | None] = field(default_factory=Counter)
    _count: int = 0

    def __len__(self) -> int:
        """Return the number of reads that are ready."""
        return self._count

    def __iter__(self) -> Iterator[ReadPieces[S]]:
        return (read for reads in self._ready.values() for read in reads)

    def place(self, detectors: Mapping[str | None, int]) -> str | None:
        """Return the node for the next read, given the number of detectors on each node."""
        if not detectors:
            return None
        return min(detectors, key=lambda node: self._held(node) / detectors[node])

    def _held(self, node: str | None) -> int:
        return self._reading[node] + len(self._ready.get(node, ()))

    def read_began(self, near: str | None) -> None:
        self._reading[near] += 1

    def read_ended(self, near: str | None) -> None:
        self._reading[near] -= 1

    def add(self, read: ReadPieces[S]) -> None:
        """Add pixels that are ready."""
        self._ready.setdefault(read.near, deque()).append(read)
        self._count += 1

    def nodes(self) -> list[str | None]:
        """Return the nodes on which pixels are ready."""
        return [node for node, reads in self._ready.items() if reads]

    def first(self, node: str | None) -> ReadPieces[S] | None:
        """Return the pixels on a node that have waited longest, and leave them there."""
        reads = self._ready.get(node)
        return reads[0] if reads else None

    def drop_first(self, node: str | None) -> None:
        """Remove what `first` returned."""
        self._ready[node].popleft()
        self._count -= 1
