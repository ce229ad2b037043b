"""What a scene is, read from its header."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.shutil import copy
from rasterio.transform import from_origin

from scenesweep.pipeline.errors import NoGeoreference, SceneError, UnreadableScene
from scenesweep.pipeline.raster import gdal
from scenesweep.pipeline.raster.inspect import inspect, parse_time
from scenesweep.pipeline.scene import stem
from tests.rasters import UTM, write_raster

PIXELS = np.ones((3, 40, 60), np.uint8)


def test_bands_size_and_type(tmp_path: Path) -> None:
    names = ("Red", "", "NIR")
    path = write_raster(tmp_path / "a b(1).tif", PIXELS, descriptions=names, nodata=0)
    scene = inspect(str(path))
    assert (scene.id, scene.width, scene.height, scene.dtype) == ("a_b_1", 60, 40, "uint8")
    assert [band.description for band in scene.bands] == ["red", "", "nir"]
    assert (scene.nodata, scene.masked, scene.megapixels) == (0.0, True, 0.0024)
    assert not inspect(str(write_raster(tmp_path / "full.tif", PIXELS))).masked


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        (UTM, from_origin(430_000, 3_775_000, 0.6, 0.6), (0.6, 0.6)),
        ("EPSG:3857", from_origin(9_500_000, 3_214_000, 10, 10), (8.86, 8.81)),
        ("EPSG:4326", from_origin(85.5, 60.0, 1e-5, 1e-5), (0.558, 1.114)),
        (UTM, Affine(0.3, 0.4, 430_000, 0.4, -0.3, 3_775_000), (0.5, 0.5)),
        (UTM, Affine(0.6, 0, 430_000, 0, 0.6, 3_775_000), (0.6, 0.6)),
    ],
)
def test_ground_sample_distance_is_in_metres_on_the_ground(
    tmp_path: Path, crs: str, transform: Affine, expected: tuple[float, float]
) -> None:
    scene = inspect(str(write_raster(tmp_path / "s.tif", PIXELS, crs=crs, transform=transform)))
    assert scene.gsd_m == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask", "float", "none"])
def test_scenes_that_may_have_invalid_pixels_say_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.tif"
    if kind == "mask":
        write_raster(path, PIXELS)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(np.eye(40, 60, dtype=np.bool_))
    elif kind == "alpha":
        write_raster(path, PIXELS[:2], alpha="YES")
    elif kind == "float":
        write_raster(path, PIXELS.astype(np.float32))
    else:
        write_raster(path, PIXELS, nodata=0 if kind == "nodata" else None)
    assert inspect(str(path)).masked is (kind != "none")


def test_acquisition_time_comes_from_a_tag(tmp_path: Path) -> None:
    tags = {"TIFFTAG_DATETIME": "2020:05:31 18:22:01"}
    scene = inspect(str(write_raster(tmp_path / "s.tif", PIXELS, tags=tags)))
    assert scene.acquired_at == datetime(2020, 5, 31, 18, 22, 1, tzinfo=UTC)
    assert parse_time("2020-05-31T20:22:01+02:00") == scene.acquired_at
    assert parse_time("last week") is None
    assert inspect(str(write_raster(tmp_path / "t.tif", PIXELS))).acquired_at is None


def test_the_fingerprint_follows_the_file(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS)
    first = inspect(str(path)).fingerprint
    assert inspect(str(path)).fingerprint == first
    write_raster(path, PIXELS * 2)
    assert inspect(str(path)).fingerprint != first


def test_a_scene_without_georeference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    with pytest.warns(match="no geotransform"):
        write_raster(path, PIXELS, crs=None, transform=None)
    with pytest.raises(NoGeoreference, match=r"no coordinate reference system.*--pixel-coord"):
        inspect(str(path))
    scene = inspect(str(path), pixel_coordinates=True)
    assert (scene.crs, scene.transform, scene.gsd_m) == (None, None, None)


def test_a_vrt_is_opened_only_when_named(tmp_path: Path) -> None:
    write_raster(tmp_path / "s.tif", PIXELS)
    vrt = tmp_path / "s.vrt"
    with rasterio.open(tmp_path / "s.tif") as dataset:
        gdal.keep_to(["VRT"])
        copy(dataset, vrt, driver="VRT")
    disguised = tmp_path / "vrt.tif"
    disguised.write_bytes(vrt.read_bytes())
    for path in (vrt, disguised):
        with pytest.raises(UnreadableScene, match="expected one of the formats GTiff"):
            inspect(str(path))
    assert inspect(str(vrt), drivers=("GTiff", "VRT")).driver == "VRT"


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS.astype(np.complex64))
    with pytest.raises(SceneError, match="expected one real data type"):
        inspect(str(path))


def test_ids_are_safe_file_names() -> None:
    assert stem("/a/b/scene.v2.tif") == "scene.v2"
    assert stem("s3://bucket/key/x.tif") == "x"
    assert stem("C:\\data\\köln 1.tif") == "k_ln_1"
    assert stem("...") == "scene"
