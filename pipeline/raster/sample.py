"""Sample the valid pixels of a scene, for its stretch, its mean colour and the share of ground.

A decimated read is such a sample. It decodes all blocks of a file without overviews. If these are
too many, some blocks are read instead: as many in each part of the file, always the same ones, and
none that are known to be empty (`pipeline.raster.survey`). Of their pixels, one in so many counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio import windows

from scenesweep.pipeline.raster.opening import open_raster
from scenesweep.pipeline.raster.pixels import Pixels, open_scene
from scenesweep.pipeline.raster.survey import (
    EMPTY,
    Survey,
    block_states,
    covered_px,
    shrunk_by,
    touched_px,
)
from scenesweep.pipeline.raster.validity import read_decimated, read_with_validity
from scenesweep.pipeline.scene import Part, Scene

SAMPLE_BYTES = 1_500_000_000
"""Most bytes of decoded pixels for a sample, which is also the limit for a decimated read."""

_BLOCKS = (256, 1024)  # blocks of a sample; the second if the first has too few valid pixels
_FEW_PX, _SAMPLED_PX = 10_000, 1_000_000
_GOLDEN = (math.sqrt(5) - 1) / 2


def sample_valid(scene: Scene, bands: Sequence[int], *, most: int) -> NDArray[np.generic]:
    """Return values (bands, N) of valid pixels of 1-based bands, in no particular order.

    They are those of a read that is decimated to `most` pixels a side, or of some blocks.
    """
    step = max(1, math.ceil(max(scene.width, scene.height) / most))
    if _decimated_bytes(scene, step) > SAMPLE_BYTES:
        return _of_blocks(scene, bands)
    shape = math.ceil(scene.height / step), math.ceil(scene.width / step)
    with open_scene(scene) as dataset:
        return _valid(*read_decimated(dataset, list(bands), shape))


def sampled_share(scene: Scene) -> float:
    """Return the share of valid pixels, estimated from the blocks of a sample."""
    blocks = _Blocks.of(scene, _BLOCKS[0])
    with open_scene(scene) as dataset:
        shares = [float((dataset.dataset_mask(window=w) > 0).mean()) for w in blocks.chosen()]
    return float(np.mean(shares)) * len(blocks.used) / blocks.count if shares else 0.0


def _decimated_bytes(scene: Scene, step: int) -> float:
    """Estimate the bytes of pixels that a decimated read of all bands decodes."""
    total = 0.0
    for part in scene.parts:
        columns = np.arange(0, part.width, max(1, int(step / part.step[0])))
        rows = np.arange(0, part.height, max(1, int(step / part.step[1])))
        shrink = shrunk_by(part.overviews, step / max(part.step))
        touched = touched_px(columns, rows, scene.block) / shrink**2
        if scene.driver == "VRT":
            with open_raster(part.href, scene.drivers) as dataset:
                touched = min(touched, covered_px(dataset))
        total += touched * part.bands * np.dtype(scene.dtype).itemsize
    return total


def _of_blocks(scene: Scene, bands: Sequence[int]) -> NDArray[np.generic]:
    for count in _BLOCKS:
        blocks = _Blocks.of(scene, count)
        with open_scene(scene) as dataset:
            read = [
                _thinned(dataset, list(bands), window, stride=blocks.stride, masked=scene.masked)
                for window in blocks.chosen()
            ]
        nothing = np.zeros((len(bands), 0), scene.dtype)  # of a scene without a written block
        values = np.concatenate([nothing, *read], axis=1)
        if values.shape[1] >= _FEW_PX:
            break
    return values


def _thinned(
    dataset: Pixels, bands: list[int], window: windows.Window, *, stride: int, masked: bool
) -> NDArray[np.generic]:
    """Return the valid ones of every so many pixels of a window along both axes."""
    pixels, valid = read_with_validity(dataset, bands, window, masked=masked)
    if valid is None:
        valid = np.ones(pixels.shape[1:], np.bool_)
    return _valid(pixels[:, ::stride, ::stride], valid[::stride, ::stride])


def _valid(pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.generic]:
    if pixels.dtype.kind == "f":
        valid = valid & np.isfinite(pixels).all(axis=0)
    return pixels[:, valid]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The blocks of a scene's files, counted file by file and row by row, and those to choose from.

    `shape` is rows and columns of pixels of a block; `used` are the numbers of the blocks that may
    have valid pixels; `most` of them are chosen.
    """

    areas: tuple[Part, ...]
    shape: tuple[int, int]
    used: NDArray[np.int64] | range
    most: int

    @classmethod
    def of(cls, scene: Scene, most: int) -> _Blocks:
        """Return the blocks of a scene; those of the first file stand for all its files."""
        areas = scene.parts if scene.join == "mosaic" else (Part("", scene.width, scene.height, 1),)
        item = len(scene.bands) * np.dtype(scene.dtype).itemsize
        block_bytes = scene.block[0] * scene.block[1] * item
        most = min(most, max(1, SAMPLE_BYTES // block_bytes))
        count = sum(math.prod(_grid(area, scene.block)) for area in areas)
        used = _not_empty(scene) if len(scene.parts) == 1 else None
        return cls(areas, scene.block, range(count) if used is None else used, most)

    @property
    def count(self) -> int:
        return sum(math.prod(_grid(area, self.shape)) for area in self.areas)

    @property
    def stride(self) -> int:
        """Every so many pixels of a block count, along both axes."""
        pixels = min(self.most, len(self.used)) * math.prod(self.shape)
        return max(1, math.ceil(math.sqrt(pixels / _SAMPLED_PX)))

    def chosen(self) -> Iterator[windows.Window]:
        """Give the chosen blocks as windows of the scene, in the order of their files.

        Each is in an equal share of all blocks, at a place in it that varies, so that they are not
        all in one column of blocks.
        """
        each = max(1.0, len(self.used) / self.most)
        for i in range(min(self.most, len(self.used))):
            place = (i + ((i + 0.5) * _GOLDEN) % 1) * each if each > 1 else i
            yield self._window(int(self.used[min(len(self.used) - 1, int(place))]))

    def _window(self, number: int) -> windows.Window:
        for area in self.areas:
            down, across = _grid(area, self.shape)
            if number < down * across:
                break
            number -= down * across
        (row, column), (high, wide) = divmod(number, across), self.shape
        x, y = column * wide, row * high
        width, height = min(wide, area.width - x), min(high, area.height - y)
        return windows.Window(int(area.col_off) + x, int(area.row_off) + y, width, height)


def _grid(area: Part, block: tuple[int, int]) -> tuple[int, int]:
    return -(-area.height // block[0]), -(-area.width // block[1])


def _not_empty(scene: Scene) -> NDArray[np.int64] | None:
    """Return the numbers of the blocks of a file that may have valid pixels; None if unknown."""
    href = scene.parts[0].href
    with open_raster(href, scene.drivers) as dataset:
        states = block_states(href, dataset, Survey(SAMPLE_BYTES))
    return None if states is None else np.flatnonzero(states != EMPTY)
