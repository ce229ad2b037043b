"""Resampling: its definition, the same as GDAL's within 1/255, the same from every window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject

from scenesweep.model.inference.source_windows import Taps
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.raster.chips import read_shard
from scenesweep.pipeline.raster.resample import Alignment, precision_for, resample
from tests.rasters import make_card, make_job, ref_of, write_raster

SCALES = (0.5, 0.75, 1.42, 2.6)
DTYPES = ("uint8", "uint16", "int16", "float32")

Span = tuple[int, int]


def taps_of(dtype: str, axes: tuple[Alignment, Alignment], rows: Span, columns: Span) -> list[Taps]:
    precision = precision_for(dtype)
    return [
        axes[0].taps(*rows, bits=precision.row_bits),
        axes[1].taps(*columns, bits=precision.column_bits),
    ]


def from_window(
    values: NDArray[Any],
    valid: NDArray[np.bool_],
    axes: tuple[Alignment, Alignment],
    rows: Span,
    columns: Span,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Resample a window of the grid from only the source pixels that it needs."""
    down, across = taps_of(values.dtype.name, axes, rows, columns)
    (top, bottom), (left, right) = down.span, across.span
    window = slice(top, bottom), slice(left, right)
    given = None if valid[window].all() else valid[window]
    found, known = resample(
        values[:, *window], given, rows=down.moved(top), columns=across.moved(left)
    )
    return found, np.ones(found.shape[1:], np.bool_) if known is None else known


