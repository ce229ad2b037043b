"""A quality raster of a scene, which says which of its ground clouds, shadows or snow hide.

It has its own grid: Sentinel-2's scene classification has pixels of 20 m, beside bands of 10 m.
The share of a box that is masked is exact, up to a rounding of box edges to 1/1024 of its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rasterio import windows

from scenesweep.pipeline.geometry.georef import between, corners, to_map, to_pixels
from scenesweep.pipeline.raster.pixels import Pixels, open_scene
from scenesweep.pipeline.scene import Scene

_TILE_PX, _HALO_PX = 2_048, 512  # boxes of up to 2 * _HALO_PX are read with a tile
_PARTS = 1_024  # of a pixel: box edges become whole numbers, so that sums are exact
_LARGE_PX = 8_192  # of longer boxes, every second pixel or fewer are read

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rule:
    """Which pixels are masked: in one of the `bands`, a value is listed or one of the bits is set.

    `bands` are 1-based, bits count from 0, the lowest.
    """

    bands: tuple[int, ...]
    values: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Quality:
    """A quality raster, inspected, and the rule that its pixels are read with.

    Pixels with its nodata value and ground outside it are not masked.
    """

    raster: Scene
    rule: Rule


def masked_shares(quality: Quality, boxes: Floats, scene: Scene) -> Floats:
    """Return the share of each box (N, 4), in pixels of a scene, that is masked.

    It is NaN for a box whose centre lies outside the quality raster. If the two rasters differ in
    CRS or rotation, it is that of the smallest upright box of the quality raster around the box.
    """
    raster = quality.raster
    own = _in_raster(boxes, scene, raster)
    shares = np.full(len(own), np.nan)
    centres = (own[:, :2] + own[:, 2:]) / 2
    inside = ((centres >= 0) & (centres < [raster.width, raster.height])).all(axis=1)
    small = (own[:, 2:] - own[:, :2] <= 2 * _HALO_PX).all(axis=1)
    with open_scene(raster, keep=True) as pixels:
        reader = _Reader(pixels, quality)
        for tile, members in _by_tile(centres, np.flatnonzero(inside & small)):
            shares[members] = reader.shares_in_tile(own[members], tile)
        for number in np.flatnonzero(inside & ~small).tolist():
            shares[number] = reader.share_of_large(own[number])
    return shares


def _in_raster(boxes: Floats, scene: Scene, raster: Scene) -> Floats:
    """Move boxes (N, 4) from the pixels of a scene to those of another raster."""
    points = corners(boxes)
    if scene.crs and scene.transform and raster.crs and raster.transform:
        on_map = between(to_map(points, scene.transform), scene.crs, raster.crs)
        points = to_pixels(on_map, raster.transform)
    else:  # pictures of the same ground
        points = points * [raster.width / scene.width, raster.height / scene.height]
    return np.hstack([points.min(axis=1), points.max(axis=1)])


def _by_tile(
    centres: Floats, numbers: NDArray[np.intp]
) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
    """Yield column and row of each tile with the numbers of the centres that lie in it."""
    if not len(numbers):
        return
    tiles = (centres[numbers] // _TILE_PX).astype(np.int64)
    order = np.lexsort(tiles.T)
    tiles, numbers = tiles[order], numbers[order]
    changes = np.flatnonzero((np.diff(tiles, axis=0) != 0).any(axis=1)) + 1
    for first, last in pairwise([0, *changes.tolist(), len(numbers)]):
        column, row = tiles[first].tolist()
        yield (column, row), numbers[first:last]


@dataclass(frozen=True, slots=True)
class _Reader:
    pixels: Pixels
    quality: Quality

    def shares_in_tile(self, boxes: Floats, tile: tuple[int, int]) -> Floats:
        """Return the shares of boxes whose centres lie in a tile.

        The same pixels are read for any boxes of a tile, and all sums are whole numbers. So the
        share of a box does not depend on the other boxes.
        """
        size = self.pixels.width, self.pixels.height
        low = [max(0, index * _TILE_PX - _HALO_PX) for index in tile]
        high = [
            min(length, (index + 1) * _TILE_PX + _HALO_PX)
            for index, length in zip(tile, size, strict=True)
        ]
        window = windows.Window(low[0], low[1], high[0] - low[0], high[1] - low[1])
        edges = np.rint((boxes - low * 2) * _PARTS).astype(np.int64)
        edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
        return _shares(self._masked(window), edges)

    def share_of_large(self, box: Floats) -> float:
        """Return the share of a box that is too large for a tile, to whole pixels at its edges."""
        low = np.floor(np.maximum(box[:2], 0)).astype(int)
        high = np.ceil(np.minimum(box[2:], [self.pixels.width, self.pixels.height])).astype(int)
        width, height = (high - low).tolist()
        shape = min(height, _LARGE_PX), min(width, _LARGE_PX)
        window = windows.Window(low[0], low[1], width, height)
        covered = width * height / float(np.prod(box[2:] - box[:2]))
        return min(1.0, float(self._masked(window, shape).mean()) * covered)

    def _masked(
        self, window: windows.Window, shape: tuple[int, int] | None = None
    ) -> NDArray[np.bool_]:
        rule = self.quality.rule
        bands = list(rule.bands)
        out_shape = None if shape is None else (len(bands), *shape)
        found = self.pixels.read(bands, window=window, out_shape=out_shape)
        masked: NDArray[np.bool_] = np.isin(found, rule.values)
        if rule.bits:
            unsigned = np.dtype(f"u{found.dtype.itemsize}")
            bits = sum(1 << bit for bit in rule.bits) & int(np.iinfo(unsigned).max)
            set_bits = np.bitwise_and(found.view(unsigned), unsigned.type(bits))
            masked[set_bits != 0] = True
        nodata = self.quality.raster.nodata
        if nodata is not None:
            masked[np.equal(found, nodata)] = False
        result: NDArray[np.bool_] = np.logical_or.reduce(masked, axis=0)
        return result


def _shares(masked: NDArray[np.bool_], edges: NDArray[np.int64]) -> Floats:
    """Return the masked share of boxes (N, 4) with edges in parts of a pixel."""
    table = np.zeros((masked.shape[0] + 1, masked.shape[1] + 1), np.int64)
    np.cumsum(masked, axis=1, out=table[1:, 1:])
    np.cumsum(table, axis=0, out=table)
    limits = np.array([masked.shape[1], masked.shape[0]] * 2) * _PARTS
    left, top, right, bottom = np.clip(edges, 0, limits).T
    sums = (
        _integral(table, right, bottom)
        - _integral(table, left, bottom)
        - _integral(table, right, top)
        + _integral(table, left, top)
    )
    areas = (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
    shares: Floats = sums / areas
    return shares


def _integral(
    table: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the masked area above and left of points, in parts of a pixel by parts of a pixel.

    `table` is the summed-area table; within a pixel the area is bilinear.
    """
    column = np.minimum(x // _PARTS, table.shape[1] - 2)
    row = np.minimum(y // _PARTS, table.shape[0] - 2)
    dx, dy = x - column * _PARTS, y - row * _PARTS
    corner, right = table[row, column], table[row, column + 1]
    below, last = table[row + 1, column], table[row + 1, column + 1]
    return (
        corner * (_PARTS - dx) * (_PARTS - dy)
        + right * dx * (_PARTS - dy)
        + below * (_PARTS - dx) * dy
        + last * dx * dy
    )
