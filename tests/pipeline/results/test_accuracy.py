"""Published tables against painted truth: seams, areas, metres, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.transform import from_origin
from scipy.stats import binomtest
from shapely import Polygon, box

from scenesweep.model.boxes import DetectorOutput
from scenesweep.model.evaluate import Rule, find_matches
from scenesweep.pipeline.errors import UnreadableOutput, UsageError
from scenesweep.pipeline.geometry.georef import corners, to_lonlat, to_map
from scenesweep.pipeline.labels import Objects
from scenesweep.pipeline.results.accuracy import (
    PublishedDetections,
    Share,
    class_names,
    compare_scene,
    in_metres,
    inside_swept_area,
    near_seams,
    open_published,
    seam_scores,
)
from tests.rasters import TRANSFORM, UTM, SquareDetector, make_job, paint_squares
from tests.rasters import write_raster as write
from tests.sweeps import sweep

EXACT = Rule(1.0)


class BlindNearEdges(SquareDetector):
    """Overlooks squares that touch the outer 20 px of a chip: with a margin of 8, near seams."""

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        found = super().detect(chips)
        inside = (found.boxes.xyxy >= 20) & (found.boxes.xyxy <= chips.shape[-1] - 20)
        return DetectorOutput(found.boxes.take(inside.all(axis=1)), found.capped)


def objects(truth: NDArray[np.float64]) -> Objects:
    return Objects(truth, np.zeros(len(truth), np.int64))


def painted(tmp_path: Path, *sets: str, detector: object = None) -> tuple[Path, Objects]:
    pixels, truth = paint_squares(304, 208, largest=10, seed=2, count=150)
    scene = write(tmp_path / "scene.tif", pixels)
    sweep([scene], make_job(tmp_path / "out", *sets), detector)
    return scene, objects(truth)


def opened(tmp_path: Path) -> PublishedDetections:
    (one,) = open_published(tmp_path / "out", [str(tmp_path / "scene.tif")])
    return one


def slow_near(points: NDArray[np.float64], one: PublishedDetections) -> NDArray[np.bool_]:
    """Walk over all pairs of neighbouring cores."""
    near = np.zeros(len(points), np.bool_)
    rows, columns = one.grid.shape
    x, y = (points / one.scale).T
    for row in range(rows):
        for column in range(columns):
            core = one.grid.tile(row, column).core
            if column + 1 < columns:
                near |= np.abs(x - core.right) <= one.grid.margin
            if row + 1 < rows:
                near |= np.abs(y - core.bottom) <= one.grid.margin
    return near


def test_a_sweep_without_faults_has_none_at_its_seams(tmp_path: Path) -> None:
    _, truth = painted(tmp_path)
    one = opened(tmp_path)
    assert one.grid.shape == (6, 9)
    sample = compare_scene(one, truth, ("square",), None)
    curve = find_matches([sample], EXACT).count().curve()
    assert (curve.f == 1).all()
    seams = seam_scores([one], [sample], EXACT, threshold=one.threshold)
    near = slow_near(truth.centres(), one)
    assert 20 < near.sum() < len(truth)
    assert (near_seams(truth.centres(), one) == near).all()
    assert seams.near.recall == seams.near.precision == Share(near.sum(), near.sum())
    assert seams.elsewhere.recall == Share((~near).sum(), (~near).sum())
    assert seams.margin_px == 16


def test_criterion_at_the_seams_are_seen_there(tmp_path: Path) -> None:
    _, truth = painted(tmp_path, "tiling.margin=8", detector=BlindNearEdges())  # fits exactly
    one = opened(tmp_path)
    sample = compare_scene(one, truth, ("square",), None)
    seams = seam_scores([one], [sample], EXACT, threshold=one.threshold)
    assert seams.near.recall.value == 0
    assert seams.elsewhere.recall.part == len(sample.predicted) > 5
    assert seams.near.precision.value is None
    assert seams.elsewhere.precision.value == 1


def test_one_window_has_no_seams(tmp_path: Path) -> None:
    pixels, truth = paint_squares(60, 50, largest=10, seed=2)
    scene = write(tmp_path / "scene.tif", pixels)
    sweep([scene], make_job(tmp_path / "out"))
    assert not near_seams(objects(truth).centres(), opened(tmp_path)).any()


def test_seams_lie_in_the_grid_of_the_model(tmp_path: Path) -> None:
    """A scene at half the model's pixel size: seams are a margin of the model's pixels wide."""
    pixels, truth = paint_squares(300, 220, largest=10, seed=2)
    scene = write(
        tmp_path / "scene.tif", pixels, transform=from_origin(430_000, 3_775_000, 0.3, 0.3)
    )
    sweep([scene], make_job(tmp_path / "out"))
    one = opened(tmp_path)
    assert one.scale == pytest.approx((2, 2), rel=1e-3)
    assert (
        near_seams(objects(truth).centres(), one) == slow_near(objects(truth).centres(), one)
    ).all()


def test_what_lies_outside_the_area_is_not_judged(tmp_path: Path) -> None:
    _, truth = painted(tmp_path)
    part = np.array([[50.0, 40, 200, 180]])
    ring = to_lonlat(to_map(corners(part), TRANSFORM), opened(tmp_path).scene.crs or "")[0]
    area = box(*ring.min(axis=0), *ring.max(axis=0))
    whole = compare_scene(opened(tmp_path), truth, ("square",), None)
    sample = compare_scene(opened(tmp_path), truth, ("square",), area)
    assert 0 < len(sample.label) < len(whole.label)
    assert len(sample.predicted) == len(sample.label)
    deep = (truth.centres() > part[0, :2] + 2).all(axis=1)
    deep &= (truth.centres() < part[0, 2:] - 2).all(axis=1)
    assert {tuple(b) for b in truth.xyxy[deep]} <= {tuple(b) for b in sample.xyxy}


def test_objects_outside_the_swept_area_are_not_missed(tmp_path: Path) -> None:
    pixels, boxes = paint_squares(304, 208, largest=10, seed=2, count=150)
    scene = write(tmp_path / "scene.tif", pixels)
    outer = np.array([[40.25, 30.25, 260.25, 190.25]])  # no centre lies there
    hole = np.array([[120.25, 80.25, 190.25, 140.25]])
    rings = [
        to_lonlat(to_map(corners(part), TRANSFORM), CRS(UTM).to_wkt())[0] for part in (outer, hole)
    ]
    sweep([scene], make_job(tmp_path / "out", area=Polygon(rings[0], [rings[1]])))
    one, truth = opened(tmp_path), objects(boxes)
    whole = compare_scene(one, truth, ("square",), None)
    sample = inside_swept_area(whole, one)
    x, y = truth.centres().T
    inside = (x > 40.25) & (x < 260.25) & (y > 30.25) & (y < 190.25)
    inside &= ~((x > 120.25) & (x < 190.25) & (y > 80.25) & (y < 140.25))
    assert len(sample.label) == inside.sum()
    missed = find_matches([whole], EXACT).count().curve().fn[0]
    assert missed == len(truth) - len(whole.predicted) > 20
    assert find_matches([sample], EXACT).count().curve().fn[0] == 0
    assert len(sample.predicted) == len(sample.label)


def test_distances_are_metres_on_the_ground(tmp_path: Path) -> None:
    pixels, truth = paint_squares(60, 50, largest=10, seed=2)
    scene = write(
        tmp_path / "scene.tif",
        pixels,
        crs="EPSG:4326",
        transform=from_origin(-117.2, 34.1, 6.5e-6, 5.4e-6),
    )
    sweep([scene], make_job(tmp_path / "out"))
    one = opened(tmp_path)
    assert one.scene.gsd_m is not None
    moved = objects(truth + np.array([5.0, 0, 5, 0]))
    sample = in_metres(compare_scene(one, moved, ("square",), None), one.scene)
    apart = 5 * one.scene.gsd_m[0]
    nearest = np.linalg.norm(sample.predicted.centres()[:, None] - sample.centres(), axis=2).min(
        axis=1
    )
    assert apart == pytest.approx(3, abs=0.02)
    assert nearest.max() <= apart + 1e-6
    assert find_matches([sample], Rule(radius=apart + 1e-6)).count().curve().fn[0] == 0


def test_shares_have_the_interval_of_wilson() -> None:
    for part, whole in ((0, 5), (3, 7), (90, 100), (40, 40)):
        said = Share(part, whole).interval
        expected = binomtest(part, whole).proportion_ci(method="wilson")
        assert (said.low, said.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert Share(0, 0).value is None
    assert (Share(0, 0).interval.low, Share(0, 0).interval.high) == (0, 1)


def test_classes_come_from_the_tables(tmp_path: Path) -> None:
    _, truth = painted(tmp_path)
    one = opened(tmp_path)
    assert class_names([one]) == ("square",)
    assert compare_scene(one, truth, ("house", "square"), None).predicted.label.tolist() == [
        1
    ] * len(truth)
    with pytest.raises(UsageError, match="name the model that the scene was swept with"):
        compare_scene(one, truth, ("house",), None)


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    scene, _ = painted(tmp_path)
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no published table"):
        open_published(tmp_path, [str(scene)])
    with pytest.raises(UsageError, match="'other' has no published table"):
        open_published(out, [str(write(tmp_path / "other.tif", np.ones((1, 9, 9), np.uint8)))])
    with pytest.raises(UsageError, match="no such file"):
        open_published(out, [str(tmp_path / "none.tif")])
    second = write(tmp_path / "second.tif", np.ones((1, 90, 90), np.uint8))
    sweep([second], make_job(out, "detect.score_threshold=0.3"))
    with pytest.raises(UsageError, match="2 different score thresholds"):
        open_published(out, [str(scene), str(second)])
    write(scene, np.ones((1, 90, 90), np.uint8))
    with pytest.raises(UsageError, match="another size"):
        open_published(out, [str(scene)])
    (table,) = (out / "detections").rglob("scene.parquet")
    pq.write_table(pq.ParquetFile(table).read().replace_schema_metadata({}), table)
    with pytest.raises(UnreadableOutput, match="sweep the scene again"):
        open_published(out, [str(scene)])
