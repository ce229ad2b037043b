"""A sample of a scene's pixels: a decimated read, or blocks of it if that would cost too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenesweep.pipeline.raster import sample
from scenesweep.pipeline.raster.assemble import inspect_scene
from scenesweep.pipeline.raster.chips import scene_stretch
from scenesweep.pipeline.raster.sample import sample_valid, sampled_share
from scenesweep.pipeline.scene import Scene, SceneRef
from tests.pipeline.raster.test_assemble import cut, refs
from tests.pipeline.raster.test_survey import TILED
from tests.rasters import ref_of, write_raster

SIDE = 1000


def ground(side: int = SIDE) -> NDArray[np.uint16]:
    """Two bands of ground that gets brighter to the east, with texture and a border of nodata."""
    rng = np.random.default_rng(3)
    x = np.linspace(300, 3000, side)[None, None, :]
    pixels = x * rng.uniform(0.7, 1.3, (2, side, side)) + np.array([0, 500])[:, None, None]
    pixels[:, :60] = pixels[:, :, -100:] = 0
    return pixels.astype(np.uint16)


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow 1 MB, and 24 blocks at first."""
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 1_000_000)
    monkeypatch.setattr(sample, "_BLOCKS", (24, 60))


def scene_of(path: Path, pixels: NDArray[Any], **profile: Any) -> Scene:
    return inspect_scene(ref_of(write_raster(path, pixels, **{**TILED, **profile})))


def ranges(scene: Scene) -> NDArray[np.float64]:
    stretch = scene_stretch(scene, (1, 2), source_range=None, percentiles=(2, 98))
    assert stretch is not None
    return np.array(stretch.ranges)


@pytest.mark.parametrize("profile", [{}, {"compress": "DEFLATE"}, {"tiled": False}])
def test_some_blocks_have_the_percentiles_of_the_scene(
    tmp_path: Path, profile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(tmp_path / "s.tif", ground(), nodata=0, **profile)
    whole = ranges(scene)
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 1_500_000)
    monkeypatch.setattr(sample, "_BLOCKS", (80, 90))
    assert np.abs(ranges(scene) / whole - 1).max() < 0.08
    np.testing.assert_array_equal(ranges(scene), ranges(scene))


@pytest.mark.usefixtures("few_bytes")
def test_a_sample_reads_few_blocks_and_thins_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(tmp_path / "s.tif", ground(), nodata=0, compress="DEFLATE")
    monkeypatch.setattr(sample, "_SAMPLED_PX", 24 * 64 * 16)
    values = sample_valid(scene, [2], most=1024)
    assert values.shape == (1, values.size)
    assert 10_000 < values.size <= 24 * 64 * 16
    assert values.min() > np.uint16(0)


@pytest.mark.usefixtures("few_bytes")
def test_a_sample_skips_blocks_that_are_known_to_be_empty(tmp_path: Path) -> None:
    pixels = ground()
    pixels[:, 128:] = 0
    pixels[:, :128] = np.maximum(pixels[:, :128], 1)
    values = sample_valid(
        scene_of(tmp_path / "s.tif", pixels, nodata=0, compress="DEFLATE"), [1], most=1024
    )
    assert 24 * 64 * 40 <= values.size <= 24 * 64 * 64  # the last column of blocks is narrower


@pytest.mark.usefixtures("few_bytes")
def test_more_blocks_are_read_if_the_first_have_too_few_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((2, SIDE, SIDE), np.uint16)
    pixels[:, 448:512] = ground()[:, 448:512] + 1
    values = sample_valid(scene_of(tmp_path / "s.tif", pixels, nodata=0), [1], most=1024)
    assert 0 < values.size <= 60 * 64 * 64


@pytest.mark.usefixtures("few_bytes")
def test_a_scene_without_a_written_block_has_no_values(tmp_path: Path) -> None:
    scene = scene_of(tmp_path / "s.tif", np.zeros_like(ground()), nodata=0, sparse_ok=True)
    assert sample_valid(scene, [1], most=1024).shape == (1, 0)


@pytest.mark.usefixtures("few_bytes")
def test_floating_point_values_are_finite(tmp_path: Path) -> None:
    pixels = ground().astype(np.float32)
    pixels[0, ::3] = np.nan
    values = sample_valid(scene_of(tmp_path / "s.tif", pixels), [1, 2], most=1024)
    assert np.isfinite(values).all()
    assert len(values) == 2


@pytest.mark.usefixtures("few_bytes")
def test_all_files_of_a_mosaic_are_sampled(tmp_path: Path) -> None:
    pixels = np.ones((1, 500, SIDE), np.uint16)
    pixels[:, :, 500:] = 9
    files = [cut(tmp_path / f"{i}.tif", pixels, (500 * i, 0, 500 * i + 500, 500)) for i in range(2)]
    scene = inspect_scene(SceneRef(refs(*files), "both", "mosaic"))
    values = sample_valid(scene, [1], most=1024)
    assert np.mean(values == 9) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("compress", [None, "DEFLATE"])
def test_the_share_of_ground_is_that_of_a_sample(tmp_path: Path, compress: str | None) -> None:
    pixels = np.zeros((2, SIDE, SIDE), np.uint16)
    pixels[:, :, :300] = 7
    scene = scene_of(tmp_path / "s.tif", pixels, nodata=0, compress=compress)
    assert sampled_share(scene) == pytest.approx(0.3, abs=0.02)
