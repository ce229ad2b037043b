"""Where a scene is looked at: every valid pixel once, and little else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely import box

from scenesweep.pipeline.geometry.georef import to_lonlat, to_map
from scenesweep.pipeline.geometry.grid import Layout
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.raster.chips import read_shard
from tests.rasters import SHARED, TRANSFORM, UTM, make_card, make_job, ref_of, write_raster


def cores(layout: Layout) -> list[tuple[int, int, int, int]]:
    tiles = [tile for number in layout.numbers for tile in layout.shard(number).tiles]
    found = [(t.core.col_off, t.core.row_off, t.core.right, t.core.bottom) for t in tiles]
    assert len(found) == layout.windows == layout.windows_of(np.array(layout.numbers))
    for number in layout.numbers:
        assert layout.windows_of(np.array([number])) == len(layout.shard(number).tiles)
    return found


def islands(seed: int, *, width: int, height: int, largest: int, count: int) -> NDArray[np.uint8]:
    """Return (1, H, W): bright islands of 24 px and more on nodata, some of them touching."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((1, height, width), np.uint8)
    for _ in range(count):
        w, h = rng.integers(24, largest + 1, 2)
        x, y = rng.integers(0, width - 24), rng.integers(0, height - 24)
        pixels[0, y : y + h, x : x + w] = 100
    return pixels


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 8),
    largest=st.sampled_from([40, 64, 200]),
    gsd=st.sampled_from([0.6, 0.6, 0.4]),
)
@settings(max_examples=60, deadline=None)
def test_every_valid_pixel_is_looked_at_by_one_window(
    seed: int, count: int, largest: int, gsd: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    pixels = islands(seed, width=900, height=700, largest=largest, count=count)
    transform = rasterio.transform.from_origin(4e5, 4e6, gsd, gsd)
    path = write_raster(folder / "s.tif", pixels, transform=transform, nodata=0)
    plan = plan_scene(ref_of(path), make_job(folder))
    looked = np.zeros((plan.layout.grid.height, plan.layout.grid.width), np.int64)
    for x0, y0, x1, y1 in cores(plan.layout):
        looked[y0:y1, x0:x1] += 1
    assert looked.max() <= 1
    y, x = np.nonzero(pixels[0])
    sx, sy = plan.source.scale
    on_grid = np.floor((y + 0.5) / sy).astype(int), np.floor((x + 0.5) / sx).astype(int)
    assert (looked[on_grid] == 1).all()
    for number in plan.layout.numbers:
        shard = plan.layout.shard(number)
        assert all(max(t.window.width, t.window.height) <= 64 for t in shard.tiles)
        chips = read_shard(plan.source, shard)
        assert number < plan.layout.grid.shards or chips.valid is None or chips.valid.any()
        assert len(chips.stack()) == len(shard.tiles)


@pytest.mark.parametrize("shift", [0, 5, 11])
def test_lonely_islands_have_windows_of_their_own_size(tmp_path: Path, shift: int) -> None:
    pixels = np.zeros((1, 600, 700), np.uint8)
    pixels[0, 30 + shift : 90 + shift, 40:70] = 100
    pixels[0, 400:432, 500 + shift : 549 + shift] = 100
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    layout = plan_scene(ref_of(path), make_job(tmp_path, "tiling.fit=32")).layout
    assert layout.islands.tolist() == [[40, 30 + shift, 30, 60], [500 + shift, 400, 49, 32]]
    windows = [layout.shard(number).tiles[0].window for number in layout.numbers]
    assert [(w.width, w.height) for w in windows] == [(32, 64), (64, 32)]
    assert layout.core_px_of(np.array(layout.numbers)) == 30 * 60 + 49 * 32
    assert layout.skipped == layout.kept.size


def test_an_island_in_the_ground_of_a_grid_window_is_left_to_the_grid(tmp_path: Path) -> None:
    pixels = np.zeros((1, 600, 700), np.uint8)
    pixels[0, 0:300, 0:300] = 100  # too large for a chip
    pixels[0, 290:315, 340:370] = 100  # within the core of a window at its corner
    pixels[0, 500:540, 600:640] = 100
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    layout = plan_scene(ref_of(path), make_job(tmp_path, "tiling.chip=128")).layout
    assert layout.islands.tolist() == [[600, 500, 40, 40]]
    assert 9 <= layout.kept.sum() < layout.kept.size


def test_islands_outside_the_area_of_interest_are_left_out(tmp_path: Path) -> None:
    pixels = np.zeros((1, 600, 700), np.uint8)
    pixels[0, 30:90, 40:70] = 100
    pixels[0, 400:432, 500:549] = 100
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    corners = to_map(np.array([[480.0, 380.0], [600.0, 500.0]]), TRANSFORM)
    (west, north), (east, south) = to_lonlat(corners, CRS.from_string(UTM).to_wkt())
    area = box(west, south, east, north)
    layout = plan_scene(ref_of(path), make_job(tmp_path, area=area)).layout
    assert layout.islands.tolist() == [[500, 400, 49, 32]]
    assert not layout.kept.any()


def test_a_scene_smaller_than_a_chip_has_one_window_of_its_size(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", np.full((1, 70, 200), 9, np.uint8))
    plan = plan_scene(ref_of(path), make_job(tmp_path, "tiling.chip=256"))
    (tile,) = plan.layout.shard(0).tiles
    assert (tile.window.width, tile.window.height) == (256, 128)
    chips = read_shard(plan.source, plan.layout.shard(0))
    assert (chips.pixels[:, :70, :200] == 9).all()
    assert chips.valid is not None
    assert (chips.pixels[:, ~chips.valid] == plan.source.fill[0]).all()


def test_the_chips_of_a_sparse_city_have_windows_of_their_own() -> None:
    scene = SHARED / "naip_trees" / "scenes" / "riverside_2020.vrt"
    if not scene.exists():
        pytest.skip("needs ../shared/data")
    card = make_card(bands=("red",), chip_px=512, margin_px=32)
    job = make_job(Path("unused"), "scenes.drivers=[GTiff,VRT]", card=card)
    layout = plan_scene(ref_of(scene), job).layout
    assert layout.kept.shape == (58, 76)
    sizes = layout.islands[:, 2:].tolist()  # some chips touch; three make an island too large
    assert sizes.count([256, 256]) == 77
    assert sizes.count([490, 257]) == 1
    assert layout.windows == 78 + 5


@pytest.mark.parametrize(("side_px", "side"), [(200, 1), (700, 2), (1200, 4)])
def test_scenes_of_few_windows_have_small_shards(tmp_path: Path, side_px: int, side: int) -> None:
    path = write_raster(tmp_path / "s.tif", np.ones((1, side_px, side_px), np.uint8))
    grid = plan_scene(ref_of(path), make_job(tmp_path)).layout.grid
    assert grid.side == side
    given = plan_scene(ref_of(path), make_job(tmp_path, "tiling.shard=3")).layout.grid
    assert given.side == 3
