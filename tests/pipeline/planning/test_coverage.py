"""The observed ground has the area and the place of the valid pixels in the area of interest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scipy import ndimage

from scenesweep.pipeline.geometry.georef import to_lonlat, to_map
from scenesweep.pipeline.planning.area import polygons_of
from scenesweep.pipeline.planning.coverage import Cells, coverage_of, few_vertices, patches
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.survey import Survey
from scenesweep.pipeline.scene import Scene
from tests.rasters import TRANSFORM, UTM, write_raster
from tests.sweeps import FRAMES

SIZE = 640, 480
PX_KM2 = 0.36e-6


def scene_of(
    folder: Path,
    valid: NDArray[np.bool_],
    crs: str = UTM,
    transform: Affine = TRANSFORM,
) -> Scene:
    pixels = valid.astype(np.uint8)[None] * 9
    path = write_raster(folder / "s.tif", pixels, crs=crs, transform=transform, nodata=0)
    return inspect(str(path))


def blobs(seed: int) -> NDArray[np.bool_]:
    """Return smooth patches of valid pixels, with holes."""
    noise = np.random.default_rng(seed).normal(size=SIZE[::-1])
    smooth: NDArray[np.bool_] = ndimage.gaussian_filter(noise, 40) > 0
    return smooth


@pytest.mark.parametrize("frame", FRAMES)
def test_ground_is_where_pixels_are_valid(tmp_path: Path, frame: str) -> None:
    valid = blobs(3)
    scene = scene_of(tmp_path, valid, *FRAMES[frame])
    coverage = coverage_of(scene, footprint(scene))
    assert coverage is not None
    assert coverage.exact
    assert coverage.ground.is_valid
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    assert scene.crs
    assert scene.transform
    points = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    lon, lat = to_lonlat(to_map(points, scene.transform), scene.crs).T
    shapely.prepare(coverage.ground)
    inside = shapely.intersects_xy(coverage.ground, lon, lat).reshape(valid.shape)
    far = ndimage.distance_transform_edt(valid) + ndimage.distance_transform_edt(~valid) > 25
    assert far.mean() > 0.4
    np.testing.assert_array_equal(inside[far], valid[far])
    whole = coverage_of(replace(scene, masked=False), footprint(scene))
    assert whole is not None
    assert coverage.observed_km2 / whole.observed_km2 == pytest.approx(valid.mean(), abs=0.02)


def test_area_of_interest_limits_the_ground(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, np.ones(SIZE[::-1], np.bool_))
    outline = footprint(scene)
    assert outline is not None
    west, south, east, north = outline.bounds
    half = shapely.intersection(outline, shapely.box(west, south, (west + east) / 2, north))
    whole, part = coverage_of(scene, outline), coverage_of(scene, polygons_of(half))
    assert whole is not None
    assert part is not None
    assert whole.observed_km2 == pytest.approx(SIZE[0] * SIZE[1] * PX_KM2, rel=0.002)
    assert part.observed_km2 == pytest.approx(whole.observed_km2 / 2, rel=0.01)


def test_a_scene_without_valid_pixels_has_no_ground(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, np.zeros(SIZE[::-1], np.bool_))
    coverage = coverage_of(scene, footprint(scene))
    assert coverage is not None
    assert coverage.ground.is_empty
    assert coverage.observed_km2 == 0


def test_ground_lies_on_both_sides_of_the_antimeridian(tmp_path: Path) -> None:
    valid = np.ones(SIZE[::-1], np.bool_)
    valid[200:300, 200:400] = False
    crs, transform = "EPSG:4326", from_origin(179.9, 10, 0.2 / SIZE[0], 0.2 / SIZE[0])
    scene = scene_of(tmp_path, valid, crs, transform)
    coverage = coverage_of(scene, footprint(scene))
    assert coverage is not None
    assert isinstance(coverage.ground, shapely.MultiPolygon)
    west, _, east, _ = coverage.ground.bounds
    assert (west, east) == (-180, 180)
    assert len(coverage.ground.geoms) == 2
    around = coverage_of(replace(scene, masked=False), footprint(scene))
    assert around is not None
    assert coverage.observed_km2 / around.observed_km2 == pytest.approx(valid.mean(), abs=0.02)


def test_around_a_pole_the_whole_outline_counts(tmp_path: Path) -> None:
    valid = np.ones((300, 300), np.bool_)
    valid[:100] = False
    scene = scene_of(tmp_path, valid, "EPSG:3413", from_origin(-150_000, 150_000, 1000, 1000))
    coverage = coverage_of(scene, footprint(scene))
    assert coverage is not None
    assert not coverage.exact
    assert shapely.contains_xy(coverage.ground, 0, 89.9)


def test_a_scattered_mask_has_bounded_polygons() -> None:
    shares = (np.random.default_rng(0).random((1500, 1500)) > 0.3).astype(np.float32)
    ground = patches(Cells(shares, (16.0, 16.0)), (24_000, 24_000))
    assert len(shapely.get_coordinates(ground)) <= 20_000
    assert ground.is_valid
    assert ground.area == pytest.approx(24_000**2, rel=0.05)


def test_cells_keep_the_share_when_they_grow() -> None:
    flags = np.random.default_rng(1).random((101, 57)) > 0.5
    cells = Cells.of(flags, (10.0, 12.0), most=1_000)
    assert cells.step == (30.0, 36.0)
    assert cells.shares.shape == (34, 19)
    slow = [[flags[y : y + 3, x : x + 3].mean() for x in range(0, 57, 3)] for y in range(0, 101, 3)]
    np.testing.assert_allclose(cells.shares, slow, rtol=1e-6)


def test_few_vertices_keep_the_ground_about_as_it_is() -> None:
    circles = [shapely.Point(x, 0).buffer(1, quad_segs=500) for x in (0, 3)]
    ground = few_vertices(shapely.MultiPolygon(circles), 200)
    assert len(shapely.get_coordinates(ground)) <= 200
    assert ground.is_valid
    assert ground.area == pytest.approx(2 * np.pi, rel=0.02)
    many = [shapely.Point(x, y).buffer(0.2) for x in range(40) for y in range(40)]
    assert few_vertices(shapely.MultiPolygon(many), 100).area == pytest.approx(39.3**2, 0.05)


def test_a_mask_that_is_too_expensive_is_not_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = np.random.default_rng(2).random(SIZE[::-1]) > 0.5
    scene = scene_of(tmp_path, valid)
    monkeypatch.setattr("scenesweep.pipeline.planning.mask.Survey", lambda: Survey(0))
    coverage = coverage_of(scene, footprint(scene))
    assert coverage is not None
    assert not coverage.exact
    assert coverage.observed_km2 == pytest.approx(SIZE[0] * SIZE[1] * PX_KM2, rel=0.002)
