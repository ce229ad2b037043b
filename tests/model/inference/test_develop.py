"""Source pixels on a detector's slots: order, results, and kernels that wait for nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scenesweep.model.inference.develop import Source, develop
from scenesweep.model.inference.host_copy import copy
from scenesweep.model.inference.resample import AxisTaps
from scenesweep.model.inference.source_windows import Recipe, SourceWindows
from scenesweep.model.inference.windows import chips_of
from scenesweep.pipeline.raster.resample import Alignment, precision_for
from tests.fake_cuda import KernelCount
from tests.model.inference.lazy_streams import LazyStreams
from tests.model.inference.test_slots import assert_equal, with_slots
from tests.small_models import noise


def source_windows(dtype: str, scale: float = 0.5, count: int = 5) -> SourceWindows:
    """Return windows of 64 px of one band, in a row with overlaps, with a hole of nodata."""
    precision, size = precision_for(dtype), (64, 64 + 32 * (count - 1))
    axes = [
        Alignment(round(side * scale), scale).taps(0, side, bits=bits)
        for side, bits in zip(size, (precision.row_bits, precision.column_bits), strict=True)
    ]
    rng = np.random.default_rng(0)
    shape = (1, *(taps.span[1] for taps in axes))
    pixels = rng.integers(0, 256, shape).astype(dtype)
    ranges = None if dtype == "uint8" else ((10.0, 240.0),)
    corners = np.stack([np.zeros(count, np.int64), 32 * np.arange(count)], axis=1)
    valid = rng.random(shape[1:]) > 0.1
    recipe = Recipe((0,), ranges, (128,))
    return SourceWindows(pixels, valid, recipe, (axes[0], axes[1]), corners, (1, 64, 64))


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_boxes_are_those_of_developed_chips(tmp_path: Path, dtype: str, late: bool) -> None:
    plain, slotted = with_slots(tmp_path, LazyStreams(late=late))
    small, large = source_windows(dtype, count=3), source_windows(dtype, scale=0.7)
    native = replace(source_windows("uint16"), axes=None, corners=np.array([[0, 0]]))
    native = replace(native, pixels=noise(1)[0].astype(np.uint16), valid=None)
    ready = chips_of(noise(3))
    calls: list[tuple[Any, ...]] = [(small,), (ready, large), (large, native), (native,), (ready,)]
    tickets = [slotted.submit(*parts) for parts in calls]
    for ticket, parts in zip(tickets, calls, strict=True):
        chips = np.concatenate([part.chips() for part in parts])
        assert_equal(slotted.collect(ticket), plain.detect(chips))
        assert_equal(plain.collect(plain.submit(*parts)), plain.detect(chips))


def test_source_pixels_are_developed_after_their_upload_and_before_the_graph(
    tmp_path: Path,
) -> None:
    streams = LazyStreams()
    _, detector = with_slots(tmp_path, streams)
    detector.detect(noise(2))
    streams.log.clear()
    first, second = (detector.submit(source_windows("uint16", count=2)) for _ in range(2))
    detector.collect(first)
    detector.collect(detector.submit(chips_of(noise(2))))
    detector.collect(second)
    assert streams.log == [
        *("upload", "prepare", "compute", "download") * 2,
        *("wait", "upload", "compute", "download", "wait", "wait"),
    ]


def on_fake_cuda(windows: SourceWindows, size: tuple[int, int, int], *, masked: bool) -> Source:
    """Return tensors without values for bands of side x side grid pixels, from height x height."""
    count, side, height = size
    narrow = windows.pixels.dtype == np.uint8
    weights, axes = torch.float32 if narrow else torch.float64, windows.axes
    taps = 0 if axes is None else axes[0].index.shape[1]
    index = torch.empty((side, taps), dtype=torch.int64)
    axis = None if axes is None else AxisTaps(index, index.to(weights))
    dtype = torch.from_numpy(windows.pixels[:, :0].view(windows.pixels.dtype)).dtype
    return Source(
        torch.empty((count, height, height), dtype=torch.int16 if dtype.itemsize == 2 else dtype),
        unsigned=windows.pixels.dtype == np.uint16,
        inside=True,
        present=torch.arange(count),
        fill=torch.empty(count, dtype=torch.uint8),
        valid=torch.empty((height, height), dtype=torch.bool) if masked else None,
        rows=axis,
        columns=axis,
        low=None if narrow else torch.empty(count),
        factor=None if narrow else torch.empty(count),
    )


CASES = {
    "8 bits, resampled x0.5": ("uint8", 0.5, 20),
    "16 bits, stretched": ("uint16", None, 24),
    "16 bits, resampled x0.5 and stretched": ("uint16", 0.5, 24),
    "16 bits, resampled x1.42 and stretched": ("uint16", 1.42, 32),
    "32 bits, stretched": ("float32", None, 12),
}
"""Type of the source pixels, source pixels for each grid pixel, and most kernels of a shard."""


def developing(dtype: str, scale: float | None, *, masked: bool, side: int = 512) -> KernelCount:
    windows = source_windows(dtype, scale or 0.5)
    windows = windows if scale else replace(windows, axes=None)
    with FakeTensorMode(), torch.device("cuda"):
        source = on_fake_cuda(windows, (4, side, round(side * (scale or 1))), masked=masked)
        block = torch.empty((4, side, side), dtype=torch.uint8)
        with KernelCount() as counted:  # fails if an operation reads the host or depends on data
            develop(source, block)
    return counted


@pytest.mark.parametrize("name", CASES)
def test_a_shard_needs_few_kernels_and_waits_for_nothing(name: str) -> None:
    dtype, scale, most = CASES[name]
    kernels = developing(dtype, scale, masked=False).kernels.total()
    assert kernels <= most
    assert developing(dtype, scale, masked=False, side=64).kernels.total() == kernels
    assert developing(dtype, scale, masked=True).kernels.total() <= 2 * most


@pytest.mark.parametrize("shape", [(3,), (9_000_000,), (4, 1500, 1400), (1500, 4, 1400)])
def test_large_arrays_are_copied_in_pieces(shape: tuple[int, ...]) -> None:
    source = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    target = np.zeros(shape, np.uint8)
    copy(target, source)
    np.testing.assert_array_equal(target, source)
    strided = source[..., ::2]
    copy(target[..., : strided.shape[-1]], strided)
    np.testing.assert_array_equal(target[..., : strided.shape[-1]], strided)
