"""Labels as values: as they stand in a file, and as the true objects of rasters."""

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

    `xyxy` is (T, 4) float64 in scene pixels, whole numbers being pixel edges; `label` (T,)
    int64 indexes the card's classes. `points` says that the labels were points and the boxes
    are squares drawn round them: these may reach over the raster's edges.
    """

    xyxy: NDArray[np.float64]
    label: NDArray[np.int64]
    points: bool = False

    def __post_init__(self) -> None:
        if self.xyxy.shape != (len(self.label), 4):
            raise ValueError("xyxy must be (T, 4) and label (T,)")

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def none(cls, *, points: bool = False) -> Self:
        """Return no objects."""
        return cls(np.zeros((0, 4)), np.zeros(0, np.int64), points)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """Select objects by a mask or by indices."""
        return type(self)(self.xyxy[rows], self.label[rows], self.points)

    def centres(self) -> NDArray[np.float64]:
        """Return (T, 2) x, y of the centres: of points, the points themselves."""
        return (self.xyxy[:, :2] + self.xyxy[:, 2:]) / 2


@dataclass(frozen=True, slots=True)
class Marks(Columns):
    """The labels of a file, one row for each raster that a label touches.

    `number` (N,) int64 counts the labels of the file, `scene` (N,) int64 is the raster's index
    or -1 for none. `xyxy` is (N, 4) float64 in scene pixels, NaN where there is nothing to
    measure; a point is a box without size. `name` is the class as written, `where` says to a
    person which label it is, and `fault` why it cannot be used, or is empty.
    """

    number: NDArray[np.int64]
    scene: NDArray[np.int64]
    xyxy: NDArray[np.float64]
    name: NDArray[np.str_]
    where: NDArray[np.str_]
    fault: NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Count:
    """How many labels share a fate, and which, for example."""

    reason: str
    number: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        which = f" (for example {'; '.join(self.examples)})" if self.examples else ""
        return f"{self.number:,} {self.reason}{which}"


@dataclass(frozen=True, slots=True)
class LabelFile:
    """What a label file says of some rasters.

    `scenes` holds the indices of the rasters that it speaks of: on these, what is not labelled
    is not an object. `notes` counts what was neither used nor wrong.
    """

    marks: Marks
    scenes: tuple[int, ...]
    points: bool = False
    notes: tuple[Count, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What became of the labels of a file.

    Of `labels`, `used` are objects in at least one raster; `wrong` counts the others by reason.
    `notes` counts what was put right or not asked for. An object counts in every chip that it
    is on.
    """

    labels: int
    used: int
    wrong: tuple[Count, ...] = ()
    notes: tuple[Count, ...] = ()
    chips: int = 0
    empty_chips: int = 0

    def counts(self) -> dict[str, int]:
        """Return the figures alone, for a model card."""
        wrong = {count.reason: count.number for count in self.wrong}
        chips = {"chips": self.chips, "chips without objects": self.empty_chips}
        return {"labels": self.labels, "used": self.used} | wrong | chips

    def describe(self) -> list[str]:
        """Return lines for people: the figures, then what was wrong, most frequent first."""
        lines = [f"labels: {self.used:,} of {self.labels:,} used"]
        if self.chips:
            full = self.chips - self.empty_chips
            lines.append(
                f"chips: {self.chips:,}, {full:,} with objects and {self.empty_chips:,} without"
            )
        lines += [f"left out: {count}" for count in self.wrong]
        return lines + [f"note: {count}" for count in self.notes]


def long_enough(xyxy: NDArray[np.float64], least: float) -> NDArray[np.bool_]:
    """Say which boxes (N, 4) have no side under `least`, but for the noise of reprojection."""
    sides = xyxy[:, 2:] - xyxy[:, :2]
    enough: NDArray[np.bool_] = sides.min(axis=1, initial=np.inf) >= least - _NOISE_PX
    return enough


def cut_to(
    xyxy: NDArray[np.float64], bounds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what of boxes (N, 4) lies within bounds, and which share (N,) of their area.

    `bounds` is (4,) or (N, 4), in the same pixels. A box wholly outside has the share 0, and
    so has one without area.
    """
    low, high = bounds[..., :2], bounds[..., 2:]
    part = np.hstack([np.clip(xyxy[:, :2], low, high), np.clip(xyxy[:, 2:], low, high)])
    whole = np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1)
    area = np.prod(part[:, 2:] - part[:, :2], axis=1)
    share = np.divide(area, whole, out=np.zeros(len(xyxy)), where=whole > 0)
    return part, share
