"""The painted suburb: it repeats for its seed, and its truth agrees with its pixels."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from scenesweep.jobs.suburb import LaterSuburb, Suburb, paint_suburb, paint_two_dates
from scenesweep.jobs.suburb.later import CLEAR, CLOUD, NO_DATA, QUALITY_PX, quality_of

SIZE_PX = 512
PX_M = 0.6


@pytest.fixture(scope="module")
def suburb() -> Suburb:
    return paint_suburb(SIZE_PX, seed=3)


def _ndvi(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the NDVI of (4, ...) pixels."""
    red, nir = pixels[0].astype(float), pixels[3].astype(float)
    return np.asarray((nir - red) / np.maximum(nir + red, 1))


def _at_trees(suburb: Suburb) -> NDArray[np.uint8]:
    """Return (4, N) pixels under the trees' centres."""
    columns, rows = suburb.trees[:, :2].astype(int).T
    return np.asarray(suburb.pixels[:, rows, columns])


def test_shapes_and_types(suburb: Suburb) -> None:
    assert suburb.pixels.shape == (4, SIZE_PX, SIZE_PX)
    assert suburb.pixels.dtype == np.uint8
    assert suburb.trees.ndim == 2
    assert suburb.trees.shape[1] == 3
    assert suburb.trees.dtype == np.float64
    assert len(suburb.trees) > 60


def test_same_seed_repeats_and_another_differs(suburb: Suburb) -> None:
    again, other = paint_suburb(SIZE_PX, seed=3), paint_suburb(SIZE_PX, seed=4)
    np.testing.assert_array_equal(again.pixels, suburb.pixels)
    np.testing.assert_array_equal(again.trees, suburb.trees)
    assert not np.array_equal(other.pixels, suburb.pixels)


@pytest.mark.parametrize("size_px", [256, 300])
def test_small_and_odd_sizes(size_px: int) -> None:
    small = paint_suburb(size_px)
    assert small.pixels.shape == (4, size_px, size_px)
    assert len(small.trees) > 5


def test_refuses_sizes_below_256() -> None:
    with pytest.raises(ValueError, match="256"):
        paint_suburb(255)


def test_nodata_is_zero_in_all_bands_and_only_there(suburb: Suburb) -> None:
    empty = (suburb.pixels == 0).any(axis=0)
    assert not suburb.pixels[:, empty].any()
    assert 0.01 < empty.mean() < 0.15
    assert empty[0, 0]
    assert not empty[SIZE_PX // 2, SIZE_PX // 2]


def test_nodata_border_is_slanted(suburb: Suburb) -> None:
    valid = suburb.pixels.any(axis=0)
    first_valid = valid.argmax(axis=1)[10:-40]
    assert len(np.unique(first_valid)) > 10


def test_trees_stand_on_valid_pixels(suburb: Suburb) -> None:
    assert np.all((suburb.trees[:, :2] >= 0) & (suburb.trees[:, :2] < SIZE_PX))
    assert np.all(_at_trees(suburb) > 0)


def test_crowns_are_three_to_ten_metres_wide(suburb: Suburb) -> None:
    assert suburb.trees[:, 2].min() >= 3
    assert suburb.trees[:, 2].max() <= 10


def test_trees_keep_their_distance(suburb: Suburb) -> None:
    nearest_px = cKDTree(suburb.trees[:, :2]).query(suburb.trees[:, :2], k=2)[0][:, 1]
    assert nearest_px.min() * PX_M >= 2.5


def test_truth_and_pixels_agree(suburb: Suburb) -> None:
    valid = suburb.pixels.any(axis=0)
    at_trees, anywhere = _ndvi(_at_trees(suburb)), _ndvi(suburb.pixels[:, valid])
    assert at_trees.mean() > 0.2
    assert at_trees.mean() > anywhere.mean() + 0.15
    assert np.mean(at_trees > 0.1) > 0.85


def test_trees_outshine_roads_in_near_infrared(suburb: Suburb) -> None:
    red, green, blue, nir = suburb.pixels.astype(float)
    grey = np.maximum(abs(red - green), abs(green - blue)) < 8
    roads = grey & (red > 70) & (red < 110) & (nir < red)
    assert roads.sum() > 1000
    assert _at_trees(suburb)[3].mean() > nir[roads].mean() + 30


def test_crowns_are_vegetation_round_their_centres(suburb: Suburb) -> None:
    """A shifted truth scores lower, so the positions mean the crowns and not their surroundings."""
    inner = suburb.trees[np.all(abs(suburb.trees[:, :2] - SIZE_PX / 2) < SIZE_PX / 2 - 40, axis=1)]
    columns, rows = inner[:, :2].astype(int).T
    ndvi = _ndvi(suburb.pixels)
    here = ndvi[rows, columns].mean()
    shifts = [(9, 0), (-9, 0), (0, 9), (0, -9)]
    assert all(ndvi[rows + dy, columns + dx].mean() < here - 0.1 for dx, dy in shifts)


@pytest.fixture(scope="module")
def dates() -> tuple[Suburb, LaterSuburb]:
    return paint_two_dates(1536, seed=3)


def test_the_first_of_two_dates_is_the_scene_alone(dates: tuple[Suburb, LaterSuburb]) -> None:
    alone = paint_suburb(1536, seed=3)
    np.testing.assert_array_equal(dates[0].pixels, alone.pixels)
    np.testing.assert_array_equal(dates[0].trees, alone.trees)


def test_a_few_trees_are_gone_and_a_few_are_new(dates: tuple[Suburb, LaterSuburb]) -> None:
    first, later = dates
    before = cKDTree(first.trees[:, :2] - later.corner)
    now = cKDTree(later.trees[:, :2])
    assert 1 <= len(later.gone) <= 0.1 * len(later.trees)
    assert 1 <= len(later.new) <= 0.1 * len(later.trees)
    assert now.query(later.gone[:, :2])[0].min() > 2
    assert before.query(later.new[:, :2])[0].min() > 2
    stayed = before.query(later.trees[:, :2])[0] < 1e-6
    assert len(later.trees) - stayed.sum() == len(later.new)


def test_clouds_hide_a_fifth_and_the_quality_raster_says_where(
    dates: tuple[Suburb, LaterSuburb],
) -> None:
    _, later = dates
    cloud = later.quality == CLOUD
    assert 0.1 < cloud.mean() < 0.3
    assert set(np.unique(later.quality)) <= {CLEAR, CLOUD, NO_DATA}
    side = later.pixels.shape[1]
    assert later.quality.shape == (-(-side // QUALITY_PX),) * 2
    rows, columns = np.indices((side, side)) // QUALITY_PX
    bright = later.pixels.min(axis=0) > 180
    assert bright[cloud[rows, columns]].mean() > 0.6
    assert bright[~cloud[rows, columns]].mean() < 0.2


def test_a_block_without_valid_pixels_has_no_data() -> None:
    valid = np.zeros((25, 25), np.bool_)
    valid[:5, :5] = True
    quality = quality_of(np.ones((25, 25), np.float32), valid)
    assert quality.tolist() == [[CLOUD, NO_DATA, NO_DATA], [NO_DATA] * 3, [NO_DATA] * 3]