def by_gdal(
    values: NDArray[Any], valid: NDArray[np.bool_], to_source: Affine, shape: Span
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Resample by GDAL: averages to a coarser grid, else bilinear, weighted by the mask."""
    layers = np.concatenate([np.where(valid, values, 0), valid[None]]).astype(np.float32)
    found = np.zeros((len(layers), *shape), np.float32)
    coarser = to_source.a >= 1 and to_source.e >= 1
    reproject(
        layers,
        found,
        src_transform=Affine.identity(),
        dst_transform=to_source,
        src_crs="EPSG:3857",
        dst_crs="EPSG:3857",
        resampling=Resampling.average if coarser else Resampling.bilinear,
    )
    return found[:-1] / np.maximum(found[-1], 1e-6), found[-1] >= 0.5


def random_raster(dtype: str, seed: int, height: int, width: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.uniform(-1000, 3000, (2, height, width)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (2, height, width), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("holes", [0.0, 0.1])
def test_it_is_gdals_within_one_level(dtype: str, scale: float, holes: float) -> None:
    """Also at the raster's edges. The largest difference of uint8 before rounding is 0.1."""
    width, height = 130, 170
    values = random_raster(dtype, 3, round(height * scale), round(width * scale))
    valid = np.random.default_rng(4).random(values.shape[1:]) >= holes
    sy, sx = values.shape[1] / height, values.shape[2] / width
    axes = Alignment(values.shape[1], sy), Alignment(values.shape[2], sx)
    found, known = from_window(values, valid, axes, (0, height), (0, width))
    expected, expected_known = by_gdal(values, valid, Affine.scale(sx, sy), (height, width))
    assert (known != expected_known).mean() < 1e-3  # a weight of one half, rounded
    both = known & expected_known
    if dtype == "uint8":
        assert np.abs(found.astype(float) - expected)[:, both].max() < 0.6  # 0.5 is rounding
    else:
        value_range = 65_535 if dtype != "float32" else 4000
        assert np.abs(found - expected)[:, both].max() < value_range * 1e-4


@pytest.mark.parametrize("offset", [-0.6, -0.3, 0.4])
def test_an_offset_grid_is_gdals(offset: float) -> None:
    """As for a band with coarser pixels that starts off the scene's corner."""
    values = random_raster("uint8", 5, 40, 50)
    valid = np.ones((40, 50), np.bool_)
    axes = Alignment(40, 0.5, offset), Alignment(50, 0.5, offset)
    found, known = from_window(values, valid, axes, (0, 80), (0, 100))
    to_source = Affine.translation(offset, offset) @ Affine.scale(0.5)
    expected, expected_known = by_gdal(values, valid, to_source, (80, 100))
    np.testing.assert_array_equal(known, expected_known)
    assert np.abs(found.astype(float) - expected)[:, known].max() < 0.6
    assert known.all() == (-0.25 < offset <= 0.25)


def test_each_axis_has_its_own_rule() -> None:
    """Rows are refined and columns averaged: GDAL used one method for both."""
    values = np.array([[[0, 100, 200], [50, 50, 50]]], np.uint8)
    axes = Alignment(2, 0.5), Alignment(3, 3.0)
    found, _ = from_window(values, np.ones((2, 3), np.bool_), axes, (0, 4), (0, 1))
    assert found[0, :, 0].tolist() == [100, 88, 62, 50]


scales = st.floats(0.2, 6.0)
spans = st.tuples(st.integers(0, 60), st.integers(1, 40))


@given(scales, scales, spans, spans, st.sampled_from(DTYPES), st.floats(0, 0.6), st.integers(0, 9))
@settings(max_examples=60)
def test_a_pixel_does_not_depend_on_the_window_that_reads_it(
    sy: float, sx: float, down: Span, across: Span, dtype: str, holes: float, seed: int
) -> None:
    height, width = sum(down) + 7, sum(across) + 5
    values = random_raster(dtype, seed, max(1, round(height * sy)), max(1, round(width * sx)))
    valid = np.random.default_rng(seed).random(values.shape[1:]) >= holes
    valid[: len(valid) // 2] = True
    axes = (
        Alignment(values.shape[1], values.shape[1] / height),
        Alignment(values.shape[2], values.shape[2] / width),
    )
    whole, known = from_window(values, valid, axes, (0, height), (0, width))
    rows, columns = (down[0], sum(down)), (across[0], sum(across))
    part, part_known = from_window(values, valid, axes, rows, columns)
    window = slice(*rows), slice(*columns)
    np.testing.assert_array_equal(part_known, known[window])
    np.testing.assert_array_equal(part[:, part_known], whole[:, *window][:, part_known])


@given(scales, st.integers(1, 300), st.sampled_from([12, 16]))
def test_weights_are_whole_parts_and_sum_to_one(scale: float, size: int, bits: int) -> None:
    count = max(1, round(size / scale))
    taps = Alignment(size, size / count).taps(0, count, bits=bits)
    parts = taps.weight * 2**bits
    assert (parts == np.rint(parts)).all()
    assert (parts >= 0).all()
    assert (taps.weight.sum(axis=1) == 1).all()
    assert taps.span == (0, size)


@pytest.mark.parametrize("gsd", [0.3, 0.45, 0.85, 1.56])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_shards_of_any_size_read_the_same_pixels(tmp_path: Path, gsd: float, dtype: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 250, (1, 200, 230)).astype(dtype)
    pixels[:, :90, 40:130] = 0
    path = write_raster(
        tmp_path / "s.tif", pixels, nodata=0, transform=from_origin(4e5, 4e6, gsd, gsd)
    )

    def scene(side: int) -> tuple[NDArray[Any], NDArray[Any]]:
        plan = plan_scene(ref_of(path), make_job(tmp_path, f"tiling.shard={side}", card=card))
        grid = plan.layout.grid
        whole, valid = np.full((2, grid.height, grid.width), -1.0)  # -1: in no shard
        for number in plan.layout.numbers:
            chips = read_shard(plan.source, plan.layout.shard(number))
            at = chips.bounds
            high, wide = min(at.bottom, grid.height), min(at.right, grid.width)
            window = slice(at.row_off, high), slice(at.col_off, wide)
            part = slice(0, high - at.row_off), slice(0, wide - at.col_off)
            whole[window] = chips.pixels[0][part]
            valid[window] = True if chips.valid is None else chips.valid[part]
        return whole, valid

    card = make_card(chip_px=64)
    small, large = scene(1), scene(4)
    both = (small[0] >= 0) & (large[0] >= 0)
    np.testing.assert_array_equal(small[0][both], large[0][both])
    np.testing.assert_array_equal(small[1][both], large[1][both])
    assert both.mean() > 0.7
    assert 0 < small[1][both].mean() < 1
