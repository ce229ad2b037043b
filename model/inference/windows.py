"""Windows of equal size in blocks of pixels: what a detector looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from scenesweep.model.inference.host_copy import copy
from scenesweep.model.inference.source_windows import SourceWindows


@dataclass(frozen=True, slots=True)
class Windows:
    """N windows of `shape` (bands, height, width) in one block of pixels; they may overlap.

    `pixels` is uint8 and contiguous. `starts` is (N, 3) int64: the index of a window's first pixel
    in the flat block, the step from band to band, and the step from row to row.
    """

    pixels: NDArray[np.uint8]
    starts: NDArray[np.int64]
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def block_size(self) -> int:
        """Number of values in the block."""
        return self.pixels.size

    def part(self, first: int, last: int) -> Windows:
        """Return the windows from `first` up to `last` without copying pixels."""
        return Windows(self.pixels, self.starts[first:last], self.shape)

    def chips(self) -> NDArray[np.uint8]:
        """Return a copy of the windows' pixels (N, bands, height, width)."""
        flat = self.pixels.reshape(-1)
        chips = np.empty((len(self), *self.shape), np.uint8)
        for chip, (start, band, row) in zip(chips, self.starts.tolist(), strict=True):
            chip[:] = as_strided(flat[start:], self.shape, (band, row, 1), writeable=False)
        return chips

    def compact(self) -> Iterator[Windows]:
        """Yield windows whose block is not larger than their chips: these, or copies."""
        is_compact = self.block_size <= len(self) * int(np.prod(self.shape))
        yield self if is_compact else chips_of(self.chips())


AnyWindows = Windows | SourceWindows
"""Windows in pixels that are ready, or in source pixels that the detector develops."""


def windows_of(
    pixels: NDArray[np.uint8], corners: NDArray[np.integer], *, size: tuple[int, int]
) -> Windows:
    """Return windows of `size` (height, width) in pixels (bands, H, W).

    `corners` is (N, 2): row and column of the top-left pixel of each window.
    """
    bands, height, width = pixels.shape
    corners = np.asarray(corners, np.int64).reshape(-1, 2)
    last = np.array([height - size[0], width - size[1]])
    if ((corners < 0) | (corners > last)).any():
        raise ValueError(f"expected windows of {size} inside {(height, width)}, got {corners}")
    starts = np.empty((len(corners), 3), np.int64)
    starts[:, 0] = corners[:, 0] * width + corners[:, 1]
    starts[:, 1:] = height * width, width
    return Windows(np.ascontiguousarray(pixels), starts, (bands, *size))


def chips_of(chips: NDArray[np.uint8]) -> Windows:
    """Return chips (N, bands, height, width) as windows, without a copy if they are contiguous."""
    count, bands, height, width = chips.shape
    starts = np.empty((count, 3), np.int64)
    starts[:, 0] = np.arange(count) * (bands * height * width)
    starts[:, 1:] = height * width, width
    return Windows(np.ascontiguousarray(chips), starts, (bands, height, width))


def in_batches(parts: Sequence[AnyWindows], batch: int) -> Iterator[list[AnyWindows]]:
    """Split windows of one shape into lists of `batch` windows, the last one shorter, in order."""
    current: list[AnyWindows] = []
    room = batch
    for windows in parts:
        first = 0
        while first < len(windows):
            last = min(first + room, len(windows))
            current.extend(windows.part(first, last).compact())
            room -= last - first
            first = last
            if not room:
                yield current
                current, room = [], batch
    if current:
        yield current


def fill(
    parts: Sequence[AnyWindows], pixels: NDArray[np.uint8], starts: NDArray[np.int64]
) -> list[slice]:
    """Copy blocks and starts of windows into flat buffers; return the place of each block.

    Blocks of source pixels are not made here: their place stays as it is. The starts of unused
    rows become 0: these windows see some pixels of the first block.
    """
    places = []
    pixels_used = windows_used = 0
    for windows in parts:
        place = slice(pixels_used, pixels_used + windows.block_size)
        if isinstance(windows, Windows):
            copy(pixels[place], windows.pixels.reshape(-1))
        rows = starts[windows_used : windows_used + len(windows)]
        rows[:] = windows.starts
        rows[:, 0] += pixels_used
        pixels_used = place.stop
        windows_used += len(windows)
        places.append(place)
    starts[windows_used:] = 0
    return places
