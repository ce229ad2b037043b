"""Labels as values: the rows of a label file, and the true objects of rasters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.boxes import Columns

_NOISE_PX = 1e-3


@dataclass(frozen=True, slots=True)
class Objects:
    """The true objects of one raster.

    `xyxy` is (T, 4) float64 in scene pixels; whole numbers are pixel edges. `label` is (T,) int64,
    indices of the card's classes. With `points`, the labels were points and the boxes are squares
    around them, which may extend beyond the raster.
    """

    xyxy: NDArray[np.float64]
    label: NDArray[np.int64]
    points: bool = False

    def __post_init__(self) -> None:
        if self.xyxy.shape != (len(self.label), 4):
            raise ValueError("expected xyxy (T, 4) and label (T,)")

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def none(cls, *, points: bool = False) -> Self:
        """Return an empty set of objects."""
        return cls(np.zeros((0, 4)), np.zeros(0, np.int64), points)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """Select objects by a mask or by indices."""
        return type(self)(self.xyxy[rows], self.label[rows], self.points)

    def centres(self) -> NDArray[np.float64]:
        """Return (T, 2) x, y of the centres. For points, these are the points themselves."""
        return (self.xyxy[:, :2] + self.xyxy[:, 2:]) / 2


@dataclass(frozen=True, slots=True)
class LabelRows(Columns):
    """The labels of a file, one row for each raster that a label touches.

    `number` is (N,) int64, the number of the label in the file. `scene` is (N,) int64, the index
    of the raster, or -1 for none. `xyxy` is (N, 4) float64 in scene pixels, NaN without
    coordinates; a point is a box of size 0. `name` is the class as written. `where` describes the
    label for messages. `fault` is the reason why it cannot be used; empty if it can.
    """

    number: NDArray[np.int64]
    scene: NDArray[np.int64]
    xyxy: NDArray[np.float64]
    name: NDArray[np.str_]
    where: NDArray[np.str_]
    fault: NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Count:
    """The number of labels with the same reason, and some examples."""

    reason: str
    number: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        which = f" (for example {'; '.join(self.examples)})" if self.examples else ""
        return f"{self.number:,} {self.reason}{which}"


@dataclass(frozen=True, slots=True)
class LabelFile:
    """The labels of a file for some rasters.

    `scenes` has the indices of the rasters that the file describes. There, everything without a
    label is background. `notes` counts labels that are neither used nor wrong.
    """

    rows: LabelRows
    scenes: tuple[int, ...]
    points: bool = False
    notes: tuple[Count, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelReport:
    """How many labels of a file are used, and why others are not.

    Of `labels`, `used` are objects in at least one raster. `wrong` counts the others by reason.
    `notes` counts labels that were corrected or not requested.
    """

    labels: int
    used: int
    wrong: tuple[Count, ...] = ()
    notes: tuple[Count, ...] = ()
    chips: int = 0
    empty_chips: int = 0

    def counts(self) -> dict[str, int]:
        """Return the numbers only, for a model card."""
        wrong = {count.reason: count.number for count in self.wrong}
        chips = {"chips": self.chips, "chips without objects": self.empty_chips}
        return {"labels": self.labels, "used": self.used} | wrong | chips

    def describe(self) -> list[str]:
        """Return lines of text: the numbers, then the reasons, most frequent first."""
        lines = [f"labels: {self.used:,} of {self.labels:,} used"]
        if self.chips:
            occupied = self.chips - self.empty_chips
            lines.append(
                f"chips: {self.chips:,}, {occupied:,} with objects and {self.empty_chips:,} without"
            )
        lines += [f"left out: {count}" for count in self.wrong]
        return lines + [f"note: {count}" for count in self.notes]


def long_enough(xyxy: NDArray[np.float64], least: float) -> NDArray[np.bool_]:
    """Return (N,): whether no side of a box (N, 4) is shorter than `least`, up to rounding."""
    sides = xyxy[:, 2:] - xyxy[:, :2]
    enough: NDArray[np.bool_] = sides.min(axis=1, initial=np.inf) >= least - _NOISE_PX
    return enough


def cut_to(
    xyxy: NDArray[np.float64], bounds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return boxes (N, 4) cut at `bounds`, and (N,) the share of their area that is left.

    `bounds` is (4,) or (N, 4), in the same pixels. The share is 0 for a box outside, and for one
    without area.
    """
    low, high = bounds[..., :2], bounds[..., 2:]
    part = np.hstack([np.clip(xyxy[:, :2], low, high), np.clip(xyxy[:, 2:], low, high)])
    total = np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1)
    area = np.prod(part[:, 2:] - part[:, :2], axis=1)
    share = np.divide(area, total, out=np.zeros(len(xyxy)), where=total > 0)
    return part, share
