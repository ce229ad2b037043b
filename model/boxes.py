"""Boxes as a struct of arrays, and the interface of a detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


class Columns:
    """Base of dataclasses whose fields are arrays of equal length, one element per row."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._columns()[0])

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """Select rows by a mask or by indices."""
        return type(self)(*(column[rows] for column in self._columns()))

    @classmethod
    def join(cls, first: Self, *others: Self) -> Self:
        """Concatenate the rows, in order."""
        parts = [part._columns() for part in (first, *others)]
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _columns(self) -> list[NDArray[Any]]:
        return [getattr(self, name) for name in self.__dataclass_fields__]  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Boxes(Columns):
    """N boxes in one pixel frame.

    `xyxy` is (N, 4): left, top, right, bottom edges; whole numbers are pixel edges. `score`
    is (N,) float32 in 0..1. `label` is (N,) int16, indices of the card's classes. `chip` is (N,)
    int32, the index of the box's chip in its batch or shard.
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
            raise ValueError(
                "expected xyxy (N, 4) and score, label and chip (N,), got "
                f"{self.xyxy.shape}, {self.score.shape}, {self.label.shape}, {self.chip.shape}"
            )

    @classmethod
    def none(cls) -> Self:
        """Return an empty set of boxes."""
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
class DetectorOutput:
    """A detector's output for some chips.

    Boxes are in the order of the chips. `capped` is (chips,) bool: True where a limit of the card
    removed candidates.
    """

    boxes: Boxes
    capped: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ChipBoxes:
    """A network's boxes in one chip, in descending order of score, as tensors on its device.

    `boxes` is (N, 4) float32 xyxy in chip pixels, `scores` (N,), `labels` (N,) int64. `capped` is
    True when a limit of the card removed candidates.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    capped: bool


class ChipDetector(Protocol):
    """The interface of a detector, as the pipeline uses it. Tests use simpler detectors."""

    @property
    def runs_on(self) -> str:
        """The device and precision in use, for the run report; empty if unknown."""
        ...

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        """Detect boxes in chips (N, bands, H, W) uint8. Boxes are in chip pixels."""
        ...
