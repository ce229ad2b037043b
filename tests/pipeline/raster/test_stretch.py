"""Stretching by a table gives what arithmetic gives for each value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenesweep.pipeline.raster.stretch import Stretch, has_table, stretch_table, to_uint8

RANGES = ((0.0, 1.0), (-300.5, 412.25), (100.0, 100.0), (0.0, 65_535.0), (2_000.0, 90.0))


def by_arithmetic(
    pixels: NDArray[Any], ranges: tuple[tuple[float, float], ...] | None
) -> NDArray[np.uint8]:
    """The definition, with a copy of all pixels in each step."""
    values = pixels.astype(np.float32)
    if ranges is not None:
        limits = np.array(ranges, np.float32)[:, :, None, None]
        low, high = limits[:, 0], limits[:, 1]
        with np.errstate(over="ignore", invalid="ignore"):
            values = (values - low) * (255 / np.maximum(high - low, np.finfo(np.float32).tiny))
    return np.rint(np.clip(np.nan_to_num(values, nan=0.0), 0, 255)).astype(np.uint8)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("stretched", [True, False])
def test_a_table_is_the_arithmetic_for_all_values(dtype: str, stretched: bool) -> None:
    limits = np.iinfo(dtype)
    every = np.arange(limits.min, limits.max + 1).astype(dtype).reshape(1, -1, 256)
    pixels = np.repeat(every, len(RANGES), axis=0)
    ranges = RANGES if stretched else None
    found = to_uint8(pixels, None if ranges is None else Stretch(ranges))
    np.testing.assert_array_equal(found, by_arithmetic(pixels, ranges))
    assert has_table(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint32"])
def test_other_types_are_mapped_in_chunks(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenesweep.pipeline.raster.stretch._CHUNK_VALUES", 100)
    pixels = np.random.default_rng(0).uniform(0, 3000, (len(RANGES), 37, 41)).astype(dtype)
    if pixels.dtype.kind == "f":
        pixels[:, 3, :4] = np.nan, np.inf, -np.inf, -7.5
    found = to_uint8(pixels, Stretch(RANGES))
    np.testing.assert_array_equal(found, by_arithmetic(pixels, RANGES))
    assert not has_table(dtype)


def test_a_table_is_made_once_and_cannot_be_changed() -> None:
    table = stretch_table("int16", (0.0, 100.0))
    assert table is stretch_table("int16", (0.0, 100.0))
    assert (len(table), table[65_535], table[50], table[32_767]) == (65_536, 0, 128, 255)
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 1
