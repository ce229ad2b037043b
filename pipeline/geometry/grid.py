"""Cut a scene into windows and windows into shards. Pure integer geometry.

Everything here is in pixels of the *grid*: the scene's own pixels, or the scene resampled to
the model's ground sample distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of pixels. `right` and `bottom` are the first column and row after it."""

    col_off: int
    row_off: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a window has at least one pixel, got {self.width} x {self.height}")

    @property
    def origin(self) -> NDArray[np.int64]:
        """Column and row (2,) of the top-left corner."""
        return np.array([self.col_off, self.row_off])

    @property
    def right(self) -> int:
        return self.col_off + self.width

    @property
    def bottom(self) -> int:
        return self.row_off + self.height


@dataclass(frozen=True, slots=True)
class Tile:
    """A window and its core: it reports the objects that are centred there. Cores are disjoint.

    `alone` means that no valid pixels lie beyond the core, so that no edge cuts an object.
    """

    window: Window
    core: Window
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Shard:
    """Neighbouring tiles of one size: the unit of reading, detecting, staging and resuming."""

    number: int
    tiles: tuple[Tile, ...]

    @property
    def bounds(self) -> Window:
        """Return the smallest window that holds all windows of the shard."""
        windows = [tile.window for tile in self.tiles]
        left = min(w.col_off for w in windows)
        top = min(w.row_off for w in windows)
        right, bottom = max(w.right for w in windows), max(w.bottom for w in windows)
        return Window(left, top, right - left, bottom - top)


@dataclass(frozen=True, slots=True)
class Axis:
    """Windows along one axis: where each starts, and the half-open span of its core."""

    starts: NDArray[np.int64]
    core_starts: NDArray[np.int64]
    core_stops: NDArray[np.int64]


