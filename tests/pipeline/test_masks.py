"""Masks of clouds: detections are flagged or dropped, and ground under clouds is not observed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import geopandas as gpd
import numpy as np
import pystac
import pytest
from affine import Affine

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.planning.plan import Job, plan_scene
from scenesweep.pipeline.scene import RasterFile, SceneRef
from scenesweep.pipeline.settings import load_settings
from scenesweep.pipeline.sources import Named, find_scenes
from tests.rasters import TRANSFORM, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import boxes_of, digests, published, sweep

WIDTH, HEIGHT = 400, 300
CLOUD = 8
DATE = "scenes.acquired_at=2026-11-20T10:00:00Z"
MASK = 'mask.file="*_SCL.tif"', "mask.values=[3,8]"
PX_KM2 = 0.36e-6


def painted(folder: Path, *, cloud_from: int = 200) -> Path:
    """Write a scene and its mask, with pixels four times as large, clouded right of a column."""
    pixels, _ = paint_squares(WIDTH, HEIGHT, largest=12, seed=7)
    classes = np.full((1, HEIGHT // 4, WIDTH // 4), 4, np.uint8)
    classes[:, :, cloud_from // 4 :] = CLOUD
    coarse = TRANSFORM @ Affine.scale(4)
    write_raster(folder / "a_b_SCL.tif", classes, transform=coarse)
    return write_raster(folder / "a_b_SR.tif", pixels)


def refs(*paths: Path, job: Job) -> list[SceneRef]:
    named = Named(tuple(map(str, paths)), mask=job.settings.mask)
    return find_scenes(named, job.settings.scenes)


def run(scene: Path, job: Job) -> gpd.GeoDataFrame:
    (result,) = sweep(refs(scene, job=job), job)
    assert result.status == "done", result.reason
    return published(result)


def coverage(out: Path) -> gpd.GeoDataFrame:
    return gpd.read_parquet(out / "coverage").iloc[0]


def test_flagged_detections_have_the_share_that_is_masked(tmp_path: Path) -> None:
    scene, out = painted(tmp_path), tmp_path / "out"
    plain = run(scene, make_job(tmp_path / "plain", DATE))
    assert plain.masked.isna().all()
    flagged = run(scene, make_job(out, DATE, *MASK))
    assert flagged.detection_id.tolist() == plain.detection_id.tolist()
    x0, _, x1, _ = boxes_of(flagged).T
    share = np.clip((x1 - np.maximum(x0, 200)) / (x1 - x0), 0, 1)
    assert 0 < (share > 0.5).sum() < len(share)
    np.testing.assert_allclose(flagged.masked, share, atol=0.001)
    row = coverage(out)
    assert row.observed_km2 == pytest.approx(200 * HEIGHT * PX_KM2, rel=0.05)
    assert row.masked_km2 == pytest.approx(200 * HEIGHT * PX_KM2, rel=0.05)
    item = json.loads((out / "items/a_b_SR.json").read_text())
    assert item["properties"]["scenesweep:masked_km2"] == pytest.approx(row.masked_km2, abs=1e-6)


def test_dropped_detections_and_windows(tmp_path: Path) -> None:
    scene = painted(tmp_path)
    flagged = run(scene, make_job(tmp_path / "flag", DATE, *MASK))
    dropped = run(scene, make_job(tmp_path / "drop", DATE, *MASK, "mask.policy=drop"))
    kept = flagged[flagged.masked <= 0.5]
    assert dropped.detection_id.tolist() == kept.detection_id.tolist()
    before, after = coverage(tmp_path / "flag"), coverage(tmp_path / "drop")
    assert after.windows < 0.7 * before.windows
    assert after.observed_km2 == pytest.approx(before.observed_km2)
    few = run(
        scene, make_job(tmp_path / "few", DATE, *MASK, "mask.policy=drop", "mask.drop_above=0")
    )
    assert len(few) == (flagged.masked == 0).sum()


def test_a_scene_under_cloud_is_not_observed(tmp_path: Path) -> None:
    scene = painted(tmp_path, cloud_from=0)
    job = make_job(tmp_path / "out", DATE, *MASK, "mask.policy=drop")
    (result,) = sweep(refs(scene, job=job), job)
    assert (result.status, result.windows, result.detections) == ("done", 0, 0)
    row = coverage(tmp_path / "out")
    assert row.observed_km2 == 0
    assert row.masked_km2 == pytest.approx(WIDTH * HEIGHT * PX_KM2, rel=0.01)


def test_a_band_of_the_scene_is_its_mask(tmp_path: Path) -> None:
    pixels, _ = paint_squares(WIDTH, HEIGHT, largest=12, seed=7)
    cloud = np.zeros_like(pixels)
    cloud[:, :, 100:] = 4
    both = np.concatenate([pixels, cloud])
    scene = write_raster(tmp_path / "s.tif", both, descriptions=("one", "cloud"))
    frame = run(scene, make_job(tmp_path / "out", DATE, "mask.bands=[cloud]", "mask.bits=[2]"))
    x0, _, x1, _ = boxes_of(frame).T
    share = np.clip((x1 - np.maximum(x0, 100)) / (x1 - x0), 0, 1)
    np.testing.assert_allclose(frame.masked, share, atol=0.001)


def test_a_mask_in_a_folder_is_no_scene(tmp_path: Path) -> None:
    scene = painted(tmp_path / "night")
    (found,) = refs(scene.parent, job=make_job(tmp_path / "out", *MASK))
    assert found.files == (RasterFile(str(scene)),)


def test_pieces_have_the_same_bytes(tmp_path: Path) -> None:
    scene = painted(tmp_path)
    for policy in ("flag", "drop"):
        given = (DATE, *MASK, f"mask.policy={policy}")
        run(scene, make_job(tmp_path / policy, *given))
        run(scene, make_job(tmp_path / f"{policy}2", *given, "engine.pieces_from_windows=2"))
        assert digests(tmp_path / policy) == digests(tmp_path / f"{policy}2")


def test_another_mask_is_published_again(tmp_path: Path) -> None:
    job = make_job(tmp_path / "out", DATE, *MASK)
    first = run(painted(tmp_path), job)
    again = run(painted(tmp_path, cloud_from=300), job)
    assert again.masked.sum() < first.masked.sum()
    (result,) = sweep(refs(tmp_path / "a_b_SR.tif", job=job), job)
    assert result.status == "up-to-date"


def test_only_a_dropping_mask_changes_the_parts(tmp_path: Path) -> None:
    """With the policy `flag`, another mask needs no new detection."""
    scene = painted(tmp_path)
    ids = {}
    for policy in ("flag", "drop"):
        job = make_job(tmp_path / "out", *MASK, f"mask.policy={policy}")
        (ref,) = refs(scene, job=job)
        ids[policy] = plan_scene(ref, job).stage_id
    plain = plan_scene(ref_of(scene), make_job(tmp_path / "out")).stage_id
    assert ids["flag"] == plain != ids["drop"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('mask.file="*_QA.tif"',), "expected a mask, found none: no such file *_QA.tif in"),
        (("mask.file=''", "mask.asset=scl"), "mask.asset=scl is an asset of a STAC item"),
        (("mask.bands=[2]",), "expected a mask with bands 2, found 1; see mask.bands"),
    ],
)
def test_a_missing_mask_fails_the_scene(
    tmp_path: Path, change: tuple[str, ...], reason: str
) -> None:
    scene = painted(tmp_path)
    job = make_job(tmp_path / "out", *MASK, *change)
    (result,) = sweep(refs(scene, job=job), job)
    assert result.status == "failed"
    assert reason in result.reason
    assert "\n" not in result.reason


def test_a_mask_of_other_ground_or_kind_fails_the_scene(tmp_path: Path) -> None:
    scene, job = painted(tmp_path), make_job(tmp_path / "out", *MASK)
    elsewhere = TRANSFORM @ Affine.translation(90_000, 0)
    classes = np.ones((1, 20, 20), np.uint8)
    other = write_raster(tmp_path / "other.tif", classes, transform=elsewhere)
    floats = write_raster(tmp_path / "floats.tif", classes.astype(np.float32))
    for path, reason in ((other, "covers other ground"), (floats, "a mask of whole numbers")):
        ref = replace(ref_of(scene), quality=RasterFile(str(path)))
        (result,) = sweep([ref], job)
        assert result.status == "failed"
        assert reason in result.reason


def test_the_mask_of_an_item_is_an_asset(tmp_path: Path) -> None:
    scene = painted(tmp_path)
    item = pystac.Item("s", None, None, datetime(2026, 11, 20, tzinfo=UTC), {})
    roles = {"data": scene, "scl": scene.with_name("a_b_SCL.tif")}
    for key, path in roles.items():
        item.add_asset(key, pystac.Asset(str(path), media_type="image/tiff", roles=[key]))
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item.to_dict(include_self_link=False)))
    job = make_job(tmp_path / "out", "mask.preset=sentinel2-scl")
    (found,) = refs(path, job=job)
    assert found.quality == RasterFile(str(roles["scl"]))
    (result,) = sweep([found], job)
    assert published(result).masked.max() == 1
    job = make_job(tmp_path / "out", "mask.asset=qa", "mask.values=[1]")
    (fault,) = refs(path, job=job)
    assert "expected one asset of key or role 'qa', found 0; its assets: data, scl" in fault.fault


def test_the_mask_with_the_longest_beginning_belongs_to_a_scene(tmp_path: Path) -> None:
    job = make_job(tmp_path / "out", "mask.preset=planet-udm2")
    pixels = np.ones((8, 20, 20), np.uint8)
    for name in ("t1_3B_udm2", "t1_udm2", "t2_3B_udm2"):
        write_raster(tmp_path / f"{name}.tif", pixels)
    scene = write_raster(tmp_path / "t1_3B_SR.tif", pixels[:1])
    (found,) = refs(scene, job=job)
    assert found.quality == RasterFile(str(tmp_path / "t1_3B_udm2.tif"))
    other = write_raster(tmp_path / "t3_3B_SR.tif", pixels[:1])
    (fault,) = refs(other, job=job)
    assert fault.fault.endswith("it has t1_3B_udm2.tif, t1_udm2.tif, t2_3B_udm2.tif")


@pytest.mark.parametrize(
    ("assignments", "reason"),
    [
        (("mask.asset=scl",), "expected values or bits"),
        (("mask.values=[1]",), "expected where the mask is"),
        (("mask.preset=modis",), "mask.preset"),
    ],
)
def test_incomplete_settings_are_one_line(assignments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_settings(None, assignments)


def test_own_values_replace_those_of_a_preset() -> None:
    mask = load_settings(None, ["mask.preset=landsat-qa", "mask.values=[5]"]).mask.resolved()
    assert (mask.values, mask.bits, mask.asset) == ((5,), (), "qa_pixel")
