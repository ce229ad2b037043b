"""What the loop keeps of a run: scenes in work, their pieces, detectors, and calls under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from scenesweep.pipeline.engine.steps import S, Work


@dataclass(slots=True, eq=False)
class SceneInWork(Generic[S]):
    """A scene from its planning on: `open` shards are left of it; `gone` when it has ended.

    It is `suspect` when its planning or publishing was lost for lack of memory.
    """

    source: Any
    state: S | None = None
    work: Sequence[Work] = ()
    open: int = 0
    gone: bool = False
    crashes: int = 0
    suspect: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(slots=True, eq=False)
class Piece(Generic[S]):
    """A shard and its history: how often it cost its worker, and whether it travels alone."""

    scene: SceneInWork[S]
    index: int
    crashes: int = 0
    suspect: bool = False
    alone: bool = False

    @property
    def work(self) -> Work:
        return self.scene.work[self.index]

    @property
    def gone(self) -> bool:
        return self.scene.gone


@dataclass(slots=True, eq=False)
class Hired:
    """A detector, and the calls that it was given, the one it is at first."""

    actor: Any
    number: int
    up: bool = False
    hand: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Flight(Generic[S]):
    """One call under way; `kind` names the step."""

    kind: str
    ref: Any
    patience: float
    deadline: float
    scene: SceneInWork[S] | None = None
    pieces: list[Piece[S]] = field(default_factory=list)
    pixels: Any = None
    detector: Hired | None = None

    @property
    def suspect(self) -> bool:
        """Say whether it was lost for memory before."""
        whole = self.scene is not None and self.scene.suspect
        return whole or any(piece.suspect for piece in self.pieces)


def named(flight: Flight[S]) -> str:
    """Name the step, and the first of the scenes that it is about."""
    sources = list(dict.fromkeys(scene.source for scene in scenes_of(flight)))
    others = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{flight.kind} of {sources[0]}{others}" if sources else flight.kind


def scenes_of(flight: Flight[S]) -> list[SceneInWork[S]]:
    """Return the scenes that a call is about."""
    pieces = [piece.scene for piece in flight.pieces]
    return pieces if flight.scene is None else [flight.scene, *pieces]
