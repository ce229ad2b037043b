"""Pixels that are not ground: blocks that were never written, and pixels off the Earth."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from scenesweep.jobs.view import view
from scenesweep.pipeline.errors import SceneError
from scenesweep.pipeline.geometry.georef import on_earth
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.planning.mask import valid_share
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.raster.assemble import inspect_scene
from scenesweep.pipeline.raster.ground import WrittenPixels, sample_axes
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.pixels import open_scene
from scenesweep.pipeline.results.view import PageSettings
from scenesweep.pipeline.scene import RasterFile, SceneRef
from tests.faults.pictures import never_written
from tests.rasters import TRANSFORM, UTM, make_card, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import sweep

GEOS = "+proj=geos +h=35786023 +lon_0=-137 +sweep=x +ellps=GRS80"
DISK_PX, DISK_M = 320, 34_000.0
"""A picture of the whole Earth from above 137° W, 320 px a side of 34 km."""
DISK = Affine(DISK_M, 0, -DISK_PX / 2 * DISK_M, 0, -DISK_M, DISK_PX / 2 * DISK_M)


def sparse(path: Path, pixels: NDArray[Any], written: list[Window], **profile: Any) -> Path:
    """Write some windows of (bands, H, W) pixels to blocks of 64 px; other blocks stay away."""
    bands, height, width = pixels.shape
    shape = {"width": width, "height": height, "count": bands, "dtype": pixels.dtype}
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64, "sparse_ok": True}
    with rasterio.open(
        path, "w", driver="GTiff", crs=UTM, transform=TRANSFORM, **shape, **blocks, **profile
    ) as dataset:
        for window in written:
            dataset.write(pixels[:, *window.toslices()], window=window)
    return path


def test_blocks_that_were_never_written_are_not_ground(tmp_path: Path) -> None:
    """Black pixels that nobody wrote are not looked at; those that were written are."""
    pixels, truth = paint_squares(448, 448, largest=12, seed=3)
    left = Window(0, 0, 192, 448)
    path = sparse(tmp_path / "s.tif", pixels, [left])
    scene = inspect(str(path))
    assert scene.masked
    assert valid_share(scene) == pytest.approx(192 / 448, abs=0.02)
    assert "28 of 49 blocks (the first at columns 192-256, rows 0-64)" in scene.warnings[0]
    job = make_job(tmp_path / "out")
    plan = plan_scene(ref_of(path), job)
    assert 0 < plan.layout.windows < plan.layout.windows + plan.layout.skipped
    (result,) = sweep([path], job)
    inside = truth[truth[:, 0] < 192]
    assert result.detections == len(inside) > 5


@pytest.mark.parametrize("kind", ["interleaved", "apart", "two files"])
def test_a_pixel_is_ground_where_some_band_was_written(tmp_path: Path, kind: str) -> None:
    pixels = np.full((2, 128, 128), 7, np.uint8)
    if kind == "two files":
        files = [
            sparse(tmp_path / f"{i}.tif", pixels[:1], [Window(0, 64 * i, 64, 64)]) for i in (0, 1)
        ]
        scene = inspect_scene(SceneRef(tuple(RasterFile(str(f)) for f in files), "both"))
    else:
        layout = "band" if kind == "apart" else "pixel"
        path = sparse(tmp_path / "s.tif", pixels, [Window(0, 0, 64, 128)], interleave=layout)
        scene = inspect(str(path))
    with open_scene(scene) as opened:
        valid = opened.dataset_mask(window=Window(0, 0, 128, 128)) > 0
        assert (valid == (np.arange(128) < 64)).all()
        assert (opened.dataset_mask(out_shape=(8, 8)) > 0).sum() == 32


def test_written_and_valid_are_both_asked_for(tmp_path: Path) -> None:
    """Where blocks were written, nodata counts; a window of no block is not read at all."""
    pixels = np.full((1, 128, 128), 7, np.uint8)
    pixels[:, :10] = 255
    path = sparse(tmp_path / "s.tif", pixels, [Window(0, 0, 64, 64)], nodata=255)
    with rasterio.open(path) as dataset:
        ground = WrittenPixels(dataset, np.array([[True, False], [False, False]]))
        valid = ground.dataset_mask(window=Window(0, 0, 128, 128)) > 0
        assert valid.sum() == 54 * 64
        assert valid[10:64, :64].all()
        assert (ground.read([1], window=Window(64, 0, 64, 64)) == 255).all()
        assert ground.read([1, 1], out_shape=(2, 5, 6)).shape == (2, 5, 6)


def test_samples_are_taken_where_gdal_takes_them(tmp_path: Path) -> None:
    values = np.arange(90 * 70, dtype=np.int32).reshape(1, 70, 90)
    path = write_raster(tmp_path / "s.tif", values)
    window, shape = Window(11, 7, 60, 44), (1, 11, 12)
    columns, rows = sample_axes((90, 70), window, shape)
    with rasterio.open(path) as dataset:
        read = dataset.read([1], window=window, out_shape=shape)
    assert (read[0] == values[0][np.ix_(rows.astype(int), columns.astype(int))]).all()


def test_a_tiny_file_that_claims_millions_of_windows_has_no_ground(tmp_path: Path) -> None:
    """300 bytes that claim 10¹² pixels, with no block: 5 million windows of which none is kept."""
    path = never_written(tmp_path / "bomb.tif")
    assert path.stat().st_size < 300
    job = make_job(tmp_path / "out", card=make_card(chip_px=512, margin_px=32))
    tracemalloc.start()
    plan = plan_scene(ref_of(path), job)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.layout.windows == 0
    assert plan.layout.skipped > 4_000_000
    assert peak < 300e6


@pytest.mark.parametrize("written", [True, False])
def test_more_windows_than_allowed_are_refused_with_their_numbers(
    tmp_path: Path, written: bool
) -> None:
    if written:
        path = write_raster(tmp_path / "s.tif", np.ones((1, 400, 400), np.uint8))
        job = make_job(tmp_path / "out", "engine.max_windows=100")
        says = r"400 x 400 pixels make 144 windows of 64 px \(12 x 12 in all\), at most 100 are"
    else:
        path = never_written(tmp_path / "bomb.tif")
        job = make_job(tmp_path / "out")  # windows of 64 px, 32 px apart
        says = r"make 976,500,001 windows of 64 px \(31,249 x 31,249 in all\), at most 16,000,000"
    tracemalloc.start()
    with pytest.raises(SceneError, match=says):
        plan_scene(ref_of(path), job)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_windows_without_pixels_do_not_count(tmp_path: Path) -> None:
    pixels = np.zeros((1, 400, 400), np.uint8)
    pixels[:, :50, :50] = 9
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    job = make_job(tmp_path / "out", "engine.max_windows=10")
    assert 0 < plan_scene(ref_of(path), job).layout.windows <= 10


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A picture of the whole Earth, with squares on it, on its edge and off it."""
    pixels, _ = paint_squares(DISK_PX, DISK_PX, largest=12, seed=5, count=150)
    return write_raster(tmp_path / "disk.tif", pixels, crs=GEOS, transform=DISK)


