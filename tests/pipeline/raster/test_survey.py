"""A survey of a scene: the mask of GDAL where it can be had, within a budget of decoded bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.shutil import copy
from rasterio.windows import Window

from scenesweep.pipeline.raster import survey
from scenesweep.pipeline.raster.assemble import inspect_scene
from scenesweep.pipeline.raster.pixels import open_scene
from scenesweep.pipeline.raster.sample import sample_valid
from scenesweep.pipeline.raster.survey import EMPTY, FULL, UNKNOWN, Survey, block_states
from scenesweep.pipeline.scene import RasterFile, SceneRef
from tests.pipeline.raster.test_assemble import cut, refs
from tests.pipeline.raster.test_ground import sparse
from tests.rasters import ref_of, write_raster

SIDE, STEP = 700, 16
SHAPE = -(-SIDE // STEP), -(-SIDE // STEP)
TILED: dict[str, Any] = {"tiled": True, "blockxsize": 64, "blockysize": 64}


def patchy(bands: int = 2, dtype: Any = np.uint8, side: int = SIDE) -> NDArray[Any]:
    """Noise in a disk, an even lake in it, and nodata (0) elsewhere."""
    pixels = np.random.default_rng(0).integers(1, 250, (bands, side, side)).astype(dtype)
    y, x = np.ogrid[:side, :side]
    pixels[:, np.hypot(x - 300, y - 350) > 220] = 0
    pixels[:, 300:440, 250:390] = 7
    return pixels


def surveyed(
    ref: SceneRef, budget: float, shape: tuple[int, int] = SHAPE
) -> tuple[NDArray[np.bool_], Survey]:
    scene, done = inspect_scene(ref), Survey(int(budget))
    with open_scene(scene, survey=done) as dataset:
        return dataset.dataset_mask(out_shape=shape) > 0, done


def sampled(ref: SceneRef) -> NDArray[np.bool_]:
    with open_scene(inspect_scene(ref)) as dataset:
        return dataset.dataset_mask(out_shape=SHAPE) > 0


PROFILES: list[dict[str, Any]] = [
    {"compress": "DEFLATE", **TILED},
    {"compress": "DEFLATE", "interleave": "pixel", **TILED},
    {"compress": "ZSTD", "predictor": 2, "interleave": "band", **TILED},
    {"compress": "LZW", "blockysize": 3},
]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_blocks_that_repeat_give_the_samples_of_gdal(
    tmp_path: Path, profile: dict[str, Any], dtype: Any
) -> None:
    path = write_raster(tmp_path / "s.tif", patchy(dtype=dtype), nodata=0, **profile)
    whole = 2 * np.dtype(dtype).itemsize * SIDE**2
    valid, done = surveyed(ref_of(path), 0.8 * whole)
    assert done.exact
    assert 0 <= done.left_bytes < 0.8 * whole
    np.testing.assert_array_equal(valid, sampled(ref_of(path)))


def test_within_the_budget_gdal_samples_and_beyond_it_unknown_blocks_count_as_valid(
    tmp_path: Path,
) -> None:
    path = write_raster(tmp_path / "s.tif", patchy(), nodata=0, compress="DEFLATE", **TILED)
    truth = sampled(ref_of(path))
    for budget in (1e9, 800_000, 60_000, 0):
        valid, done = surveyed(ref_of(path), budget)
        assert valid[truth].all()
        assert done.exact == (budget > 60_000)
        assert done.exact == bool((valid == truth).all())
    some, _ = surveyed(ref_of(path), 60_000)  # enough for one empty block, not for the disk
    assert some.mean() < 0.6


def test_uncompressed_blocks_are_not_compared(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", patchy(), nodata=0, **TILED)
    valid, done = surveyed(ref_of(path), 100_000)
    assert valid.all()
    assert not done.exact


@pytest.mark.parametrize("kind", ["overviews", "no mask", "unwritten"])
def test_what_is_cheap_costs_nearly_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.tif"
    if kind == "unwritten":
        sparse(path, patchy(), [Window(0, 0, 192, 192)], nodata=0)
    else:
        nodata = None if kind == "no mask" else 0
        write_raster(path, patchy(), nodata=nodata, **TILED)
    if kind == "overviews":
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4, 8, 16], Resampling.nearest)
    valid, done = surveyed(ref_of(path), 100_000)
    assert done.exact
    np.testing.assert_array_equal(valid, sampled(ref_of(path)))


def test_an_alpha_band_is_in_the_pixels_and_a_mask_is_not(tmp_path: Path) -> None:
    alpha = write_raster(tmp_path / "a.tif", patchy(), compress="DEFLATE", **TILED)
    with rasterio.open(alpha, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    masked = write_raster(tmp_path / "m.tif", patchy(), compress="DEFLATE", **TILED)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as dataset:
        dataset.write_mask(patchy()[0] > 0)
    found, done = surveyed(ref_of(alpha), 800_000)
    assert done.exact
    np.testing.assert_array_equal(found, sampled(ref_of(alpha)))
    with rasterio.open(masked) as dataset:
        assert block_states(str(masked), dataset, Survey()) is None
    _, cheap = surveyed(ref_of(masked), 150_000)  # a bit for each pixel
    assert cheap.exact


def test_the_files_of_a_scene_share_the_budget(tmp_path: Path) -> None:
    pixels, files = patchy(), []
    for name, box in (("west", (0, 0, 350, SIDE)), ("east", (350, 0, SIDE, SIDE))):
        raw = cut(tmp_path / f"{name}.raw", pixels, box, nodata=0)
        copy(raw, tmp_path / f"{name}.tif", driver="GTiff", **TILED)
        files.append(tmp_path / f"{name}.tif")
    ref = SceneRef(refs(*map(str, files)), "both", "mosaic")
    valid, done = surveyed(ref, 600_000)  # one of two
    truth = sampled(ref)
    assert not done.exact
    np.testing.assert_array_equal(valid[:, :21], truth[:, :21])
    assert valid[:, 23:].all()
    bands = SceneRef(tuple(RasterFile(str(f)) for f in (files[0], files[0])), "both")
    stacked, _ = surveyed(bands, 600_000, (44, 22))
    assert stacked.all()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_survey_never_loses_a_valid_sample(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    draw = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("survey")
    pixels = patchy(side=int(draw.integers(65, 300)))
    pixels[:, :: int(draw.integers(2, 90))] = 0
    profile = PROFILES[int(draw.integers(len(PROFILES)))]
    path = write_raster(folder / "s.tif", pixels, nodata=0, **profile)
    side = pixels.shape[1]
    shape = tuple(int(n) for n in draw.integers(1, side, 2))
    with open_scene(inspect_scene(ref_of(path))) as dataset:
        truth = dataset.dataset_mask(out_shape=(shape[0], shape[1])) > 0
    valid, done = surveyed(
        ref_of(path), float(draw.integers(0, 2 * pixels.nbytes)), (shape[0], shape[1])
    )
    assert valid[truth].all()
    assert not done.exact or (valid == truth).all()


def test_blocks_with_the_same_bytes_have_one_state(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", patchy(), nodata=0, compress="DEFLATE", **TILED)
    budget = Survey()
    with rasterio.open(path) as dataset:
        states = block_states(str(path), dataset, budget)
    assert states is not None
    assert states.shape == (11, 11)
    assert states[0, 0] == EMPTY == states[10, 0] == states[0, 10]  # cut by the edge as well
    assert (states == FULL).sum() == 2  # those that lie in the lake
    assert (states == UNKNOWN).any()
    assert survey.SURVEY_BYTES - budget.left_bytes <= 3 * 2 * 64**2


def test_a_vrt_costs_what_its_sources_cover(tmp_path: Path) -> None:
    pixels = patchy(dtype=np.uint16)[:1, :64, 200:264] + np.uint16(1)
    write_raster(tmp_path / "chip.tif", pixels)
    source = '<SourceFilename relativeToVRT="1">chip.tif</SourceFilename><SourceBand>1</SourceBand>'
    rects = (
        '<SrcRect xOff="0" yOff="0" xSize="64" ySize="64"/>'
        '<DstRect xOff="9000" yOff="300" xSize="64" ySize="64"/>'
    )
    (tmp_path / "s.vrt").write_text(
        '<VRTDataset rasterXSize="20000" rasterYSize="20000"><SRS>EPSG:32611</SRS>'
        "<GeoTransform>430000,0.6,0,3775000,0,-0.6</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1"><NoDataValue>0</NoDataValue>'
        f"<SimpleSource>{source}{rects}</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    scene, done = inspect_scene(ref_of(tmp_path / "s.vrt"), drivers=("GTiff", "VRT")), Survey(8192)
    with open_scene(scene, survey=done) as dataset:
        valid = dataset.dataset_mask(out_shape=(1250, 1250)) > 0
    assert (done.exact, done.left_bytes) == (True, 0)
    assert 16 <= valid.sum() <= 25  # VRT samples lie a little beside those of a file
    assert 16 <= sample_valid(scene, [1], most=1250).size <= 25
