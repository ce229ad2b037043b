"""The masked share of a box is that of a slow count over its pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from rasterio.transform import from_bounds, from_origin

from scenesweep.pipeline.geometry.georef import to_lonlat, to_map
from scenesweep.pipeline.raster import quality as module
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.quality import Quality, Rule, masked_shares
from scenesweep.pipeline.scene import Scene
from tests.rasters import TRANSFORM, UTM, write_raster

WIDTH, HEIGHT = 400, 300
COARSE = from_origin(430_000, 3_775_000, 2.4, 2.4)


def scene_at(folder: Path, transform: Affine | None = TRANSFORM, crs: str | None = UTM) -> Scene:
    pixels = np.ones((1, HEIGHT, WIDTH), np.uint8)
    path = write_raster(folder / "scene.tif", pixels, transform=transform, crs=crs)
    return inspect(str(path), pixel_coordinates=crs is None)


def mask_at(folder: Path, pixels: NDArray[Any], **profile: Any) -> Scene:
    path = write_raster(folder / "mask.tif", pixels, **{"transform": COARSE, **profile})
    return inspect(str(path), pixel_coordinates=profile.get("crs", UTM) is None)


def boxes(count: int, largest: float, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    corner = rng.random((count, 2)) * [WIDTH - largest, HEIGHT - largest]
    return np.hstack([corner, corner + rng.uniform(0.5, largest, (count, 2))])


def slow_share(masked: NDArray[np.bool_], box: NDArray[np.float64]) -> float:
    """Add up the overlap of a box, in pixels of the mask, with each masked pixel."""
    x0, y0, x1, y1 = box
    columns, rows = np.arange(masked.shape[1]), np.arange(masked.shape[0])
    across = np.clip(np.minimum(x1, columns + 1) - np.maximum(x0, columns), 0, None)
    down = np.clip(np.minimum(y1, rows + 1) - np.maximum(y0, rows), 0, None)
    return float((masked * down[:, None] * across).sum() / ((x1 - x0) * (y1 - y0)))


def test_shares_are_those_of_a_slow_sum(tmp_path: Path) -> None:
    """The mask has pixels four times as large as the scene's."""
    classes = np.random.default_rng(5).integers(0, 12, (1, 75, 100), np.uint8)
    quality = Quality(mask_at(tmp_path, classes), Rule((1,), (3, 8, 9, 10)))
    drawn = boxes(300, 60)
    shares = masked_shares(quality, drawn, scene_at(tmp_path))
    slow = [slow_share(np.isin(classes[0], (3, 8, 9, 10)), box / 4) for box in drawn]
    np.testing.assert_allclose(shares, slow, atol=0.002)


def test_a_share_does_not_depend_on_the_other_boxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TILE_PX", 16)
    monkeypatch.setattr(module, "_HALO_PX", 6)
    classes = np.random.default_rng(5).integers(0, 3, (1, 75, 100), np.uint8)
    quality, scene = Quality(mask_at(tmp_path, classes), Rule((1,), (1,))), scene_at(tmp_path)
    drawn = boxes(100, 45)
    together = masked_shares(quality, drawn, scene)
    alone = np.concatenate([masked_shares(quality, box[None], scene) for box in drawn])
    np.testing.assert_array_equal(together, alone)
    monkeypatch.undo()
    np.testing.assert_allclose(together, masked_shares(quality, drawn, scene), atol=0.002)


def test_bits_and_bands_and_nodata(tmp_path: Path) -> None:
    pixels = np.zeros((2, 75, 100), np.uint16)
    pixels[0, :, 25:] = 0b1000  # cloud
    pixels[0, :, 50:] = 0xFFFF  # nodata
    pixels[1, :, 75:] = 0b1010
    raster, scene = mask_at(tmp_path, pixels, nodata=0xFFFF), scene_at(tmp_path)
    quarters = np.array([[x, 10, x + 50, 60] for x in (20, 120, 220, 320)], np.float64)
    first = masked_shares(Quality(raster, Rule((1,), bits=(3,))), quarters, scene)
    np.testing.assert_array_equal(first, [0, 1, 0, 0])
    both = masked_shares(Quality(raster, Rule((1, 2), bits=(1, 3, 20))), quarters, scene)
    np.testing.assert_array_equal(both, [0, 1, 0, 1])


def test_signed_pixels_have_bits_too(tmp_path: Path) -> None:
    pixels = np.full((1, 75, 100), -32768, np.int16)
    quality = Quality(mask_at(tmp_path, pixels), Rule((1,), bits=(15,)))
    assert masked_shares(quality, boxes(3, 9), scene_at(tmp_path)).tolist() == [1, 1, 1]


def test_a_mask_in_another_crs(tmp_path: Path) -> None:
    """Meridians are not parallel to the columns of UTM, here by less than half a degree."""
    scene = scene_at(tmp_path)
    assert scene.crs
    assert scene.transform
    corners = np.array([[0, 0], [WIDTH, 0], [0, HEIGHT], [WIDTH, HEIGHT]], np.float64)
    lonlat = to_lonlat(to_map(corners, scene.transform), scene.crs)
    (west, south), (east, north) = lonlat.min(axis=0), lonlat.max(axis=0)
    transform = from_bounds(west, south, east, north, 200, 150)
    pixels = np.zeros((1, 150, 200), np.uint8)
    pixels[:, :, 100:] = 1
    raster = mask_at(tmp_path, pixels, crs="EPSG:4326", transform=transform)
    drawn = boxes(200, 80)
    shares = masked_shares(Quality(raster, Rule((1,), (1,))), drawn, scene)
    inner = np.linspace(0.01, 0.99, 40)
    for box, share in zip(drawn, shares, strict=True):
        x, y = (a + inner * (b - a) for a, b in ((box[0], box[2]), (box[1], box[3])))
        points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        lon = to_lonlat(to_map(points, scene.transform), scene.crs)[:, 0]
        assert share == pytest.approx((lon > (west + east) / 2).mean(), abs=0.06)


def test_pictures_are_stretched_onto_each_other(tmp_path: Path) -> None:
    pixels = np.zeros((1, 30, 40), np.uint8)
    pixels[:, :15] = 7
    raster = mask_at(tmp_path, pixels, crs=None)
    scene = scene_at(tmp_path, crs=None)
    halves = np.array([[10, 10, 90, 90], [10, 140, 30, 160], [10, 200, 90, 290]], np.float64)
    shares = masked_shares(Quality(raster, Rule((1,), (7,))), halves, scene)
    np.testing.assert_allclose(shares, [1, 0.5, 0])


def test_boxes_beside_the_mask_have_no_share(tmp_path: Path) -> None:
    raster = mask_at(tmp_path, np.ones((1, 75, 50), np.uint8))  # the left half
    drawn = np.array([[150, 10, 240, 20], [190, 10, 230, 20]], np.float64)
    shares = masked_shares(Quality(raster, Rule((1,), (1,))), drawn, scene_at(tmp_path))
    assert shares[0] == pytest.approx(50 / 90, abs=0.001)  # its centre is inside
    assert np.isnan(shares[1])
    assert (
        len(masked_shares(Quality(raster, Rule((1,))), np.zeros((0, 4)), scene_at(tmp_path))) == 0
    )
