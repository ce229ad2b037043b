"""Resampling on a device is what readers do on CPUs, to the bit, and fits a CUDA graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from scenesweep.model.inference.resample import (
    AxisTaps,
    look_up,
    resample_bytes,
    resample_wide,
    stretch,
    table_of,
)
from scenesweep.model.inference.source_windows import Taps
from scenesweep.pipeline.raster import resample as on_cpu
from scenesweep.pipeline.raster.stretch import Stretch, stretch_table, to_uint8


def as_tensors(taps: Taps, dtype: torch.dtype) -> AxisTaps:
    return AxisTaps(torch.from_numpy(taps.index), torch.from_numpy(taps.weight).to(dtype))


def example(dtype: str, scale: float, holes: float) -> tuple[NDArray[Any], NDArray[np.bool_], Any]:
    """Return pixels (3, H, W), their mask, and the taps of both axes."""
    rng, height, width = np.random.default_rng(7), 83, 101
    shape = 3, round(height * scale), round(width * scale)
    if dtype == "float32":
        pixels = rng.uniform(-50, 3000, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        pixels = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    precision = on_cpu.precision_for(dtype)
    rows = on_cpu.Alignment(shape[1], shape[1] / height).taps(0, height, bits=precision.row_bits)
    columns = on_cpu.Alignment(shape[2], shape[2] / width)
    across = columns.taps(0, width, bits=precision.column_bits)
    return pixels, rng.random(shape[1:]) >= holes, (rows, across)


@pytest.mark.parametrize("holes", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("scale", [0.5, 0.75, 1.42, 2.6])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_it_equals_the_reader(dtype: str, scale: float, holes: float) -> None:
    pixels, valid, (rows, columns) = example(dtype, scale, holes)
    expected, known = on_cpu.resample(
        pixels, None if valid.all() else valid, rows=rows, columns=columns
    )
    narrow = dtype == "uint8"
    weights = torch.float32 if narrow else torch.float64
    # readers would upload uint16 as it is; torch has few operations on it
    source = torch.from_numpy(pixels if dtype != "uint16" else pixels.astype(np.int32))
    run = resample_bytes if narrow else resample_wide
    found, share = run(
        source,
        None if valid.all() else torch.from_numpy(valid),
        rows=as_tensors(rows, weights),
        columns=as_tensors(columns, weights),
    )
    mask = np.ones(share.shape, np.bool_) if known is None else known
    np.testing.assert_array_equal(share.numpy(), mask)
    np.testing.assert_array_equal(found.numpy()[:, mask], expected[:, mask])
    assert found.numpy().dtype == expected.dtype


def map_of(ranges: tuple[tuple[float, float], ...]) -> NDArray[np.float32]:
    """Return low and factor of each band, (2, bands)."""
    low, high = np.array(ranges, np.float32).T
    return np.stack([low, np.float32(255) / np.maximum(high - low, np.finfo(np.float32).tiny)])


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_stretching_equals_the_reader(dtype: str) -> None:
    ranges = ((100.0, 4000.5), (-700.0, 20_000.0), (5.0, 5.0))
    pixels, *_ = example(dtype, 1.0, 0.0)
    low, factor = (torch.from_numpy(column) for column in map_of(ranges))
    tables = table_of(low, factor, unsigned=dtype == "uint16")
    wanted = np.stack([stretch_table(dtype, limits) for limits in ranges])
    np.testing.assert_array_equal(tables.numpy(), wanted)
    found = look_up(torch.from_numpy(pixels.view(np.int16)), tables)
    np.testing.assert_array_equal(found.numpy(), to_uint8(pixels, Stretch(ranges)))


def test_stretching_floats_equals_the_reader() -> None:
    ranges = ((100.0, 2000.5), (-70.0, 2500.0), (0.0, 1.0))
    values, *_ = example("float32", 1.0, 0.0)
    values[0, 3, :3] = np.nan, np.inf, -np.inf
    low, factor = (torch.from_numpy(column) for column in map_of(ranges))
    found = stretch(torch.from_numpy(values), low, factor)
    np.testing.assert_array_equal(found.numpy(), to_uint8(values, Stretch(ranges)))


def test_it_runs_without_looking_at_data() -> None:
    """A fake CUDA device refuses copies from the host and shapes that depend on data."""
    with FakeTensorMode(), torch.device("cuda"):
        pixels = torch.zeros((4, 90, 100), dtype=torch.uint8)
        valid = torch.ones((90, 100), dtype=torch.bool)
        rows = AxisTaps(torch.zeros((180, 2), dtype=torch.int64), torch.zeros((180, 2)))
        columns = AxisTaps(torch.zeros((200, 2), dtype=torch.int64), torch.zeros((200, 2)))
        found, known = resample_bytes(pixels, valid, rows=rows, columns=columns)
        deep = torch.zeros((4, 90, 100), dtype=torch.int16)
        wide, _ = resample_wide(
            deep,
            valid,
            rows=AxisTaps(rows.index, rows.weight.double()),
            columns=AxisTaps(columns.index, columns.weight.double()),
        )
        tables = torch.zeros((4, 65_536), dtype=torch.uint8)
        low = torch.zeros(4)
        results = (found, known, look_up(deep, tables), stretch(wide, low, low + 1))
    assert [r.device.type for r in results] == ["cuda"] * 4
    assert found.shape == (4, 180, 200)
    assert known.shape == (180, 200)
    assert [r.dtype for r in results] == [torch.uint8, torch.bool, torch.uint8, torch.uint8]
