"""A window that can report no box is not looked at, and no other window is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenesweep.pipeline.geometry.grid import Grid, Shard
from scenesweep.pipeline.raster.chips import Chips
from scenesweep.pipeline.raster.empty import without_empty_windows

GRID = Grid(width=150, height=110, chip=64, margin=16, side=8, fit=64)


def chips_of(valid: NDArray[np.bool_] | None) -> Chips:
    shard = GRID.shard(0, np.ones(GRID.shape, np.bool_))
    bounds = shard.bounds
    pixels = np.zeros((2, bounds.height, bounds.width), np.uint8)
    return Chips(shard, bounds, pixels, valid)


def can_report(chips: Chips, shard: Shard, slack: float) -> list[bool]:
    """Try every valid pixel, one by one."""
    assert chips.valid is not None
    found = []
    for tile in shard.tiles:
        core, window = tile.core, tile.window
        found.append(
            any(
                math.floor(core.col_off - slack) <= x < math.ceil(core.right + slack)
                and math.floor(core.row_off - slack) <= y < math.ceil(core.bottom + slack)
                and window.col_off <= x < window.right
                and window.row_off <= y < window.bottom
                for y, x in np.argwhere(chips.valid).tolist()
            )
        )
    return found


@given(
    points=st.lists(st.tuples(st.integers(0, 109), st.integers(0, 149)), max_size=3),
    slack=st.sampled_from([0.0, 2.0, 2.5, 16.0]),
)
def test_a_window_stays_if_a_box_on_a_valid_pixel_may_be_centred_in_it(
    points: list[tuple[int, int]], slack: float
) -> None:
    valid = np.zeros((110, 150), np.bool_)
    for point in points:
        valid[point] = True
    chips = chips_of(valid)
    left = without_empty_windows(chips, slack=slack)
    expected = zip(chips.shard.tiles, can_report(chips, chips.shard, slack), strict=True)
    assert left.shard.tiles == tuple(tile for tile, stays in expected if stays)
    assert left.shard.number == chips.shard.number
    if left.shard.tiles:
        assert left.pixels is chips.pixels
        assert left.bounds == chips.bounds
    else:
        assert left.pixels.size == 0


@pytest.mark.parametrize("valid", [None, np.ones((110, 150), np.bool_)])
def test_chips_without_invalid_pixels_are_as_they_were(valid: NDArray[np.bool_] | None) -> None:
    chips = chips_of(valid)
    assert without_empty_windows(chips, slack=2) is chips
