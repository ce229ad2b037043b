"""Painted squares: each is found once, at its place, whatever the scene and the cut."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import from_origin
from shapely import Polygon

from scenesweep.model.boxes import DetectorOutput
from scenesweep.pipeline.planning.plan import Job, plan_scene
from tests.rasters import (
    TRANSFORM,
    UTM,
    SquareDetector,
    make_card,
    make_job,
    paint_squares,
    ref_of,
    write_raster,
)
from tests.sweeps import FRAMES, boxes_of, digests, ordered, published, sweep


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    chip=st.sampled_from([64, 72, 96, 128]),
    margin=st.integers(4, 24),
    shard=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_square_is_found_exactly_once(
    tmp_path: Path, width: int, height: int, chip: int, margin: int, shard: int, seed: int
) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    pixels, truth = paint_squares(width, height, largest=margin, seed=seed)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    cut = (f"tiling.chip={chip}", f"tiling.margin={margin}", f"tiling.shard={shard}")
    (result,) = sweep([scene], make_job(tmp_path / "out", *cut))
    assert result.status == "done", result.reason
    frame = published(result)
    np.testing.assert_allclose(ordered(boxes_of(frame)), ordered(truth), atol=0.01)
    assert not frame.truncated.any()


@pytest.mark.parametrize("name", FRAMES)
def test_squares_are_at_their_place_on_the_map(tmp_path: Path, name: str) -> None:
    crs, transform = FRAMES[name]
    pixels, truth = paint_squares(260, 190, largest=14, seed=3)
    scene = write_raster(tmp_path / "scene.tif", pixels, crs=crs, transform=transform)
    (result,) = sweep([scene], make_job(tmp_path / "out"))
    frame = published(result)
    np.testing.assert_allclose(ordered(boxes_of(frame)), ordered(truth), atol=0.01)
    back = Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    for geometry, box in zip(frame.geometry, boxes_of(frame), strict=True):
        ring = np.array(geometry.exterior.coords)[:4]
        pixel = np.array([~transform @ tuple(p) for p in np.stack(back.transform(*ring.T), 1)])
        corners = {(box[i], box[j]) for i in (0, 2) for j in (1, 3)}
        for corner in corners:
            assert np.abs(pixel - corner).max(axis=1).min() < 0.01
        assert geometry.exterior.is_ccw
    sides = boxes_of(frame)[:, 2] - boxes_of(frame)[:, 0]
    gsd_m = 0.6 if crs == UTM else None
    if gsd_m:
        np.testing.assert_allclose(frame.width_m, sides * gsd_m, rtol=2e-3)
        np.testing.assert_allclose(frame.area_m2, (sides * gsd_m) ** 2, rtol=4e-3)


def test_squares_are_at_their_place_after_resampling(tmp_path: Path) -> None:
    """A scene of 0.3 m for a card of 0.6 m: squares on even pixels keep exact edges."""
    coarse, truth = paint_squares(150, 130, largest=12, seed=5)
    fine = coarse.repeat(2, axis=1).repeat(2, axis=2)
    scene = write_raster(
        tmp_path / "scene.tif", fine, transform=from_origin(430_000, 3_775_000, 0.3, 0.3)
    )
    (result,) = sweep([scene], make_job(tmp_path / "out"))
    np.testing.assert_allclose(ordered(boxes_of(published(result))), ordered(truth * 2), atol=0.01)


def test_a_square_larger_than_the_margin_is_marked_and_can_be_stitched(tmp_path: Path) -> None:
    pixels = np.full((1, 100, 200), 1, np.uint8)
    pixels[0, 20:50, 10:190] = 255
    scene = write_raster(tmp_path / "scene.tif", pixels)
    (result,) = sweep([scene], make_job(tmp_path / "out", "tiling.margin=8"))
    assert published(result).truncated.all()
    assert len(published(result)) > 1
    (result,) = sweep([scene], make_job(tmp_path / "out", "tiling.margin=8", "merge.stitch=true"))
    assert boxes_of(published(result)).tolist() == [[10, 20, 190, 50]]


def test_nothing_centred_on_nodata_is_reported(tmp_path: Path) -> None:
    pixels = np.full((1, 128, 128), 1, np.uint8)
    pixels[0, 30:40, 30:40] = 255
    pixels[0, 60:90, 60:90] = 0

    class Everywhere(SquareDetector):
        def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
            assert (chips[:, 0] == 128).sum() == 30 * 30  # filled with the band's mean
            return super().detect(np.where(chips > 1, 255, 1).astype(np.uint8))

    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    (result,) = sweep([scene], make_job(tmp_path / "out", "tiling.chip=128"), Everywhere())
    assert boxes_of(published(result)).tolist() == [[30, 30, 40, 40]]
    assert result.on_nodata == 1


def test_windows_without_pixels_are_never_read(tmp_path: Path) -> None:
    pixels = np.zeros((1, 640, 640), np.uint8)
    pixels[0, 300:400, 300:400] = 1
    pixels[0, 340:350, 340:350] = 255
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    seen = 0

    class Counting(SquareDetector):
        def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
            nonlocal seen
            seen += len(chips)
            return super().detect(chips)

    (result,) = sweep([scene], make_job(tmp_path / "out"), Counting())
    assert len(published(result)) == 1
    assert result.windows == seen
    assert result.windows + result.skipped_windows == 19 * 19
    assert seen <= 36


def test_an_area_of_interest_limits_windows_and_detections(tmp_path: Path) -> None:
    pixels, truth = paint_squares(300, 300, largest=10, seed=9)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    left, top = TRANSFORM @ (0, 0)
    middle, bottom = TRANSFORM @ (150, 300)
    back = Transformer.from_crs(UTM, "OGC:CRS84", always_xy=True)
    ring = [(left, top), (middle, top), (middle, bottom), (left, bottom), (left, top)]
    area = Polygon([back.transform(*point) for point in ring])
    (result,) = sweep([scene], make_job(tmp_path / "out", area=area))
    centres = (truth[:, 0] + truth[:, 2]) / 2
    inside = truth[centres < 150]
    np.testing.assert_allclose(ordered(boxes_of(published(result))), ordered(inside), atol=0.01)
    assert result.skipped_windows > 0


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    pixels, _ = paint_squares(200, 150, largest=10, seed=1)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    job = make_job(tmp_path / "out")
    (first,) = sweep([scene], job)
    before = digests(tmp_path / "out")
    (second,) = sweep([scene], job)
    assert (first.status, second.status) == ("done", "up-to-date")
    assert (first.megapixels, second.megapixels) == (200 * 150 / 1e6, 0)
    assert second.detections == first.detections
    assert digests(tmp_path / "out") == before


def test_what_is_missing_is_redone_and_nothing_else(tmp_path: Path) -> None:
    pixels, _ = paint_squares(300, 300, largest=10, seed=1)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    out = tmp_path / "out"
    job = make_job(out, "tiling.shard=2")
    (first,) = sweep([scene], job)
    before = digests(out)
    parts = sorted((out / ".work").rglob("part-*.parquet"))
    assert len(parts) == first.shards > 3
    parts[1].unlink()
    shutil.rmtree(out / "detections")
    (second,) = sweep([scene], job)
    assert (second.status, second.resumed_shards) == ("done", first.shards - 1)
    assert first.megapixels == 0.3**2
    cores = [tile.core for tile in plan_scene(ref_of(scene), job).layout.shard(1).tiles]
    assert 0 < second.megapixels < first.megapixels
    assert second.megapixels == sum(core.width * core.height for core in cores) / 1e6
    assert digests(out) == before


@pytest.mark.parametrize(
    ("change", "resumed"),
    [
        ("merge.iou=0.3", True),
        ("publish.formats=[]", True),
        ("tiling.margin=8", False),
        ("detect.score_threshold=0.2", False),
    ],
)
def test_a_changed_setting_redoes_exactly_what_it_must(
    tmp_path: Path, change: str, resumed: bool
) -> None:
    pixels, _ = paint_squares(200, 150, largest=7, seed=1)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    sweep([scene], make_job(tmp_path / "out"))
    (again,) = sweep([scene], make_job(tmp_path / "out", change))
    assert again.status == "done"
    assert again.resumed_shards == (again.shards if resumed else 0)
    assert again.megapixels == (0 if resumed else 200 * 150 / 1e6)
    assert len(list((tmp_path / "out" / ".work").glob("scene-*"))) == 1
    geojson = list((tmp_path / "out" / "geojson").rglob("*.geojson"))
    assert bool(geojson) == ("formats" not in change)


def test_a_changed_source_or_model_is_redone(tmp_path: Path) -> None:
    pixels, truth = paint_squares(200, 150, largest=10, seed=1)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    job = make_job(tmp_path / "out")
    sweep([scene], job)
    (other_model,) = sweep([scene], Job(job.card, "1" * 64, job.settings, out=job.out))
    assert (other_model.status, other_model.resumed_shards) == ("done", 0)
    write_raster(scene, np.ones_like(pixels))
    (emptied,) = sweep([scene], job)
    assert (emptied.status, emptied.detections) == ("done", 0)
    assert len(truth) > 0


def test_a_bad_scene_fails_alone(tmp_path: Path) -> None:
    pixels, truth = paint_squares(200, 150, largest=10, seed=1)
    good = write_raster(tmp_path / "good.tif", pixels)
    text = tmp_path / "text.tif"
    text.write_text("not a raster")
    cut = tmp_path / "cut.tif"
    noise = np.random.default_rng(0).integers(1, 255, (1, 400, 400), dtype=np.uint8)
    whole = write_raster(tmp_path / "whole.tif", noise).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    nowhere = tmp_path / "nowhere.tif"
    with pytest.warns(match="no geotransform"):
        write_raster(nowhere, pixels, crs=None, transform=None)
    results = sweep([text, cut, good, nowhere, tmp_path / "missing.tif"], make_job(tmp_path / "o"))
    assert [r.status for r in results] == ["failed", "failed", "done", "failed", "failed"]
    assert len(published(results[2])) == len(truth)
    said = [r.reason for r in results]
    assert "text.tif: expected one of the formats GTiff" in said[0]
    assert "cut.tif: cannot be read" in said[1]
    assert "no coordinate reference system and no geotransform" in said[3]
    assert "missing.tif: no such file" in said[4]
    assert all("\n" not in reason for reason in said)


def test_pixel_coordinates_need_no_georeference(tmp_path: Path) -> None:
    pixels, truth = paint_squares(200, 150, largest=10, seed=1)
    scene = tmp_path / "scene.tif"
    with pytest.warns(match="no geotransform"):
        write_raster(scene, pixels, crs=None, transform=None)
    (result,) = sweep([scene], make_job(tmp_path / "out", "scenes.pixel_coordinates=true"))
    assert sorted(result.files) == ["detections", "item"]
    assert result.warnings == ("no geojson: the scene has no georeference",)
    frame = published(result)
    np.testing.assert_allclose(frame.bounds.to_numpy(), boxes_of(frame))
    np.testing.assert_allclose(ordered(boxes_of(frame)), ordered(truth))
    assert frame.crs is None
    assert frame.center_lon.isna().all()


def test_objects_on_islands_are_found_once_and_whole(tmp_path: Path) -> None:
    pixels, truth = np.zeros((1, 900, 900), np.uint8), []
    for seed, (x, y) in enumerate([(3, 7), (400, 20), (200, 600), (811, 840)]):
        painted, boxes = paint_squares(60, 50, largest=9, seed=seed, count=12)
        pixels[:, y : y + 50, x : x + 60] = painted
        truth.append(boxes + np.array([x, y, x, y]))
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    job = make_job(tmp_path / "out")
    plan = plan_scene(ref_of(path), job)
    assert len(plan.layout.islands) == 4
    (result,) = sweep([path], job)
    assert result.windows == 4
    np.testing.assert_allclose(
        ordered(boxes_of(published(result))), ordered(np.concatenate(truth)), atol=1e-6
    )


def test_a_scene_that_lacks_a_band_says_so(tmp_path: Path) -> None:
    pixels, boxes = paint_squares(64, 64, largest=9, seed=1)
    scene = write_raster(tmp_path / "s.tif", pixels, descriptions=("red",))
    card = make_card(bands=("red", "nir"), missing_bands_ok=("nir",))
    (result,) = sweep([scene], make_job(tmp_path / "out", card=card))
    assert result.warnings == ("the scene has no nir: filled with the model's mean",)
    assert result.detections == len(boxes)


def test_a_band_that_is_looked_at_and_tagged_as_alpha_is_told_of(tmp_path: Path) -> None:
    pixels, _ = paint_squares(64, 64, largest=9, seed=1)
    both = np.concatenate([pixels, np.full_like(pixels, 9)])
    scene = write_raster(tmp_path / "s.tif", both, alpha="YES")
    for bands, warned in (((1,), False), ((1, 2), True)):
        (result,) = sweep([scene], make_job(tmp_path / "out", card=make_card(bands=bands)))
        assert result.status == "done"
        assert [said.startswith("band 2 is looked at") for said in result.warnings] == [
            True
        ] * warned


class ScoredSquares(SquareDetector):
    """Squares of two classes by their width, scored by their area, from a threshold on."""

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = threshold

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        found = super().detect(chips)
        width, height = (found.boxes.xyxy[:, 2:] - found.boxes.xyxy[:, :2]).T
        score = ((width * height) % 80 / 100 + 0.1).astype(np.float32)
        boxes = replace(found.boxes, score=score, label=(width % 2).astype(np.int16))
        return replace(found, boxes=boxes.take(score >= np.float32(self.threshold)))


@pytest.mark.parametrize("agnostic", [False, True])
def test_least_scores_of_classes_are_thresholds_of_the_detector(
    tmp_path: Path, agnostic: bool
) -> None:
    """One threshold for all classes finds what a detector with it finds; nothing is redone."""
    pixels, _ = paint_squares(300, 200, largest=24, seed=5, count=90)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    card = make_card(classes=("even", "odd"))
    merging = f"merge.class_agnostic={agnostic}"

    def job(out: str, *more: str) -> Job:
        return make_job(tmp_path / out, merging, *more, card=card)

    (everything,) = sweep([scene], job("least"), ScoredSquares())
    (least,) = sweep([scene], job("least", "merge.min_scores={even: 0.5, odd: 0.5}"), None)
    (direct,) = sweep([scene], job("direct"), ScoredSquares(0.5))
    assert least.resumed_shards == least.shards > 0
    a, b = (published(r).drop(columns="fingerprint") for r in (least, direct))
    assert 5 < len(a) < everything.detections
    assert a.equals(b)
    (one,) = sweep([scene], job("least", "merge.min_scores={odd: 0.5}"), None)
    assert one.status == "done"
    assert published(one).query("class_name == 'odd'").score.min() >= 0.5
    assert published(one).query("class_name == 'even'").score.min() < 0.5
