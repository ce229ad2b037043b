"""One scene in several files: bands stacked, mosaics; they equal the one file they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import windows
from rasterio.shutil import copy
from rasterio.warp import Resampling, reproject

from scenesweep.pipeline.errors import SceneError, UnreadableScene
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.raster.assemble import inspect_scene
from scenesweep.pipeline.raster.chips import read_shard
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.pixels import open_scene
from scenesweep.pipeline.scene import RasterFile, Scene, SceneRef
from tests.chips import mosaic, noise
from tests.rasters import TRANSFORM, make_card, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import boxes_of, ordered, published, sweep

NAMES = ("red", "green", "nir")


def cut(path: Path, pixels: NDArray[Any], box: tuple[int, int, int, int], **profile: Any) -> str:
    """Write the piece (column, row, column, row) of a raster."""
    x0, y0, x1, y1 = box
    transform = TRANSFORM @ Affine.translation(x0, y0)
    return str(write_raster(path, pixels[:, y0:y1, x0:x1], transform=transform, **profile))


def refs(*hrefs: str) -> tuple[RasterFile, ...]:
    return tuple(RasterFile(href) for href in hrefs)


def stacked(folder: Path, pixels: NDArray[Any], **profile: Any) -> SceneRef:
    """Write each band into a file of its own."""
    files = [
        RasterFile(str(write_raster(folder / f"{name}.tif", band[None], **profile)), (name,))
        for name, band in zip(NAMES, pixels, strict=True)
    ]
    return SceneRef(tuple(files), "stack")


def same_chips(one: Any, other: Any) -> None:
    """Compare pixels and validity of two plans, shard by shard."""
    assert list(one.layout.numbers) == list(other.layout.numbers)
    for number in one.layout.numbers:
        a = read_shard(one.source, one.layout.shard(number))
        b = read_shard(other.source, other.layout.shard(number))
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.valid, b.valid)


@pytest.mark.parametrize("gsd", [0.6, 0.25])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_stacked_files_are_the_file_with_all_bands(tmp_path: Path, dtype: Any, gsd: float) -> None:
    pixels = noise(3, 150, 210, dtype)
    pixels[:, 20:90, 30:80] = 0
    profile: dict[str, Any] = {"nodata": 0, "transform": Affine(gsd, 0, 4e5, 0, -gsd, 4e6)}
    whole = write_raster(tmp_path / "whole.tif", pixels, descriptions=NAMES, **profile)
    card = make_card(bands=("nir", "red"))
    job = make_job(tmp_path, card=card)
    same_chips(
        plan_scene(stacked(tmp_path, pixels, **profile), job), plan_scene(ref_of(whole), job)
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[*HealthCheck])
@given(x=st.integers(1, 199), y=st.integers(1, 149), overlap=st.integers(0, 20))
def test_a_mosaic_is_the_raster_that_was_cut(tmp_path: Path, x: int, y: int, overlap: int) -> None:
    pixels = noise(2, 150, 200)
    pixels[:, 40:70, 40:130] = 0
    whole = write_raster(tmp_path / "whole.tif", pixels, nodata=0)
    boxes = [
        (0, 0, min(200, x + overlap), min(150, y + overlap)),
        (x, 0, 200, y),
        (0, y, x, 150),
        (max(0, x - overlap), max(0, y - overlap), 200, 150),
    ]
    pieces = [cut(tmp_path / f"{i}.tif", pixels, box, nodata=0) for i, box in enumerate(boxes)]
    job = make_job(tmp_path, card=make_card(bands=(2, 1)))
    same_chips(
        plan_scene(SceneRef(refs(*pieces), "m", "mosaic"), job), plan_scene(ref_of(whole), job)
    )


def test_gaps_in_a_mosaic_are_not_valid_and_the_first_file_is_on_top(tmp_path: Path) -> None:
    pixels = noise(1, 80, 120)
    west = cut(tmp_path / "west.tif", pixels, (0, 0, 50, 80))
    east = cut(tmp_path / "east.tif", pixels, (70, 20, 120, 80))
    over = cut(tmp_path / "over.tif", 255 - pixels, (30, 0, 40, 80))
    scene = inspect_scene(SceneRef(refs(over, west, east), "m", "mosaic"))
    assert (scene.width, scene.height, scene.masked) == (120, 80, True)
    assert scene.transform == TRANSFORM
    everything = windows.Window(0, 0, 120, 80)
    with open_scene(scene) as opened:
        read = opened.read([1], window=everything)[0]
        valid = opened.dataset_mask(window=everything) > 0
        few = opened.dataset_mask(out_shape=(8, 12)) > 0
    expected = np.zeros((80, 120), bool)
    expected[:, :50] = expected[20:, 70:] = True
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(few, expected[5::10, 5::10])
    np.testing.assert_array_equal(read[:, 30:40], 255 - pixels[0, :, 30:40])
    np.testing.assert_array_equal(read[:, 40:50], pixels[0, :, 40:50])


@pytest.mark.parametrize("order", [1, -1])
def test_a_coarser_band_is_interpolated_without_seams(tmp_path: Path, order: int) -> None:
    fine, coarse = noise(1, 240, 300), noise(1, 120, 150)
    paths = [
        write_raster(tmp_path / "red.tif", fine),
        write_raster(tmp_path / "swir.tif", coarse, transform=TRANSFORM @ Affine.scale(2)),
    ]
    names = ("red", "swir")
    files = [RasterFile(str(path), (name,)) for path, name in zip(paths, names, strict=True)]
    ref = SceneRef(tuple(files[::order]), "s")
    read = mosaic(plan_scene(ref, make_job(tmp_path, card=make_card(bands=names))))
    np.testing.assert_array_equal(read[0], fine[0])
    expected = np.zeros((240, 300), np.float32)
    reproject(
        coarse[0].astype(np.float32),
        expected,
        src_transform=Affine.scale(2),
        dst_transform=Affine.identity(),
        src_crs="EPSG:3857",
        dst_crs="EPSG:3857",
        resampling=Resampling.bilinear,
    )
    np.testing.assert_allclose(read[1], expected, atol=0.51)


def test_squares_in_several_files_are_found(tmp_path: Path) -> None:
    pixels, truth = paint_squares(300, 200, largest=10, seed=4)
    west, east = (cut(tmp_path / f"{x}.tif", pixels, (x, 0, x + 150, 200)) for x in (0, 150))
    other = write_raster(tmp_path / "other.tif", pixels * 0)
    whole = write_raster(tmp_path / "band.tif", pixels)
    asked = [
        SceneRef(refs(east, west), "both", "mosaic"),
        SceneRef((RasterFile(str(other), ("a",)), RasterFile(str(whole), ("b",))), "bands"),
    ]
    card = make_card(bands=(1,))
    (one,) = sweep(asked[:1], make_job(tmp_path / "out", card=card))
    (two,) = sweep(asked[1:], make_job(tmp_path / "out", card=make_card(bands=("b",))))
    for result in (one, two):
        assert result.status == "done", result.reason
        found = ordered(boxes_of(published(result)))
        np.testing.assert_allclose(found, ordered(truth), atol=0.01)


def test_the_fingerprint_covers_all_files_and_their_places(tmp_path: Path) -> None:
    pixels = noise(3, 60, 60)
    ref = stacked(tmp_path, pixels)
    first = inspect_scene(ref)
    assert inspect_scene(ref) == first
    swapped = SceneRef((*ref.files[:1], *ref.files[:0:-1]), "stack")
    assert inspect_scene(swapped).fingerprint != first.fingerprint
    write_raster(tmp_path / "nir.tif", pixels[:1])
    assert inspect_scene(ref).fingerprint != first.fingerprint


@pytest.mark.parametrize("join", ["bands", "mosaic"])
def test_the_file_at_fault_is_named(tmp_path: Path, join: Any) -> None:
    pixels = noise(1, 400, 800)
    west = cut(tmp_path / "west.tif", pixels, (0, 0, 400, 400))
    left = 400 if join == "mosaic" else 0
    raw = cut(tmp_path / "raw.tif", pixels, (left, 0, left + 400, 400))
    broken = tmp_path / "broken.tif"
    copy(raw, broken, driver="COG")
    ref = SceneRef(refs(west, str(broken)), "s", join)
    card = make_card(bands=(2 if join == "bands" else 1,))
    plan = plan_scene(ref, make_job(tmp_path, card=card))
    broken.write_bytes(broken.read_bytes()[:90_000])
    with pytest.raises(UnreadableScene, match=r"broken\.tif: cannot be read"):
        mosaic(plan)
    with pytest.raises(UnreadableScene, match=r"none\.tif: no such file"):
        inspect_scene(SceneRef(refs(west, str(tmp_path / "none.tif")), "s"))


def wrong(scene: Scene, folder: Path, kind: str) -> tuple[str, str]:
    """Write a file that does not go with a scene of 60 x 40 px; say what is expected of it."""
    pixels = noise(1, 40, 60)
    moved = TRANSFORM @ Affine.translation(10.4, 0)
    makes: dict[str, tuple[dict[str, Any], str]] = {
        "ground": ({"transform": moved}, "expected the ground of"),
        "turned": ({"transform": TRANSFORM @ Affine.rotation(5)}, "expected the ground of"),
        "crs": ({"crs": "EPSG:32612"}, "expected the CRS of"),
        "type": ({}, "expected uint8 as in"),
        "grid": ({"transform": moved}, r"0\.40 px off it"),
        "scale": ({"transform": TRANSFORM @ Affine.scale(2)}, "px off it"),
        "bands": ({}, "expected the 1 bands of"),
    }
    profile, said = makes[kind]
    if kind == "type":
        pixels = pixels.astype(np.uint16)
    if kind == "bands":
        pixels = noise(2, 40, 60)
    return str(write_raster(folder / f"{kind}.tif", pixels, **profile)), said


@pytest.mark.parametrize(
    ("join", "kind"),
    [
        *(("bands", kind) for kind in ("ground", "turned", "crs", "type")),
        *(("mosaic", kind) for kind in ("grid", "scale", "crs", "type", "bands")),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, join: Any, kind: str) -> None:
    good = str(write_raster(tmp_path / "good.tif", noise(1, 40, 60)))
    bad, said = wrong(inspect(good), tmp_path, kind)
    with pytest.raises(SceneError, match=rf"{kind}\.tif: .*{said}"):
        inspect_scene(SceneRef(refs(good, bad), "s", join))
