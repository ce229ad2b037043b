"""Make the uint8 pixels of windows from source pixels, on a device or here.

    bytes of a batch, on the host -> one upload -> `Source` (views) -> `develop` -> block of uint8

The result equals that of readers on CPUs to the bit; `scenesweep.pipeline.raster.resample` has the
definition. Arrays differ in shape from shard to shard, so this is not part of a CUDA graph; but
nothing in it depends on data or reads the host, so it is queued before the graph and the host goes
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenesweep.model.inference.host_copy import copy
from scenesweep.model.inference.resample import (
    AxisTaps,
    look_up,
    resample_bytes,
    resample_wide,
    stretch,
    table_of,
)
from scenesweep.model.inference.source_windows import SourceWindows

_ALIGNED = 64
"""Arrays start at multiples of so many bytes: each type can be viewed there."""


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors of `SourceWindows` on a device: what they need, and None for what they do not.

    `pixels` of uint16 are int16 with the same bits, and `unsigned` says so. `valid` is None if all
    pixels are valid, and `inside` says that no pixel of the block is outside the raster. `low` and
    `factor` are those of `stretch`, `present` (present bands,) int64 and `fill` (bands,) uint8.
    """

    pixels: Tensor
    unsigned: bool
    inside: bool
    present: Tensor
    fill: Tensor
    valid: Tensor | None = None
    rows: AxisTaps | None = None
    columns: AxisTaps | None = None
    low: Tensor | None = None
    factor: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Staged:
    """Where the arrays of `SourceWindows` lie in a buffer of bytes: name, first byte, array."""

    windows: SourceWindows
    arrays: tuple[tuple[str, int, NDArray[np.generic]], ...]
    end: int

    def write(self, memory: NDArray[np.uint8]) -> None:
        """Copy the arrays to their places."""
        for _, start, array in self.arrays:
            place = memory[start : start + array.nbytes].view(array.dtype)
            copy(place.reshape(array.shape), array)

    def source(self, memory: Tensor) -> Source:
        """Return views of a copy of that buffer on a device."""
        named: dict[str, Any] = {}
        for name, start, array in self.arrays:
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            flat = memory[start : start + array.nbytes].view(dtype)
            named[name] = flat.view(array.shape)
        for axis in ("rows", "columns"):
            if axis in named:
                named[axis] = AxisTaps(named.pop(f"{axis} index"), named[axis])
        axes = self.windows.axes
        return Source(
            unsigned=self.windows.pixels.dtype == np.uint16,
            inside=axes is None or all(taps.complete for taps in axes),
            **named,
        )


def stage(parts: Sequence[SourceWindows]) -> list[Staged]:
    """Give the arrays of windows their places in one buffer, one after the other."""
    staged: list[Staged] = []
    end = 0
    for windows in parts:
        arrays = []
        for name, array in _arrays(windows).items():
            arrays.append((name, end, array))
            end = -(-(end + array.nbytes) // _ALIGNED) * _ALIGNED
        staged.append(Staged(windows, tuple(arrays), end))
    return staged


def _arrays(windows: SourceWindows) -> dict[str, NDArray[np.generic]]:
    """Return the arrays that `develop` needs; their names are the fields of `Source`."""
    pixels, recipe = windows.pixels, windows.recipe
    arrays: dict[str, NDArray[np.generic]] = {
        "pixels": pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels,
        "present": np.array(recipe.present, np.int64),
        "fill": np.array(recipe.fill, np.uint8),
    }
    if windows.valid is not None:
        arrays["valid"] = windows.valid
    if windows.axes is not None:
        weights = np.float32 if pixels.dtype == np.uint8 else np.float64
        for name, taps in zip(("rows", "columns"), windows.axes, strict=True):
            arrays[f"{name} index"] = taps.index
            arrays[name] = taps.weight.astype(weights)
    if recipe.ranges is not None:
        low, high = np.array(recipe.ranges, np.float32).T
        arrays["low"] = low
        with np.errstate(over="ignore"):  # high == low: all values become 0 or 255
            arrays["factor"] = np.float32(255) / np.maximum(high - low, np.finfo(np.float32).tiny)
    return arrays


def develop(source: Source, block: Tensor) -> None:
    """Write the block (bands, H, W) uint8 of the windows."""
    values, known = _resampled(source)
    mapped = _stretched(values, source)
    complete = len(source.present) == len(source.fill)
    if known is not None:
        fill = source.fill if complete else source.fill.index_select(0, source.present)
        mapped = torch.where(known, mapped, fill[:, None, None])
    if complete:
        block.copy_(mapped)
    else:
        block.copy_(source.fill[:, None, None].expand_as(block))
        block.index_copy_(0, source.present, mapped)


def developed_here(windows: SourceWindows) -> NDArray[np.uint8]:
    """Return the block (bands, H, W) of windows, made on this CPU."""
    (staged,) = stage([windows])
    memory = np.empty(staged.end, np.uint8)
    staged.write(memory)
    block = torch.empty(windows.block, dtype=torch.uint8)
    with torch.inference_mode():
        develop(staged.source(torch.from_numpy(memory)), block)
    return block.numpy()


def _resampled(source: Source) -> tuple[Tensor, Tensor | None]:
    """Return values on the grid, and which are valid; None if all are."""
    if source.rows is None or source.columns is None:
        return source.pixels, source.valid
    pixels = source.pixels
    if source.unsigned:
        pixels = pixels.int().bitwise_and_(0xFFFF)
    resample = resample_bytes if pixels.dtype == torch.uint8 else resample_wide
    values, known = resample(pixels, source.valid, rows=source.rows, columns=source.columns)
    return values, None if source.valid is None and source.inside else known


def _stretched(values: Tensor, source: Source) -> Tensor:
    if source.low is None or source.factor is None:
        return values
    if values.dtype == torch.int16:
        table = table_of(source.low, source.factor, unsigned=source.unsigned)
        return look_up(values, table)
    return stretch(values, source.low, source.factor)