def count_windows(size: int, *, chip: int, margin: int) -> int:
    """Return the number of windows that `cut_axis` would place."""
    if size < 1 or margin < 0 or chip <= 2 * margin:
        raise ValueError(f"need size >= 1 and chip > 2 * margin >= 0: {size}, {chip}, {margin}")
    return 1 if size <= chip else -(-(size - 2 * margin) // (chip - 2 * margin))


def cut_axis(size: int, *, chip: int, margin: int) -> Axis:
    """Place windows of `chip` pixels along `size` pixels.

    start[i] = min(i * (chip - 2 * margin), size - chip): the last window shifts inwards. An axis
    shorter than a chip has one window, which extends beyond its end. The core of a window ends in
    the middle of its overlap with the next, so cores partition [0, size), and each core is at
    least `margin` away from its window's inner edges.
    """
    count = count_windows(size, chip=chip, margin=margin)
    if size <= chip:
        starts = np.zeros(1, np.int64)
    else:
        stride = chip - 2 * margin
        starts = np.minimum(np.arange(count, dtype=np.int64) * stride, size - chip)
    seams = (starts[1:] + starts[:-1] + chip) // 2
    return Axis(starts, np.concatenate([[0], seams]), np.concatenate([seams, [size]]))


@dataclass(frozen=True)
class Grid:
    """The windows of one scene.

    `width` and `height` are grid pixels, `chip` and `margin` as in `cut_axis`, and `side` the
    number of windows along each side of a shard. A grid shorter than a chip has windows of the
    next multiple of `fit` instead.
    """

    width: int
    height: int
    chip: int
    margin: int
    side: int
    fit: int

    @cached_property
    def columns(self) -> Axis:
        return cut_axis(self.width, chip=self.chip, margin=self.margin)

    @cached_property
    def rows(self) -> Axis:
        return cut_axis(self.height, chip=self.chip, margin=self.margin)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of pixels."""
        return self.width, self.height

    def fitted(self, size: int) -> int:
        """Return the side of the window for `size` pixels: a multiple of `fit`, at most a chip."""
        return min(self.chip, -(-size // self.fit) * self.fit)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        rows, columns = (
            count_windows(size, chip=self.chip, margin=self.margin)
            for size in (self.height, self.width)
        )
        return rows, columns

    def tile(self, row: int, column: int) -> Tile:
        """Return the tile in a row and column of windows."""
        x, y = self.columns, self.rows
        col_off, row_off = int(x.starts[column]), int(y.starts[row])
        window = Window(col_off, row_off, self.fitted(self.width), self.fitted(self.height))
        left, top = int(x.core_starts[column]), int(y.core_starts[row])
        right, bottom = int(x.core_stops[column]), int(y.core_stops[row])
        return Tile(window, Window(left, top, right - left, bottom - top))

    def shard_numbers(self, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the ascending numbers of the shards with a kept window; `kept` has `shape`."""
        rows, columns = np.nonzero(kept)
        return np.unique((rows // self.side) * self._shards_across + columns // self.side)

    def shard(self, number: int, kept: NDArray[np.bool_]) -> Shard:
        """Return shard `number`, its kept tiles row by row."""
        down, across = divmod(number, self._shards_across)
        top, left = down * self.side, across * self.side
        rows, columns = np.nonzero(kept[top : top + self.side, left : left + self.side])
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        return Shard(number, tuple(self.tile(top + r, left + c) for r, c in pairs))

    @property
    def shards(self) -> int:
        """Number of shards when every window is kept."""
        return -(-self.shape[0] // self.side) * self._shards_across

    @property
    def _shards_across(self) -> int:
        return -(-self.shape[1] // self.side)


@dataclass(frozen=True)
class Layout:
    """The windows of one scene that are looked at: some of the grid's, and islands.

    `kept` is (rows, columns) bool over the grid's windows. `islands` is (M, 4) int64 column,
    row, width and height on the grid. An island is a patch of valid pixels that has a window of
    its own, at most a chip, and lies outside the cores of the kept windows. Shards of the grid
    have the first numbers, and each island is a shard after them. If it is not `exact`, some of its
    windows may have no valid pixels, which only the reader of their shard can tell.
    """

    grid: Grid
    kept: NDArray[np.bool_]
    islands: NDArray[np.int64]
    exact: bool = True

    @property
    def windows(self) -> int:
        """Number of windows that are looked at."""
        return int(self.kept.sum()) + len(self.islands)

    @property
    def skipped(self) -> int:
        """Number of the grid's windows that are not looked at."""
        return int(self.kept.size - self.kept.sum())

    @property
    def numbers(self) -> list[int]:
        """The numbers of all shards, ascending."""
        first = self.grid.shards
        of_grid = self.grid.shard_numbers(self.kept).tolist()
        return [*of_grid, *range(first, first + len(self.islands))]

    def core_px_of(self, numbers: NDArray[np.int64]) -> int:
        """Return the number of grid pixels in the cores of the given shards."""
        return int(self.core_px_each(numbers).sum())

    def windows_of(self, numbers: NDArray[np.int64]) -> int:
        """Return the number of windows in the given shards."""
        return int(self.windows_each(numbers).sum())

    def core_px_each(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of grid pixels in the cores of each of the given shards."""
        x, y = self.grid.columns, self.grid.rows
        across, down = x.core_stops - x.core_starts, y.core_stops - y.core_starts
        in_shards = self._by_shard(self.kept * across[None, :] * down[:, None])
        each = np.append(in_shards, self.islands[:, 2] * self.islands[:, 3])
        return each[numbers].astype(np.int64)

    def windows_each(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of windows in each of the given shards."""
        in_shards = self._by_shard(self.kept)
        each = np.append(in_shards, np.ones(len(self.islands), np.int64))
        return each[numbers].astype(np.int64)

    def _by_shard(self, values: NDArray[np.generic]) -> NDArray[np.int64]:
        """Add up values of windows (rows, columns) for each shard, in order of number."""
        side, (rows, columns) = self.grid.side, self.grid.shape
        sums = np.add.reduceat(values, np.arange(0, rows, side), axis=0, dtype=np.int64)
        by_shard: NDArray[np.int64] = np.add.reduceat(sums, np.arange(0, columns, side), axis=1)
        return by_shard.ravel()

    def shard(self, number: int) -> Shard:
        """Return a shard by its number."""
        if number < self.grid.shards:
            return self.grid.shard(number, self.kept)
        column, row, width, height = self.islands[number - self.grid.shards].tolist()
        window = Window(column, row, self.grid.fitted(width), self.grid.fitted(height))
        return Shard(number, (Tile(window, Window(column, row, width, height), alone=True),))
