"""Pixels as the card wants them: bands, scale, ground sample distance, validity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy
from rasterio.transform import from_origin

from scenesweep.pipeline.errors import SceneError, UnreadableScene, WrongBands
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.raster.chips import band_indexes, scene_stretch
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.stretch import Stretch, to_uint8
from tests.chips import mosaic, noise
from tests.rasters import make_card, make_job, ref_of, write_raster


def test_chips_put_together_are_the_scene(tmp_path: Path) -> None:
    pixels = noise(3, 211, 307)
    path = write_raster(tmp_path / "s.tif", pixels)
    plan = plan_scene(ref_of(path), make_job(tmp_path, card=make_card(bands=(3, 1))))
    np.testing.assert_array_equal(mosaic(plan), pixels[[2, 0]])


@pytest.mark.parametrize("gsd", [0.2, 0.45, 1.1])
def test_resampling_has_no_seams(tmp_path: Path, gsd: float) -> None:
    pixels = noise(1, 500, 600)
    path = write_raster(tmp_path / "s.tif", pixels, transform=from_origin(4e5, 4e6, gsd, gsd))
    by_windows = mosaic(plan_scene(ref_of(path), make_job(tmp_path, "tiling.shard=1")))
    at_once = mosaic(plan_scene(ref_of(path), make_job(tmp_path, "tiling.chip=2048")))
    np.testing.assert_array_equal(by_windows, at_once)
    assert by_windows.shape[2] == round(600 * gsd / 0.6)
    assert by_windows.mean() == pytest.approx(pixels.mean(), rel=0.02)


@pytest.mark.parametrize("gsd", [2.3, 2.5, 400.0])
def test_a_scene_much_coarser_than_the_model_is_refused(tmp_path: Path, gsd: float) -> None:
    """The card has 0.6 m: pixels of up to 2.4 m are resampled."""
    path = write_raster(
        tmp_path / "s.tif", noise(1, 90, 90), transform=from_origin(4e5, 4e6, gsd, gsd)
    )
    if gsd < 2.4:
        assert plan_scene(ref_of(path), make_job(tmp_path)).source.scale[0] == pytest.approx(
            0.26, 0.1
        )
        return
    large = ("read.max_coarser=700", "engine.max_windows=4000000")
    says = r"expected pixels of at most 2\.4 m, found [\d.]+ m: .* the 0\.6 m of the model"
    with pytest.raises(SceneError, match=says):
        plan_scene(ref_of(path), make_job(tmp_path))
    assert plan_scene(ref_of(path), make_job(tmp_path, *large)).layout.windows


def test_shrinking_averages_the_area(tmp_path: Path) -> None:
    pixels = noise(1, 300, 300)
    path = write_raster(tmp_path / "s.tif", pixels, transform=from_origin(4e5, 4e6, 0.2, 0.2))
    means = pixels.reshape(1, 100, 3, 100, 3).mean(axis=(2, 4))
    read = mosaic(plan_scene(ref_of(path), make_job(tmp_path)))
    np.testing.assert_allclose(read, means, atol=0.51)


def test_a_gsd_within_a_tenth_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = noise(1, 100, 100)
    path = write_raster(tmp_path / "s.tif", pixels, transform=from_origin(4e5, 4e6, 0.65, 0.65))
    np.testing.assert_array_equal(mosaic(plan_scene(ref_of(path), make_job(tmp_path))), pixels)


def test_invalid_pixels_are_filled_and_do_not_bleed_when_resampled(tmp_path: Path) -> None:
    pixels = np.full((1, 240, 240), 200, np.uint8)
    pixels[:, :, 120:] = 7
    path = write_raster(
        tmp_path / "s.tif", pixels, nodata=7, transform=from_origin(4e5, 4e6, 0.25, 0.25)
    )
    read = mosaic(plan_scene(ref_of(path), make_job(tmp_path)))
    assert set(np.unique(read)) == {0, 128, 200}  # not looked at, filled, valid


def test_bands_are_found_by_name_color_and_index(tmp_path: Path) -> None:
    names = ("nir", "RED", "", "")
    path = write_raster(tmp_path / "s.tif", noise(4, 8, 8), descriptions=names)
    with rasterio.open(path, "r+") as dataset:
        kinds = rasterio.enums.ColorInterp
        dataset.colorinterp = [kinds.undefined, kinds.undefined, kinds.green, kinds.undefined]
    scene = inspect(str(path))
    assert band_indexes(scene, ("red", "green", "near infrared", 4, 4)) == (2, 3, 1, 4, 4)
    with pytest.raises(WrongBands, match=r"asks for 2 bands \(red, blue\).*has 4.*missing: blue"):
        band_indexes(scene, ("red", "blue"))
    with pytest.raises(WrongBands, match=r"in this order, --set read.bands=\[1,2,3,4\] says so"):
        band_indexes(scene, ("red", "blue", "green", "nir"))
    with pytest.raises(WrongBands, match="missing: 5"):
        band_indexes(scene, (5,))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("gsd", [0.6, 0.3])
def test_a_band_that_may_be_missing_is_filled_with_its_mean(
    tmp_path: Path, dtype: Any, gsd: float
) -> None:
    pixels = noise(2, 90, 120, dtype)
    pixels[:, :, :30] = 0
    path = write_raster(
        tmp_path / "s.tif",
        pixels,
        nodata=0,
        descriptions=("red", "green"),
        transform=from_origin(4e5, 4e6, gsd, gsd),
    )
    names = ("green", "nir", "red")
    scaling = {"mean": (0.1, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    card = make_card(bands=names, missing_bands_ok=("nir",), scaling=scaling)
    filled = mosaic(plan_scene(ref_of(path), make_job(tmp_path, card=card)))
    two = make_card(bands=names[::2], scaling={"mean": (0.1, 0.3), "std": (0.2, 0.2)})
    whole = mosaic(plan_scene(ref_of(path), make_job(tmp_path, card=two)))
    np.testing.assert_array_equal(filled[[0, 2]], whole)
    edge = round(30 * gsd / 0.6)
    assert set(np.unique(filled[1, :, edge:])) == {102}
    assert (filled[:, :, :edge] == np.array([26, 102, 76])[:, None, None]).all()


def test_a_scene_must_have_some_band_and_all_that_may_not_be_missing(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", noise(1, 8, 8), descriptions=("red",))
    scene = inspect(str(path))
    assert band_indexes(scene, ("nir", "red"), missing_ok=("nir",)) == (0, 1)
    with pytest.raises(WrongBands, match="missing: nir"):
        band_indexes(scene, ("nir",), missing_ok=("nir",))
    with pytest.raises(WrongBands, match="missing: nir, blue"):
        band_indexes(scene, ("nir", "red", "blue"), missing_ok=("nir",))


def test_sixteen_bits_use_the_cards_numbers_or_the_scenes_percentiles(tmp_path: Path) -> None:
    pixels = np.arange(10_000, dtype=np.uint16).reshape(1, 100, 100)
    scene = inspect(str(write_raster(tmp_path / "s.tif", pixels)))

    def stretch(source_range: tuple[float, float] | None) -> Stretch | None:
        return scene_stretch(scene, (1,), source_range=source_range, percentiles=(2, 98))

    assert stretch((0, 5000)) == Stretch(((0, 5000),))
    found = stretch(None)
    assert found is not None
    assert found.ranges[0] == pytest.approx((200, 9799), abs=1)
    values = to_uint8(np.array([[[0, 2500, 9999]]], np.uint16), Stretch(((0, 5000),)))
    assert values.tolist() == [[[0, 128, 255]]]


def test_all_chips_of_a_scene_share_one_stretch(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 200, dtype=np.float32).reshape(1, 1, 200).repeat(200, axis=1)
    ramp[0, 50, 50] = np.nan
    path = write_raster(tmp_path / "s.tif", ramp)
    read = mosaic(plan_scene(ref_of(path), make_job(tmp_path)))
    assert (np.diff(read[0, 0].astype(int)) >= 0).all()
    assert (int(read[0, 0, 10]), int(read[0, 0, 190])) == pytest.approx((8, 248), abs=1)
    assert read[0, 50, 50] == 128  # not valid: filled with the band's mean


def test_a_truncated_file_is_an_error_of_its_scene(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    copy(write_raster(tmp_path / "whole.tif", noise(1, 800, 800)), path, driver="COG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableScene, match=r"s\.tif: .*beyond the end of the file"):
        plan_scene(ref_of(path), make_job(tmp_path))
