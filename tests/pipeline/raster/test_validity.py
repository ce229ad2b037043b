"""Which pixels are valid: the same as GDAL's mask, without reading bands again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.raster.chips import read_shard
from scenesweep.pipeline.raster.validity import read_decimated, read_with_validity
from tests.chips import noise
from tests.rasters import make_card, make_job, ref_of, write_raster

WINDOW = Window(10, 20, 60, 50)


class Counted:
    """A rasterio dataset that counts its reads."""

    def __init__(self) -> None:
        self.bands: list[int] = []
        self.masks = 0
        read, mask = DatasetReader.read, DatasetReader.dataset_mask

        def counted_read(dataset: Any, indexes: list[int], **options: Any) -> NDArray[Any]:
            self.bands += indexes
            pixels: NDArray[Any] = read(dataset, indexes, **options)
            return pixels

        def counted_mask(dataset: Any, **options: Any) -> NDArray[Any]:
            self.masks += 1
            valid: NDArray[Any] = mask(dataset, **options)
            return valid

        # a class of Cython's has no attributes that can be set, a subclass has
        attributes = {"read": counted_read, "dataset_mask": counted_mask}
        self.opened = type("Dataset", (DatasetReader,), attributes)


def holed(dtype: str, nodata: float) -> NDArray[Any]:
    """Three bands of noise: one pixel in twenty is nodata in each band, a corner in all."""
    pixels = noise(3, 90, 100, dtype)
    pixels[np.random.default_rng(1).random(pixels.shape) < 0.05] = nodata
    pixels[:, :40, :30] = nodata
    return pixels


@pytest.mark.parametrize("bands", [[1, 2, 3], [3, 1], [2]])
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", 0), ("uint8", 255), ("uint16", 65_535), ("int16", -32_768), ("int8", -5)],
)
def test_nodata_is_compared_with_the_pixels_that_were_read(
    tmp_path: Path, dtype: str, nodata: int, bands: list[int]
) -> None:
    counted = Counted()
    path = write_raster(tmp_path / "s.tif", holed(dtype, nodata), nodata=nodata)
    with counted.opened(path) as dataset:
        expected = dataset.dataset_mask(window=WINDOW) > 0
        counted.masks, counted.bands = 0, []
        pixels, valid = read_with_validity(dataset, bands, WINDOW, masked=True)
        assert counted.masks == 0
        assert counted.bands == [*bands, *sorted({1, 2, 3} - set(bands))]
        np.testing.assert_array_equal(pixels, dataset.read(bands, window=WINDOW))
    assert valid is not None
    np.testing.assert_array_equal(valid, expected)


def test_a_band_that_is_valid_everywhere_is_enough(tmp_path: Path) -> None:
    counted = Counted()
    path = write_raster(tmp_path / "s.tif", noise(3, 90, 100), nodata=0)
    with counted.opened(path) as dataset:
        _, valid = read_with_validity(dataset, [2], WINDOW, masked=True)
    assert (valid, counted.bands, counted.masks) == (None, [2], 0)


def alpha(path: Path) -> None:
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.alpha]


def mask_band(path: Path) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.tri(90, 100, dtype=np.uint8) * 255)


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("dtype", "nodata", "change"),
    [
        ("uint8", 0, alpha),
        ("uint8", 0, mask_band),
        ("uint8", None, mask_band),
        ("int32", 0, nothing),
        ("float32", 0.0, nothing),
        ("float32", None, nothing),
    ],
)
def test_other_masks_are_gdals(
    tmp_path: Path, dtype: str, nodata: float | None, change: Any
) -> None:
    pixels = holed(dtype, 0)
    if dtype == "float32":
        pixels[1, 50, 50] = np.nan
    path = write_raster(tmp_path / "s.tif", pixels, nodata=nodata)
    change(path)
    with rasterio.open(path) as dataset:
        expected = dataset.dataset_mask(window=WINDOW) > 0
        read, valid = read_with_validity(dataset, [1, 2], WINDOW, masked=True)
    if dtype == "float32":
        expected &= np.isfinite(read).all(axis=0)
    found = np.ones(expected.shape, np.bool_) if valid is None else valid
    np.testing.assert_array_equal(found, expected)


def test_shards_without_invalid_pixels_have_no_mask(tmp_path: Path) -> None:
    pixels = noise(1, 200, 200)
    pixels[:, :50, :50] = 0
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    plan = plan_scene(ref_of(path), make_job(tmp_path, "tiling.shard=1", card=make_card()))
    read = [read_shard(plan.source, plan.layout.shard(number)) for number in plan.layout.numbers]
    assert {chips.valid is None for chips in read} == {True, False}
    points = np.array([[1.0, 1.0], [60.0, 60.0]])
    for chips in read:
        (tile,) = chips.shard.tiles
        known = np.ones((64, 64), np.bool_) if chips.valid is None else chips.valid
        assert chips.valid_at(tile, points).tolist() == [known[1, 1], known[60, 60]]


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint16", None), ("float32", 0)])
@pytest.mark.parametrize("overviews", [False, True])
def test_a_decimated_read_has_the_mask_of_gdal(
    tmp_path: Path, dtype: str, nodata: float | None, overviews: bool
) -> None:
    path = write_raster(tmp_path / "s.tif", holed(dtype, 0), nodata=nodata)
    if overviews:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4], Resampling.average)
    with rasterio.open(path) as dataset:
        for shape in ((90, 100), (17, 23), (1, 1)):
            pixels, valid = read_decimated(dataset, [3, 1], shape)
            np.testing.assert_array_equal(pixels, dataset.read([3, 1], out_shape=(2, *shape)))
            np.testing.assert_array_equal(valid, dataset.dataset_mask(out_shape=shape) > 0)
