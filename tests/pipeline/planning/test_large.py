"""Scenes too large for a survey of all their pixels: planned cheaply, with the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from scenesweep.pipeline.errors import SceneError
from scenesweep.pipeline.flow import ShardTasks, prepare, read, scene_steps
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.raster import opening, sample, survey
from scenesweep.pipeline.raster.chips import Chips
from scenesweep.pipeline.raster.survey import touched_px
from tests.pipeline.raster.test_survey import TILED
from tests.rasters import SquareDetector, make_card, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import boxes_of, digests, ordered, published, sweep

SIDE = 900
STRIPS: dict[str, Any] = {"tiled": False, "blockysize": 8}


def ground() -> NDArray[np.uint8]:
    """Squares on ground in the south-west; the rest is nodata."""
    pixels, _ = paint_squares(SIDE, SIDE, largest=14, seed=4, count=300)
    pixels[:, :300] = 0
    pixels[:, :, 500:] = 0
    return pixels


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every scene too large."""
    monkeypatch.setattr(survey, "SURVEY_BYTES", 0)
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 200_000)


@pytest.mark.parametrize("profile", [{}, {"compress": "DEFLATE"}, {"blockysize": 5}])
def test_a_large_scene_has_the_results_of_a_small_one(
    tmp_path: Path, profile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raster(tmp_path / "s.tif", ground(), nodata=0, **profile)
    (small,) = sweep([path], make_job(tmp_path / "small"))
    monkeypatch.setattr(survey, "SURVEY_BYTES", 0)
    job = make_job(tmp_path / "large")
    plan = plan_scene(ref_of(path), job)
    (large,) = sweep([path], job)
    small_files, large_files = digests(tmp_path / "small"), digests(tmp_path / "large")
    differ = {name for name in small_files if small_files[name] != large_files[name]}
    assert differ <= {"coverage/date=unknown/s.parquet", "items/s.json", "checksums/s.sha256"}
    assert not gpd.read_parquet(large.files["coverage"]).exact.any()
    assert not plan.layout.exact
    assert plan.layout.windows > small.windows
    # The reader knows every pixel, planning a sample of them.
    assert large.windows <= small.windows
    assert large.windows + large.skipped_windows == plan.layout.kept.size
    assert large.shards == len(plan.layout.numbers)
    assert (large.warnings, large.detections) == (small.warnings, small.detections)


@pytest.mark.usefixtures("large")
def test_a_large_scene_is_resumed_and_then_up_to_date(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", ground(), nodata=0)
    whole, job = make_job(tmp_path / "whole"), make_job(tmp_path / "out")
    (first,) = sweep([path], whole)
    planned = prepare(ref_of(path), job=job)
    steps, work = scene_steps(job), planned.work
    assert isinstance(work, ShardTasks)
    some = work[: len(work) // 2]
    chips = read(some)
    empty = [c for c in chips if isinstance(c, Chips) and not c.shard.tiles]
    assert 0 < len(empty) < len(chips)
    steps.detect(SquareDetector(), some, chips)
    (resumed,) = sweep([path], job)
    assert resumed.resumed_shards == len(some)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    counts = ("windows", "skipped_windows", "detections", "on_nodata", "shards")
    assert [getattr(resumed, c) for c in counts] == [getattr(first, c) for c in counts]
    (again,) = sweep([path], job)
    assert (again.status, again.detections) == ("up-to-date", first.detections)


@pytest.mark.usefixtures("large")
def test_a_large_scene_without_valid_pixels_is_looked_at_nowhere(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", ground() * 0, nodata=0)
    (result,) = sweep([path], make_job(tmp_path / "out"))
    assert (result.status, result.windows, result.detections) == ("done", 0, 0)
    assert result.warnings == ("no valid pixels: nothing was looked at",)


@pytest.mark.usefixtures("large")
def test_a_large_scene_has_no_islands(tmp_path: Path) -> None:
    pixels = np.zeros((1, 600, 700), np.uint8)
    pixels[0, 30:90, 40:70] = 100
    pixels[0, 60:70, 45:60] = 200
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    job = make_job(tmp_path / "out")
    assert not len(plan_scene(ref_of(path), job).layout.islands)
    (result,) = sweep([path], job)
    np.testing.assert_array_equal(ordered(boxes_of(published(result))), [[45, 60, 60, 70]])


def test_windows_of_nan_are_not_looked_at(tmp_path: Path) -> None:
    """GDAL has no mask for NaN, so that planning keeps such windows."""
    pixels = ground().astype(np.float32)
    pixels[pixels == 0] = np.nan
    path = write_raster(tmp_path / "s.tif", pixels)
    (result,) = sweep([path], make_job(tmp_path / "out", "read.source_range=[0,255]"))
    (masked,) = sweep(
        [write_raster(tmp_path / "m.tif", ground(), nodata=0)], make_job(tmp_path / "m")
    )
    assert result.detections == masked.detections > 0
    assert result.windows <= masked.windows


@pytest.mark.usefixtures("large")
def test_a_large_scene_whose_values_are_not_known_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((1, SIDE, SIDE), np.uint16)
    pixels[0, 500:520, 500:520] = 700
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0, **TILED)
    job = make_job(tmp_path / "out")
    with pytest.raises(SceneError, match=r"range of its uint16 values is not known.*source_range"):
        plan_scene(ref_of(path), job)
    ranged = make_job(tmp_path / "out", "read.source_range=[0,800]")
    (result,) = sweep([path], ranged)
    assert result.detections == 1


class Counting(DatasetReader):  # type: ignore[misc]
    """A rasterio dataset that counts the bytes of the blocks that its reads decode."""

    decoded = 0

    def read(self, *arguments: Any, **options: Any) -> Any:
        self._count(**options)
        return super().read(*arguments, **options)

    def dataset_mask(self, **options: Any) -> Any:
        self._count(**options)
        return super().dataset_mask(**options)

    def _count(self, *, window: Any = None, out_shape: Any = None, **_: Any) -> None:
        (top, bottom), (left, right) = (
            window.toranges() if window else ((0, self.height), (0, self.width))
        )
        high, wide = out_shape[-2:] if out_shape else (bottom - top, right - left)
        rows = (top + (np.arange(high) + 0.5) * ((bottom - top) / high)).astype(int)
        columns = (left + (np.arange(wide) + 0.5) * ((right - left) / wide)).astype(int)
        item = self.count * np.dtype(self.dtypes[0]).itemsize
        Counting.decoded += item * touched_px(columns, rows, self.block_shapes[0])


@pytest.mark.parametrize(
    "profile", [{}, {"compress": "DEFLATE"}, {"tiled": False, "blockysize": 8}]
)
def test_planning_decodes_a_bounded_number_of_pixels(
    tmp_path: Path, profile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "DatasetReader", Counting)
    monkeypatch.setattr(survey, "SURVEY_BYTES", 400_000)
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 400_000)
    monkeypatch.setattr(sample, "_BLOCKS", (20, 40))
    draw = np.random.default_rng(5)
    card, decoded = make_card(bands=(1, 2)), {}
    for side in (640, 1280, 2560):
        pixels = draw.integers(200, 3000, (2, side, side), dtype=np.uint16)
        pixels[:, : side // 8] = 0
        path = write_raster(tmp_path / f"{side}.tif", pixels, nodata=0, **{**TILED, **profile})
        Counting.decoded = 0
        plan = plan_scene(ref_of(path), make_job(tmp_path, card=card))
        decoded[side] = Counting.decoded
        assert plan.layout.windows
        assert not plan.layout.exact
    # the survey, and each block of the sample for the pixels and for their mask
    assert max(decoded.values()) <= 400_000 + 2 * 3 * 400_000
    assert decoded[2560] < 2560 * 2560 * 4 / 10
