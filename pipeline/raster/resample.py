"""Resample pixels to a grid that differs in scale and offset only.

The definition, for each axis alone, rows first:

- To a finer grid: linear interpolation between the centres of the two nearest source pixels. At an
  edge of the raster, the outermost pixel counts alone.
- To a coarser grid: the mean of the source pixels under a grid pixel, weighted by the length of
  each that is covered.
- Only valid source pixels contribute. With the mask as weights `m` and the weights `w` of both
  axes, a grid pixel is `sum(w m value) / sum(w m)`. It is valid if `sum(w m) >= 1/2` and its centre
  lies on the raster.

Weights are whole numbers of 2**-16 (or 2**-12, see `BYTES`), and their sum is exactly 1. So for
integers of up to 16 bits every product and every sum is a number that the floating-point type
holds: the result does not depend on the order of the sums. It is the same by matrix products
here, and by gathers on a GPU (`scenesweep.model.inference.resample`). The weights of a grid pixel
depend on its number alone, so its value does not depend on the window that is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from scenesweep.model.inference.source_windows import Taps

_BLOCK_PX, _SOURCE_PX = 32, 64
"""Most grid pixels and most source pixels, roughly, along an axis of one matrix product: larger
products multiply more zeros, and hold more source pixels as floating-point numbers."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How exact the arithmetic is.

    `row_bits` and `column_bits` are the bits of the weights. After the rows, values are rounded to
    `kept_bits` below one; None does not round. `unit` is the value of a valid pixel in the mask,
    and `most` the largest value of a result.
    """

    dtype: type[np.floating[Any]]
    row_bits: int
    kept_bits: int | None
    column_bits: int
    unit: int
    most: float


BYTES = Precision(np.float32, row_bits=16, kept_bits=4, column_bits=12, unit=256, most=255)
"""For uint8. float32 holds whole numbers up to 2**24: 256 * 2**16 and 256 * 2**4 * 2**12."""

WIDE = Precision(np.float64, row_bits=16, kept_bits=None, column_bits=16, unit=1, most=np.inf)
"""For all other types. float64 holds 2**53, and 16 + 16 + 16 bits are needed at most."""

LEAST_SHARE = 1e-6
"""Pixels without valid source pixels are divided by it: they are not valid."""


def precision_for(dtype: np.dtype[np.generic] | str) -> Precision:
    """Return the arithmetic for values of a type."""
    return BYTES if np.dtype(dtype) == np.uint8 else WIDE


@dataclass(frozen=True, slots=True)
class Alignment:
    """One axis of a grid over a raster of `size` pixels.

    Grid pixel i spans source pixels `i * scale + offset` to `(i + 1) * scale + offset`.
    """

    size: int
    scale: float
    offset: float = 0.0

    def taps(self, start: int, stop: int, *, bits: int) -> Taps:
        """Return the taps of grid pixels `start` up to `stop`."""
        number = np.arange(start, stop)
        index, share = self._two(number) if self.scale < 1 else self._under(number)
        # Rounded sums instead of rounded weights: so the weights add up to one.
        sums = np.rint(np.cumsum(share, axis=1) * 2**bits)
        weight = np.diff(sums, axis=1, prepend=0) / 2**bits
        centre = (number + 0.5) * self.scale + self.offset
        weight[(centre < 0) | (centre >= self.size)] = 0
        return Taps(np.clip(index, 0, self.size - 1), weight)

    def _two(self, number: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the two nearest pixels of each grid pixel, and their shares."""
        place = (number + 0.5) * self.scale + (self.offset - 0.5)
        low = np.floor(place)
        share = np.stack([1 - (place - low), place - low], axis=1)
        return np.stack([low, low + 1], axis=1).astype(np.int64), share

    def _under(self, number: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the pixels under each grid pixel, and the share of its length on each."""
        low = np.clip(number * self.scale + self.offset, 0, self.size)[:, None]
        high = np.clip((number + 1) * self.scale + self.offset, 0, self.size)[:, None]
        index = np.floor(low) + np.arange(math.ceil(self.scale) + 1)
        covered = np.maximum(np.minimum(high, index + 1) - np.maximum(low, index), 0)
        total = np.maximum(high - low, np.finfo(np.float64).tiny)
        return index.astype(np.int64), covered / total


def working_bytes(
    dtype: np.dtype[np.generic] | str, bands: int, *, width: int, scale: float
) -> float:
    """Estimate the memory of `resample` beside its arguments and its result, in bytes.

    `width` is in source pixels, and `scale` in source pixels per grid pixel along columns.
    """
    rows = _SOURCE_PX + _BLOCK_PX + 2 * scale
    return 3 * rows * width * (bands + 1) * np.dtype(precision_for(dtype).dtype).itemsize


def resample(
    values: NDArray[np.generic], valid: NDArray[np.bool_] | None, *, rows: Taps, columns: Taps
) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.bool_] | None]:
    """Resample (bands, H, W) source pixels to the grid pixels of the taps.

    The taps count from the first pixel of `values`, and have the bits of `precision_for` the type.
    `valid` (H, W) is None if all source pixels are valid. The result is uint8 for uint8, else
    float32; it is None instead of a mask if all its pixels are valid. Pixels that are not valid
    have any value.
    """
    precision = precision_for(values.dtype)
    if valid is None and not (rows.complete and columns.complete):
        valid = np.ones(values.shape[1:], np.bool_)
    size = len(rows.index), len(columns.index)
    result = np.empty((len(values), *size), np.uint8 if precision is BYTES else np.float32)
    known = None if valid is None else np.ones(size, np.bool_)
    kept = 2.0 ** (precision.kept_bits or 0)
    across = _blocks(columns, precision, 1 / kept)
    with _matrix_threads().limit(limits=1, user_api="blas"):
        for block in _blocks(rows, precision, kept):
            weights = None if valid is None else valid[block.source]
            for run in _runs(across, weights, block.complete):
                part = values[:, block.source, run.source]
                weighed = weights[:, run.source] if run.masked and weights is not None else None
                pixels, found = _resampled(
                    part, weighed, rows=block, columns=run, precision=precision
                )
                result[:, block.grid, run.grid] = pixels
                if known is not None and found is not None:
                    known[block.grid, run.grid] = found
    return result, None if known is None or known.all() else known


@cache
def _matrix_threads() -> ThreadpoolController:
    """Return what limits the threads of matrix products.

    These products are small: a second thread takes up to four times the processor time and saves
    no time.
    """
    return ThreadpoolController()


def _resampled(
    values: NDArray[np.generic],
    weights: NDArray[np.bool_] | None,
    *,
    rows: _Block,
    columns: _Run,
    precision: Precision,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_] | None]:
    """Resample the source pixels of a block of rows and a run of columns."""
    exact = values.dtype.kind in "ui" and values.dtype.itemsize <= 2
    down = _down(_layers(values, weights, precision), rows, exact)
    if precision.kept_bits is not None:
        np.rint(down, out=down)
    summed, known = _across(down, columns, exact), None
    if weights is not None:
        share = summed[-1] / precision.unit
        known, summed = share >= 0.5, summed[:-1]
        summed /= np.maximum(share, LEAST_SHARE)
        np.minimum(summed, precision.most, out=summed)
    return np.rint(summed, out=summed) if precision is BYTES else summed, known


@dataclass(frozen=True, slots=True)
class _Block:
    """Neighbouring grid pixels along one axis, and the source pixels that they need.

    `index` and `weight` are taps that count from the first of these source pixels. `matrix` has
    the same weights as (grid pixels, source pixels). Weights are multiplied by a power of two.
    """

    grid: slice
    source: slice
    index: NDArray[np.int64]
    weight: NDArray[np.floating[Any]]
    matrix: NDArray[np.floating[Any]]
    complete: bool


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring blocks of columns, all with the mask as weights, or all without.

    `grid` and `source` are their pixels; the blocks count from the first of these.
    """

    grid: slice
    source: slice
    blocks: tuple[_Block, ...]
    masked: bool


def _runs(blocks: list[_Block], weights: NDArray[np.bool_] | None, complete: bool) -> list[_Run]:
    """Divide the columns into runs: only those with an invalid source pixel need the mask.

    `complete` says whether the centres of all rows are on the raster.
    """
    if weights is None:
        return [_run(blocks, masked=False)]
    columns = np.logical_and.reduce(weights, axis=0)
    masked = [not (complete and b.complete and columns[b.source].all()) for b in blocks]
    by_mask = groupby(zip(blocks, masked, strict=True), key=lambda pair: pair[1])
    return [_run([block for block, _ in pairs], masked=mask) for mask, pairs in by_mask]


def _run(blocks: list[_Block], *, masked: bool) -> _Run:
    grid = slice(blocks[0].grid.start, blocks[-1].grid.stop)
    source = slice(min(b.source.start for b in blocks), max(b.source.stop for b in blocks))
    moved = tuple(
        replace(
            block,
            grid=slice(block.grid.start - grid.start, block.grid.stop - grid.start),
            source=slice(block.source.start - source.start, block.source.stop - source.start),
        )
        for block in blocks
    )
    return _Run(grid, source, moved, masked)


def _blocks(taps: Taps, precision: Precision, factor: float) -> list[_Block]:
    """Cut the grid pixels of an axis into blocks."""
    blocks = []
    step = min(_BLOCK_PX, max(1, _SOURCE_PX // (taps.index.shape[1] - 1)))
    for start in range(0, len(taps.index), step):
        part = taps.of(slice(start, start + step))
        first, last = part.span
        index, weight = part.index - first, (part.weight * factor).astype(precision.dtype)
        matrix = np.zeros((len(index), last - first), precision.dtype)
        # two taps meet in one pixel at the edge of the raster
        np.add.at(matrix, (np.arange(len(index))[:, None], index), weight)
        grid, source = slice(start, start + len(index)), slice(first, last)
        blocks.append(_Block(grid, source, index, weight, matrix, part.complete))
    return blocks


def _layers(
    values: NDArray[np.generic], valid: NDArray[np.bool_] | None, precision: Precision
) -> NDArray[np.floating[Any]]:
    """Return values as floating point; with a mask, invalid ones are 0 and it is the last layer."""
    if valid is None:
        return values.astype(precision.dtype)
    layers = np.empty((len(values) + 1, *values.shape[1:]), precision.dtype)
    layers[:-1], layers[-1] = values, precision.unit
    if values.dtype.kind == "f":
        layers[:-1][~np.isfinite(layers[:-1])] = 0  # 0 times infinity is not 0
    layers *= valid
    return layers


def _down(
    layers: NDArray[np.floating[Any]], block: _Block, exact: bool
) -> NDArray[np.floating[Any]]:
    """Weigh the rows of (layers, rows, W): the result has those of the block."""
    if exact:
        return block.matrix @ layers
    down = np.zeros((len(layers), len(block.index), layers.shape[2]), layers.dtype)
    for index, weight in zip(block.index.T, block.weight.T, strict=True):
        down += layers[:, index] * weight[:, None]
    return down


def _across(layers: NDArray[np.floating[Any]], run: _Run, exact: bool) -> NDArray[np.floating[Any]]:
    """Weigh the columns of (layers, rows, W): the result has those of the run."""
    lines = layers.reshape(-1, layers.shape[2])
    across = np.zeros((len(lines), run.grid.stop - run.grid.start), layers.dtype)
    for block in run.blocks:
        source, into = lines[:, block.source], across[:, block.grid]
        if exact:
            np.matmul(source, block.matrix.T, out=into)
        else:
            for index, weight in zip(block.index.T, block.weight.T, strict=True):
                into += source[:, index] * weight
    return across.reshape(*layers.shape[:2], across.shape[1])