def test_pixels_off_the_earth_are_not_valid(disk: Path) -> None:
    scene = inspect(str(disk))
    assert scene.masked
    assert scene.off_earth
    assert scene.gsd_m == pytest.approx((DISK_M, DISK_M), rel=0.02)
    assert scene.crs is not None
    assert scene.transform is not None
    rows, columns = np.indices((DISK_PX, DISK_PX)) + 0.5
    expected = on_earth(np.stack([columns, rows], axis=-1), scene.crs, scene.transform)
    assert 0.7 < expected.mean() < 0.8
    with open_scene(scene) as opened:
        assert ((opened.dataset_mask() > 0) == expected).all()
        window = Window(3, 5, 101, 77)
        assert ((opened.dataset_mask(window=window) > 0) == expected[window.toslices()]).all()


def test_a_picture_of_the_whole_earth_goes_all_the_way(disk: Path, tmp_path: Path) -> None:
    """Tables, GeoJSON, STAC, quicklook and page; boxes with a corner in the sky are dropped."""
    settings = ("publish.quicklook=true", "publish.formats=[geojson,flatgeobuf,gpkg,coco]")
    out = tmp_path / "out"
    job = make_job(out, *settings, card=make_card(gsd_m=DISK_M))
    (result,) = sweep([disk], job)
    assert result.status == "done", result.reason
    assert any("lies off the Earth" in warning for warning in result.warnings)
    frame = gpd.read_parquet(result.files["detections"])
    _, truth = paint_squares(DISK_PX, DISK_PX, largest=12, seed=5, count=150)
    scene = inspect(str(disk))
    assert scene.crs is not None
    assert scene.transform is not None
    quads = truth[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    placed = on_earth(quads, scene.crs, scene.transform).all(axis=1)
    assert 0 < placed.sum() < len(truth)
    found = {tuple(row) for row in frame[["x_min", "y_min", "x_max", "y_max"]].to_numpy()}
    assert {tuple(box) for box in truth[placed]} == found
    assert frame.geometry.is_valid.all()
    assert np.isfinite(frame[["center_lon", "center_lat", "area_m2"]].to_numpy()).all()
    item = json.loads(Path(result.files["item"]).read_text())
    assert item["geometry"]["type"] == "MultiPolygon"  # 137° W sees beyond the antimeridian
    index, failed = view(out, [], out / "view", PageSettings())
    assert failed == 0
    assert index.is_file()


def test_the_footprint_of_the_whole_earth_is_what_the_satellite_sees(disk: Path) -> None:
    outline = footprint(inspect(str(disk)))
    assert outline is not None
    assert outline.is_valid
    west, south, east, north = outline.bounds
    assert (west, east) == (-180, 180)
    assert (south, north) == pytest.approx((-81, 81), abs=1.5)
    assert 0.35 < outline.area / (360 * 180) < 0.40


def test_a_sector_whose_middle_is_off_the_earth_has_a_size(tmp_path: Path) -> None:
    """The upper left quarter of the picture, as far as the sky is its middle."""
    corner = DISK @ Affine.translation(0, 0)
    path = write_raster(
        tmp_path / "s.tif", np.ones((1, 90, 90), np.uint8), crs=GEOS, transform=corner
    )
    scene = inspect(str(path))
    assert scene.off_earth
    assert scene.gsd_m is not None
    assert min(scene.gsd_m) > DISK_M
