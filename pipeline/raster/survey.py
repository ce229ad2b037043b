"""Find out where a file has valid pixels, without decoding more of it than a scene's plan may.

A sample about every 16 px is enough for planning, but without overviews GDAL decodes all blocks for
it: minutes for 10 gigapixels. So a plan has a budget, and a file is surveyed in the first of these
ways that the budget allows:

1. GDAL samples the mask, from overviews where they exist.
2. Blocks that were never written, and compressed blocks with the bytes of a block that is known to
   be empty or full, are not decoded (`repeated_blocks`). The others are.
3. These others count as valid. Then the survey is not exact: it may only claim too much. Whoever
   reads the pixels has to look for valid ones.

The budget counts bytes of decoded pixels, not time: the same scene has the same plan everywhere.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rasterio import windows
from rasterio.enums import MaskFlags, Resampling
from rasterio.io import DatasetReader

from scenesweep.pipeline.raster.blocks import Blocks, read_blocks
from scenesweep.pipeline.raster.ground import WrittenPixels, sample_axes

if TYPE_CHECKING:
    from scenesweep.pipeline.raster.pixels import Pixels

SURVEY_BYTES = 1_500_000_000
"""Most bytes of decoded pixels for a survey: 4 to 11 seconds of a core, by codec."""

_SMALL = 32  # a block that may be constant is at least so many times smaller than its pixels
_MOST_HASHED, _HASHED_BYTES = 4_000_000, 256_000_000  # blocks and their bytes: 3 s of a core
_MOST_CONTENTS = 64  # different blocks that are decoded for all blocks that equal them
_MASK_SHARE = 4  # a mask of one bit takes so much less time than a byte of pixels

_SOURCE = re.compile(r"<[A-Za-z]+Source[ >]")
_DESTINATION = re.compile(r'<DstRect [^>]*xSize="([0-9.eE+]+)" ySize="([0-9.eE+]+)"')

UNKNOWN, EMPTY, FULL = 0, 1, 2
"""What is known of a block: nothing, no pixel is valid, all pixels are valid."""

States = NDArray[np.uint8]


@dataclass(slots=True)
class Survey:
    """What the survey of a scene may still decode, in bytes, and whether it knows all samples."""

    left_bytes: int = field(default_factory=lambda: SURVEY_BYTES)
    exact: bool = True

    def pay(self, cost: float) -> bool:
        """Take the cost from what is left; return False, and take nothing, if it is too much."""
        if cost > self.left_bytes:
            return False
        self.left_bytes -= int(cost)
        return True


def touched_px(
    columns: NDArray[np.integer], rows: NDArray[np.integer], block: tuple[int, int]
) -> int:
    """Return the pixels of all blocks (rows, columns of pixels) that samples touch."""
    high, wide = block
    return len(np.unique(rows // high)) * high * len(np.unique(columns // wide)) * wide


def shrunk_by(overviews: list[int] | tuple[int, ...], step: float) -> int:
    """Return the factor of the overview that GDAL reads for a sample every `step` pixels."""
    return max((factor for factor in overviews if factor <= step), default=1)


@dataclass(frozen=True, slots=True)
class SurveyedFile:
    """A file whose mask is read for a survey. Pixels are read as ever.

    `pixels` reads the file, `dataset` is the same file without the mask of unwritten blocks.
    """

    pixels: Pixels
    dataset: DatasetReader
    href: str
    survey: Survey

    @property
    def width(self) -> int:
        return self.pixels.width

    @property
    def height(self) -> int:
        return self.pixels.height

    def read(
        self,
        indexes: list[int],
        *,
        window: windows.Window | None = None,
        out_shape: tuple[int, ...] | None = None,
        resampling: Resampling = Resampling.nearest,
    ) -> NDArray[np.generic]:
        return self.pixels.read(indexes, window=window, out_shape=out_shape, resampling=resampling)

    def dataset_mask(
        self, *, window: windows.Window | None = None, out_shape: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        columns, rows = (
            np.clip(axis.astype(np.int64), 0, size - 1)
            for axis, size in zip(
                sample_axes((self.width, self.height), window, out_shape),
                (self.width, self.height),
                strict=True,
            )
        )
        step = min(_step(columns), _step(rows))
        shrink = shrunk_by(self.dataset.overviews(1), step)
        touched = touched_px(columns, rows, self.dataset.block_shapes[0]) / shrink**2
        touched = min(touched, covered_px(self.dataset))
        if self.survey.pay(touched * mask_bytes(self.dataset)):
            return self.pixels.dataset_mask(window=window, out_shape=out_shape)
        return self._by_blocks(columns, rows).astype(np.uint8) * np.uint8(255)

    def _by_blocks(self, columns: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which samples may be valid, from what is known of their blocks."""
        high, wide = self.dataset.block_shapes[0]
        down, across = rows // high, columns // wide
        states = self._states()
        valid = states[np.ix_(down, across)] != EMPTY
        lines, stacks = np.unique(down), np.unique(across)
        unknown = np.argwhere(states[np.ix_(lines, stacks)] == UNKNOWN)
        if not self.survey.pay(len(unknown) * high * wide * mask_bytes(self.dataset)):
            self.survey.exact = False
            return valid
        for line, stack in unknown.tolist():
            row, column = int(lines[line]), int(stacks[stack])
            mask = self.pixels.dataset_mask(window=self._block(row, column)) > 0
            ys, xs = _samples_in(down, row), _samples_in(across, column)
            valid[ys, xs] = mask[np.ix_(rows[ys] - row * high, columns[xs] - column * wide)]
        return valid

    def _states(self) -> States:
        states = block_states(self.href, self.dataset, self.survey)
        if states is not None:
            return states
        if isinstance(self.pixels, WrittenPixels):
            return np.where(self.pixels.written, UNKNOWN, EMPTY).astype(np.uint8)
        high, wide = self.dataset.block_shapes[0]
        return np.full((-(-self.height // high), -(-self.width // wide)), UNKNOWN, np.uint8)

    def _block(self, row: int, column: int) -> windows.Window:
        high, wide = self.dataset.block_shapes[0]
        x, y = column * wide, row * high
        return windows.Window(x, y, min(wide, self.width - x), min(high, self.height - y))


def mask_bytes(dataset: DatasetReader) -> float:
    """Return the bytes that are decoded for the mask of one pixel."""
    flags = dataset.mask_flag_enums
    if all(MaskFlags.all_valid in of_band for of_band in flags):
        return 0
    if _mask_is_in_pixels(dataset):
        return float(sum(np.dtype(kind).itemsize for kind in dataset.dtypes))
    return 1 / _MASK_SHARE


def covered_px(dataset: DatasetReader) -> float:
    """Return the pixels that the sources of a VRT cover: GDAL decodes no others."""
    if dataset.driver != "VRT":
        return math.inf
    document = "".join(dataset.tags(ns="xml:VRT").values())
    band, closed, _ = document.partition("</VRTRasterBand>")
    sizes = _DESTINATION.findall(band)
    if not closed or "subClass=" in band or len(sizes) != len(_SOURCE.findall(band)):
        return math.inf
    return sum(float(width) * float(height) for width, height in sizes)


def block_states(href: str, dataset: DatasetReader, survey: Survey) -> States | None:
    """Return what is known of the blocks (rows, columns) of a TIFF on disk; None if nothing is.

    Two blocks with the same bytes have the same pixels. So of all blocks that are the same, one is
    decoded.
    """
    path = Path(href)
    if dataset.driver != "GTiff" or not path.is_file() or not _mask_is_in_pixels(dataset):
        return None
    status = path.stat()
    repeated = _repeated_on_disk(str(path), status.st_size, status.st_mtime_ns)
    if repeated is None or repeated.blocks.shape != dataset.block_shapes[0]:
        return None
    blocks = repeated.blocks
    states = np.where(blocks.written, UNKNOWN, EMPTY).astype(np.uint8)
    one_block = blocks.shape[0] * blocks.shape[1] * mask_bytes(dataset)
    for members in repeated.groups if dataset.compression is not None else ():
        example = next((i for i in members.tolist() if _is_inside(blocks, i)), None)
        if example is None or not survey.pay(one_block):
            continue
        window = blocks.window(example)
        area = windows.Window(window.col_off, window.row_off, window.width, window.height)
        valid = dataset.dataset_mask(window=area) > 0
        if valid.all() or not valid.any():
            states.flat[members] = FULL if valid.all() else EMPTY
    return states


@dataclass(frozen=True, slots=True)
class _Repeated:
    """The blocks of a file, and groups of blocks with the same bytes, the largest group first."""

    blocks: Blocks
    groups: tuple[NDArray[np.int64], ...]


@lru_cache(maxsize=4)
def _repeated_on_disk(path: str, size: int, mtime_ns: int) -> _Repeated | None:
    """Compare the bytes of small blocks; size and time identify a file's version in the cache."""
    blocks = read_blocks(Path(path))
    count = 0 if blocks is None else blocks.planes * blocks.grid[0] * blocks.grid[1]
    if blocks is None or len(blocks.length) < count:
        return None
    lengths = blocks.length[:count].reshape(blocks.planes, -1).astype(np.int64)
    offsets = blocks.offset[:count].reshape(blocks.planes, -1).astype(np.int64)
    total = lengths.sum(axis=0)
    small = (total > 0) & (total * _SMALL <= blocks.shape[0] * blocks.shape[1])
    small &= np.isin(total, _repeated(total[small]))
    candidates = np.flatnonzero(small)[: _MOST_HASHED // blocks.planes]
    candidates = candidates[np.cumsum(total[candidates]) <= _HASHED_BYTES]
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    file = np.memmap(path, np.uint8, "r")
    for index in candidates.tolist():
        digest = hashlib.blake2b(digest_size=16)
        for offset, length in zip(offsets[:, index], lengths[:, index], strict=True):
            digest.update(length.tobytes())  # the same bytes may be cut differently into planes
            digest.update(file[offset : offset + length].tobytes())
        groups[digest.digest()].append(index)
    ordered = sorted((g for g in groups.values() if len(g) > 1), key=len, reverse=True)
    return _Repeated(blocks, tuple(np.array(group) for group in ordered[:_MOST_CONTENTS]))


def _repeated(values: NDArray[np.int64]) -> NDArray[np.int64]:
    unique, counts = np.unique(values, return_counts=True)
    return unique[counts > 1]


def _is_inside(blocks: Blocks, index: int) -> bool:
    """Return whether the image shows all pixels of a block, and does not cut it at its edge."""
    window = blocks.window(index)
    return (window.height, window.width) == blocks.shape


def _mask_is_in_pixels(dataset: DatasetReader) -> bool:
    """Return whether the mask of a block follows from its pixels: from nodata, or an alpha band."""
    return all(
        MaskFlags.nodata in flags or MaskFlags.alpha in flags for flags in dataset.mask_flag_enums
    )


def _step(samples: NDArray[np.int64]) -> float:
    return float(samples[-1] - samples[0]) / (len(samples) - 1) if len(samples) > 1 else np.inf


def _samples_in(blocks: NDArray[np.int64], block: int) -> slice:
    """Return which samples lie in a block, given the block of each sample, ascending."""
    start, stop = np.searchsorted(blocks, [block, block + 1])
    return slice(int(start), int(stop))
