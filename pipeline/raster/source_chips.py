"""Read the pixels of shards as the scene has them, for detectors that stretch and resample.

A reader then only decodes: on a GPU, the arithmetic costs little beside the network. The pixels of
the chips are the same to the bit, whoever computes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.inference.source_windows import Recipe, SourceWindows, Taps
from scenesweep.pipeline.geometry.grid import Shard, Window
from scenesweep.pipeline.raster.chips import (
    Chips,
    Source,
    clip,
    corners_of,
    grid_taps,
    read_shard,
    read_window,
    stretch_read,
)
from scenesweep.pipeline.raster.pixels import Pixels, open_scene
from scenesweep.pipeline.raster.resample import precision_for
from scenesweep.pipeline.raster.validity import Valid

_DTYPES = ("uint8", "int16", "uint16", "float32")
_MOST_BYTES_EACH = 8
"""Bytes of source values for each value of the grid; chips have 1. In a scene that is much finer
than the grid, decoding takes longer than resampling, and the detector would have to copy it all."""
_MOST_BYTES = 400_000_000
"""Most memory of a reader for a shard that travels as source pixels: it is all held at once."""


@dataclass(frozen=True, slots=True)
class SourceChips:
    """The pixels of one shard as the scene has them, and what makes its chips of them.

    `pixels` is (present bands, H, W) as in the scene. `valid` is (H, W) bool, None if all of these
    pixels are valid. `axes` are the taps of the rows and columns of `bounds`, None if the pixels
    are those of `bounds` itself.
    """

    shard: Shard
    bounds: Window
    pixels: NDArray[np.generic]
    valid: Valid
    axes: tuple[Taps, Taps] | None
    recipe: Recipe

    def windows(self) -> SourceWindows:
        """Return the shard's chips in the order of its tiles, without a copy of their pixels."""
        corners, size = corners_of(self.shard, self.bounds)
        shape = (len(self.recipe.fill), *size)
        return SourceWindows(self.pixels, self.valid, self.recipe, self.axes, corners, shape)

    def are_valid(self, y: NDArray[np.intp], x: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return which pixels at rows `y` (N,) and columns `x` (N,) of `bounds` are valid.

        It resamples the mask at these pixels only, with the sums of `resample`, which are exact.
        """
        if self.axes is None:
            return np.ones(len(y), np.bool_) if self.valid is None else self.valid[y, x]
        rows, columns = (taps.of_each(at) for taps, at in zip(self.axes, (y, x), strict=True))
        at = rows.index[:, :, None], columns.index[:, None, :]
        shape = np.broadcast_shapes(at[0].shape, at[1].shape)
        mask = np.ones(shape, np.bool_) if self.valid is None else self.valid[at]
        down = (rows.weight[:, :, None] * mask).sum(axis=1)
        precision = precision_for(self.pixels.dtype)
        if precision.kept_bits is not None:
            kept = precision.unit * 2.0**precision.kept_bits
            down = np.rint(down * kept) / kept
        share: NDArray[np.float64] = (down * columns.weight).sum(axis=1)
        return share >= 0.5


ShardChips = Chips | SourceChips
"""The chips of one shard: ready, or in source pixels that the detector develops."""


def read_for_detector(source: Source, shard: Shard, *, as_source: bool) -> ShardChips:
    """Read the pixels of a shard once; `as_source` says that the detector develops source pixels.

    Raises:
        UnreadableScene: when the file is truncated or corrupt in the shard.
    """
    return (read_source if as_source and travels(source, shard) else read_shard)(source, shard)


def travels(source: Source, shard: Shard) -> bool:
    """Say whether the pixels of a shard may go to a detector that develops them.

    They do if there is something to compute, and if they are not many more bytes than chips.
    """
    (sx, sy), dtype = source.scale, np.dtype(source.scene.dtype)
    if (source.scale == (1.0, 1.0) and source.stretch is None) or dtype.name not in _DTYPES:
        return False
    bands, bounds = len(source.present), shard.bounds
    pixels = math.ceil(bounds.width * sx + 2) * math.ceil(bounds.height * sy + 2)
    masks = len(source.scene.bands) + 2 if source.scene.masked else 0
    each = bands * (dtype.itemsize + (dtype.kind == "f")) + masks
    few = sx * sy * dtype.itemsize <= _MOST_BYTES_EACH
    return few and pixels * each <= _MOST_BYTES


def read_source(source: Source, shard: Shard) -> SourceChips:
    """Read the source pixels of a shard once; raises what `read_shard` raises."""
    stretch = stretch_read(source)
    ranges = None if stretch is None else stretch.ranges
    recipe = Recipe(tuple(source.present), ranges, source.fill)
    axes: tuple[Taps, Taps] | None = None
    with open_scene(source.scene, keep=True) as dataset:
        if source.scale == (1.0, 1.0):
            pixels, valid = _read_padded(dataset, source, shard.bounds)
        else:
            (top, rows), (left, columns) = grid_taps(dataset, source, shard.bounds)
            (height, width) = (taps.span[1] for taps in (rows, columns))
            pixels, valid = read_window(dataset, source, Window(left, top, width, height))
            axes = rows, columns
    return SourceChips(shard, shard.bounds, pixels, valid, axes, recipe)


def _read_padded(
    dataset: Pixels, source: Source, bounds: Window
) -> tuple[NDArray[np.generic], Valid]:
    """Read a window of the scene; pixels beyond its edges are 0 and not valid."""
    inside = clip(bounds, dataset.width, dataset.height)
    pixels, valid = read_window(dataset, source, inside)
    if inside == bounds:
        return pixels, valid
    top, left = inside.row_off - bounds.row_off, inside.col_off - bounds.col_off
    part = slice(top, top + inside.height), slice(left, left + inside.width)
    padded = np.zeros((len(pixels), bounds.height, bounds.width), pixels.dtype)
    padded_valid = np.zeros(padded.shape[1:], np.bool_)
    padded[:, *part] = pixels
    padded_valid[part] = True if valid is None else valid
    return padded, padded_valid
