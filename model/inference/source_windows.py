"""Windows in pixels as the scene has them, and the recipe that makes uint8 pixels of them.

On a GPU, the detector itself stretches and resamples (`develop.py`). Readers then only decode, and
source pixels travel: fewer bytes than chips if the scene is coarser than the model's grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Taps:
    """The source pixels that contribute to each of N grid pixels along one axis.

    `index` (N, T) int64 are source pixels and `weight` (N, T) float64 their weights, multiples of
    `2**-bits` with the sum 1, or 0 for a grid pixel whose centre is not on the raster.
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float64]

    @property
    def span(self) -> tuple[int, int]:
        """First and end of the source pixels that are needed."""
        return int(self.index.min()), int(self.index.max()) + 1

    @property
    def complete(self) -> bool:
        """Whether the centres of all grid pixels are on the raster."""
        return bool(self.weight.any(axis=1).all())

    def of(self, part: slice) -> Taps:
        """Return the taps of some of the grid pixels."""
        return Taps(self.index[part], self.weight[part])

    def of_each(self, numbers: NDArray[np.intp]) -> Taps:
        """Return the taps of grid pixels by their numbers (M,)."""
        return Taps(self.index[numbers], self.weight[numbers])

    def moved(self, first: int) -> Taps:
        """Return the taps for an array that starts at source pixel `first`."""
        return Taps(self.index - first, self.weight)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How source values become 0..255.

    `present` are the positions of the source's bands among those of the model, and `ranges` their
    (low, high) that become 0 and 255; None for uint8, which is not stretched. `fill` has a value
    for each band of the model: missing bands have it, and pixels that are not valid.
    """

    present: tuple[int, ...]
    ranges: tuple[tuple[float, float], ...] | None
    fill: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SourceWindows:
    """N windows of `shape` (bands, height, width) in one block of the grid; they may overlap.

    `pixels` is (present bands, H, W) uint8, int16, uint16 or float32, and `valid` (H, W) bool, None
    if all are valid. `axes` are the taps of the block's rows and columns into these pixels; None
    if the block has the scene's own pixels. `corners` is (N, 2): row and column of the top-left
    pixel of each window in the block.
    """

    pixels: NDArray[np.generic]
    valid: NDArray[np.bool_] | None
    recipe: Recipe
    axes: tuple[Taps, Taps] | None
    corners: NDArray[np.int64]
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def block(self) -> tuple[int, int, int]:
        """Bands, rows and columns of the block."""
        if self.axes is None:
            rows, columns = self.pixels.shape[1:]
        else:
            rows, columns = (len(taps.index) for taps in self.axes)
        return self.shape[0], rows, columns

    @property
    def block_size(self) -> int:
        """Number of values in the block, once it is made."""
        return int(np.prod(self.block))

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where the windows are in the flat block: as `Windows.starts`."""
        _, rows, columns = self.block
        starts = np.empty((len(self), 3), np.int64)
        starts[:, 0] = self.corners[:, 0] * columns + self.corners[:, 1]
        starts[:, 1:] = rows * columns, columns
        return starts

    def part(self, first: int, last: int) -> SourceWindows:
        """Return the windows from `first` up to `last`, and only the pixels that they need.

        The weights of a grid pixel depend on its number alone, so its value stays the same.
        """
        corners = self.corners[first:last]
        (top, left), (bottom, right) = corners.min(axis=0), corners.max(axis=0) + self.shape[1:]
        source = slice(top, bottom), slice(left, right)
        axes = None
        if self.axes is not None:
            rows, columns = self.axes[0].of(source[0]), self.axes[1].of(source[1])
            source = slice(*rows.span), slice(*columns.span)
            axes = rows.moved(source[0].start), columns.moved(source[1].start)
        return replace(
            self,
            pixels=self.pixels[:, *source],
            valid=None if self.valid is None else self.valid[source],
            axes=axes,
            corners=corners - (top, left),
        )

    def compact(self) -> Iterator[SourceWindows]:
        """Yield windows of a `part` in parts whose blocks are not larger than their chips."""
        if self.block_size <= len(self) * int(np.prod(self.shape)):
            yield self
            return
        in_first_row = int(np.argmin(self.corners[:, 0] == self.corners[0, 0]))  # 0: all are
        middle = in_first_row or len(self) // 2
        yield from self.part(0, middle).compact()
        yield from self.part(middle, len(self)).compact()

    def chips(self) -> NDArray[np.uint8]:
        """Return the windows' pixels (N, bands, height, width), made on this CPU. Imports torch."""
        from scenesweep.model.inference.develop import developed_here
        from scenesweep.model.inference.windows import Windows

        return Windows(developed_here(self), self.starts, self.shape).chips()
