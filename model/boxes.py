"""Boxes as a struct of arrays, and what finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


class Columns:
    """Rows kept as arrays: the base of dataclasses whose fields are arrays of one length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._columns()[0])

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """Select rows by a mask or by indices."""
        return type(self)(*(column[rows] for column in self._columns()))

    @classmethod
    def join(cls, first: Self, *others: Self) -> Self:
        """Concatenate, in order."""
        every = [part._columns() for part in (first, *others)]
        return cls(*(np.concatenate(columns) for columns in zip(*every, strict=True)))

    def _columns(self) -> list[NDArray[Any]]:
        return [getattr(self, name) for name in self.__dataclass_fields__]  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Boxes(Columns):
    """N boxes in one pixel frame.

    `xyxy` is (N, 4): left, top, right, bottom edges; whole numbers are pixel edges. `score`
    is (N,) float32 in 0..1, `label` (N,) int16 indexes the card's classes, and `chip` (N,)
    int32 says in which chip of a batch or shard the box was found.
    """

    xyxy: NDArray[np.floating]
    score: NDArray[np.float32]
    label: NDArray[np.int16]
    chip: NDArray[np.int32]

    def __post_init__(self) -> None:
        n = len(self.xyxy)
        if self.xyxy.shape != (n, 4) or {self.score.shape, self.label.shape, self.chip.shape} != {
            (n,)
        }:
            raise ValueError("xyxy must be (N, 4) and score, label and chip (N,)")

    @classmethod
    def none(cls) -> Self:
        """Return no boxes: found nothing, in the shape of everything else."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int16),
            np.zeros(0, np.int32),
        )

    def centres(self) -> NDArray[np.float64]:
        """Return (N, 2) float64 x, y of the boxes' centres."""
        xyxy = self.xyxy.astype(np.float64)
        return (xyxy[:, :2] + xyxy[:, 2:]) / 2


@dataclass(frozen=True, slots=True)
class Detected:
    """What a detector says of a batch of chips.

    Boxes come chip by chip. `capped` is (chips,) bool: True where a cap of the card cut
    candidates off.
    """

    boxes: Boxes
    capped: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ChipBoxes:
    """What a network finds in one chip, best first, still as tensors on its device.

    `boxes` (N, 4) float32 xyxy in chip pixels, `scores` (N,), `labels` (N,) int64, and whether
    a cap of the card cut candidates off.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    capped: bool


class ChipDetector(Protocol):
    """What the pipeline asks of a detector; tests put simpler ones in its place."""

    @property
    def runs_on(self) -> str:
        """The device and precision that `auto` became, for the run report; empty if unknown."""
        ...

    def detect(self, chips: NDArray[np.uint8]) -> Detected:
        """Find boxes in (N, bands, H, W) uint8; boxes in chip pixels."""
        ...
