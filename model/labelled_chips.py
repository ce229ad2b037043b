"""Labelled chips: the input of training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LabelledChips:
    """N labelled chips.

    `chips` is (N, bands, S, S) uint8, in memory or memory-mapped. For each chip, `boxes` has (T, 4)
    float32 xyxy in chip pixels; whole numbers are pixel edges, and boxes may extend beyond the
    chip. `labels` has (T,) int64 indices of the card's classes. With `points`, the labels were
    points and the boxes are squares around them; only their centres are evaluated.
    """

    names: tuple[str, ...]
    chips: NDArray[np.uint8]
    boxes: tuple[NDArray[np.float32], ...]
    labels: tuple[NDArray[np.int64], ...]
    points: bool = False

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.chips) == len(self.boxes) == len(self.labels):
            raise ValueError("expected names, chips, boxes and labels of equal length")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def chip_px(self) -> int:
        return int(self.chips.shape[-1])

    @property
    def objects(self) -> int:
        """Number of boxes in all chips."""
        return sum(map(len, self.boxes))

    def centres(self, chip: int) -> NDArray[np.float64]:
        """Return (T, 2) float64 x, y of the centres of one chip's boxes."""
        xyxy = self.boxes[chip].astype(np.float64)
        return (xyxy[:, :2] + xyxy[:, 2:]) / 2

    def take(self, indices: NDArray[np.intp]) -> LabelledChips:
        """Return some chips, in the order of `indices`. Their pixels are copied."""
        return LabelledChips(
            tuple(self.names[chip] for chip in indices.tolist()),
            self.chips[indices],
            tuple(self.boxes[chip] for chip in indices.tolist()),
            tuple(self.labels[chip] for chip in indices.tolist()),
            self.points,
        )

    def every(self, step: int, *, start: int) -> LabelledChips:
        """Return the chips start, start + step, and so on. Their pixels are not copied."""
        part = slice(start, None, step)
        return LabelledChips(
            self.names[part], self.chips[part], self.boxes[part], self.labels[part], self.points
        )
