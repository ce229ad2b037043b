"""Laws of the grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenesweep.pipeline.geometry.grid import Grid, Window, cut_axis

SIZES = st.integers(1, 3000)
CHIPS = st.tuples(st.integers(1, 600), st.integers(0, 299)).filter(lambda cm: cm[0] > 2 * cm[1])


@given(SIZES, CHIPS)
def test_cores_partition_the_axis_and_keep_their_margin(size: int, cut: tuple[int, int]) -> None:
    chip, margin = cut
    axis = cut_axis(size, chip=chip, margin=margin)
    assert axis.core_starts[0] == 0
    assert axis.core_stops[-1] == size
    assert (axis.core_starts[1:] == axis.core_stops[:-1]).all()
    assert (axis.core_stops > axis.core_starts).all()
    if size <= chip:
        assert axis.starts.tolist() == [0]
        return
    assert axis.starts[0] == 0
    assert axis.starts[-1] == size - chip
    assert (np.diff(axis.starts) > 0).all()
    assert (axis.core_starts[1:] - axis.starts[1:] >= margin).all()
    assert (axis.starts[:-1] + chip - axis.core_stops[:-1] >= margin).all()


@given(SIZES, CHIPS)
def test_there_are_no_more_windows_than_needed(size: int, cut: tuple[int, int]) -> None:
    chip, margin = cut
    count = len(cut_axis(size, chip=chip, margin=margin).starts)
    reached = chip + (count - 2) * (chip - 2 * margin)
    assert count == 1 or reached < size


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_every_kept_tile_is_in_exactly_one_shard(
    width: int, height: int, side: int, seed: int
) -> None:
    grid = Grid(width, height, chip=64, margin=8, side=side, fit=64)
    kept = np.random.default_rng(seed).random(grid.shape) < 0.5
    numbers = grid.shard_numbers(kept).tolist()
    tiles = [tile for n in numbers for tile in grid.shard(n, kept).tiles]
    expected = {grid.tile(r, c) for r, c in np.argwhere(kept).tolist()}
    assert len(tiles) == len(expected)
    assert set(tiles) == expected
    assert all(len(grid.shard(n, kept).tiles) <= side * side for n in numbers)


def test_cores_partition_the_plane() -> None:
    grid = Grid(333, 217, chip=64, margin=9, side=3, fit=64)
    covered = np.zeros((217, 333), np.int64)
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            core = grid.tile(row, column).core
            covered[core.row_off : core.bottom, core.col_off : core.right] += 1
    assert (covered == 1).all()


def test_a_shard_number_does_not_depend_on_what_is_kept() -> None:
    grid = Grid(1000, 1000, chip=64, margin=8, side=4, fit=64)
    everything = np.ones(grid.shape, np.bool_)
    some = everything.copy()
    some[:4, :4] = False
    assert set(grid.shard_numbers(some)) == set(grid.shard_numbers(everything)) - {0}
    assert grid.shard(5, some) == grid.shard(5, everything)


@pytest.mark.parametrize(("size", "chip", "margin"), [(0, 64, 8), (100, 16, 8), (100, 64, -1)])
def test_impossible_cuts_are_refused(size: int, chip: int, margin: int) -> None:
    with pytest.raises(ValueError, match="need size"):
        cut_axis(size, chip=chip, margin=margin)


def test_a_window_has_pixels() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        Window(0, 0, 0, 5)
