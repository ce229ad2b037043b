"""Counts are those of a join in GeoPandas, and need what was observed to become densities."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.geometry.areas import area_km2
from scenesweep.pipeline.results.cells import Cells
from scenesweep.pipeline.results.compact import compact
from scenesweep.pipeline.results.count import COLUMNS, SCHEMA, add_dates, count, rows_of
from scenesweep.pipeline.results.observed import disjoint, observed_ground
from scenesweep.pipeline.results.query import Query
from scenesweep.pipeline.results.unique import open_date
from scenesweep.pipeline.results.zones import Zones
from tests.nights import CLASSES, NIGHT, OTHER, night_job, objects, publish_night, publish_scene
from tests.polygons import grid

DATED = Query(first=date(2026, 1, 1), last=date(2026, 12, 31))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a night without coverage files, as older versions published it."""
    out = publish_night(tmp_path_factory.mktemp("night"), "publish.formats=[]")
    shutil.rmtree(out / "coverage")
    return out


def districts(out: Path) -> gpd.GeoDataFrame:
    frame = gpd.read_parquet(out / "detections")
    west, south, east, north = frame.total_bounds.tolist()
    return grid((west, south, (west + 3 * east) / 4, north), 4, 3)  # not the eastern quarter


def counted(
    out: Path, query: Query, frame: gpd.GeoDataFrame, *, by_class: bool = False
) -> gpd.GeoDataFrame:
    polygons = frame.geometry.to_numpy()
    counts = count(out, query, Zones.of(polygons))
    parts = [
        frame.iloc[numbers].reset_index(drop=True).join(rows.to_pandas())
        for numbers, rows in rows_of(counts, polygons, by_class=by_class)
    ]
    return gpd.GeoDataFrame(pd.concat(parts, ignore_index=True))


def joined(out: Path, frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Join the centres of unique detections to polygons: the obvious reference."""
    list(compact(out, iou=0.5))
    every = gpd.read_parquet(out / "compact")
    every = every[every.duplicate_of.isna()]
    centres = every.set_geometry(
        gpd.points_from_xy(every.center_lon, every.center_lat, crs=every.crs)
    )
    return centres.sjoin(frame, predicate="intersects")


def test_counts_are_those_of_a_join(night: Path) -> None:
    frame = districts(night)
    reference = joined(night, frame)
    found = counted(night, Query(), frame)
    assert set(found.date) == {NIGHT, OTHER, "unknown"}
    assert len(found) == 3 * len(frame)
    expected = reference.groupby(["date", "name"]).size()
    for row in found.itertuples():
        assert row.detections == expected.get((row.date, row.name), 0)
    assert found.detections.sum() == len(reference) > 300
    assert found.class_name.isna().all()
    assert found.expected.isna().all()


def test_counts_by_class_add_up(night: Path) -> None:
    frame = districts(night)
    total = counted(night, DATED, frame).groupby(["date", "name"]).detections.sum()
    parts = counted(night, DATED, frame, by_class=True)
    assert set(parts.class_name) == set(CLASSES)
    assert (parts.groupby(["date", "name"]).detections.sum() == total).all()
    one = counted(night, replace(DATED, classes=("ship",), min_score=0.5), frame, by_class=True)
    reference = joined(night, frame)
    wanted = reference[(reference.class_name == "ship") & (reference.score >= 0.5)]
    assert one.detections.sum() == (wanted.date != "unknown").sum() > 20


def test_dates_are_added_up_on_request(night: Path) -> None:
    frame = districts(night)
    polygons = frame.geometry.to_numpy()
    counts = count(night, DATED, Zones.of(polygons))
    ((_, rows),) = rows_of(add_dates(counts), polygons, by_class=False)
    assert set(rows["date"].to_pylist()) == {f"{NIGHT}/{OTHER}"}
    each = counted(night, DATED, frame)
    assert sum(rows["detections"].to_pylist()) == each.detections.sum()


def test_cells_have_every_detection_once(night: Path) -> None:
    cells = Cells(13)
    counts = count(night, Query(first=date(2026, 11, 20), last=date(2026, 11, 20)), cells)
    ((_, rows),) = rows_of(counts, cells.polygons(), by_class=False)
    list(compact(night, iou=0.5))
    table = gpd.read_parquet(night / "compact" / f"date={NIGHT}")
    assert sum(rows["detections"].to_pylist()) == table.duplicate_of.isna().sum()
    assert min(rows["detections"].to_pylist()) == 1  # without coverage, only where something is


def write_coverage(out: Path, scene: str, day: str, *polygons: shapely.Geometry) -> None:
    path = out / "coverage" / f"date={day}" / f"{scene}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    gpd.GeoDataFrame(geometry=list(polygons), crs="OGC:CRS84").to_parquet(path)


def test_densities_come_from_the_coverage(tmp_path: Path) -> None:
    """Two scenes saw overlapping ground, which counts once; a third date has no coverage."""
    out = publish_night(tmp_path, "publish.formats=[]")
    shutil.rmtree(out / "coverage")
    frame = districts(out)
    west, south, east, north = frame.total_bounds.tolist()
    middle = (west + east) / 2
    halves = (west, middle + (east - west) / 4), (middle - (east - west) / 4, east)
    for scene, (left, right) in zip(("west", "east"), halves, strict=True):
        write_coverage(out, scene, NIGHT, shapely.box(left, south, right, north))
    write_coverage(out, "empty", NIGHT)
    found = counted(out, DATED, frame)
    seen = found[found.date == NIGHT]
    np.testing.assert_allclose(seen.observed_km2, seen.area_km2, rtol=1e-9)
    np.testing.assert_allclose(seen.per_km2, seen.detections / seen.area_km2)
    assert found[found.date == OTHER][["observed_km2", "per_km2"]].isna().all(axis=None)
    write_coverage(out, "later", OTHER, shapely.box(west, south, middle, north))
    later = counted(out, replace(DATED, first=date(2026, 11, 21)), frame)
    half = shapely.get_x(shapely.centroid(later.geometry.to_numpy())) < middle
    np.testing.assert_allclose(later.observed_km2[half], later.area_km2[half], rtol=1e-9)
    assert (later.observed_km2[~half] < 1e-9).all()
    assert later.per_km2[~half & (later.observed_km2 == 0)].isna().all()


def test_coverage_of_detect_gives_densities(tmp_path: Path) -> None:
    out = publish_night(tmp_path, "publish.formats=[]")
    found = counted(out, DATED, districts(out))
    np.testing.assert_allclose(found.per_km2, found.detections / found.observed_km2)
    for night in (NIGHT, OTHER):
        scenes = open_date(night, sorted((out / f"detections/date={night}").glob("*.parquet")))
        observed = observed_ground(scenes, out, estimate=False)
        assert observed.without == 0
        missing = observed_ground(scenes, tmp_path, estimate=True)
        assert missing.without == len(scenes.scenes)
        areas = [area_km2(ground.parts).sum() for ground in (observed, missing)]
        assert areas[0] == pytest.approx(areas[1], rel=1e-4)


def test_probabilities_give_an_expected_number(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", "publish.formats=[]")
    path = Path(str(publish_scene(tmp_path, job, "scene", objects(300))["detections"]))
    frame = districts(tmp_path / "out")
    table = pq.read_table(path, partitioning=None)
    p = np.linspace(0.1, 0.9, len(table)).astype(np.float32)
    number = table.column_names.index("probability")
    pq.write_table(table.set_column(number, "probability", pa.array(p)), path)
    found = counted(tmp_path / "out", DATED, frame)
    centres = gpd.GeoDataFrame(
        {"p": p},
        geometry=gpd.points_from_xy(table["center_lon"], table["center_lat"]),
        crs=frame.crs,
    )
    sums = centres.sjoin(frame).groupby("name").p.sum()
    np.testing.assert_allclose(found.set_index("name").expected[sums.index], sums, rtol=1e-6)
    assert (found.expected_low < found.expected).all()
    assert (found.expected < found.expected_high).all()
    assert (found.expected_high <= found.detections).all()


def test_a_table_of_an_earlier_version_has_no_expected_number(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", "publish.formats=[]")
    path = Path(str(publish_scene(tmp_path, job, "scene", objects(50))["detections"]))
    frame = districts(tmp_path / "out")
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["probability"]), path)
    found = counted(tmp_path / "out", DATED, frame)
    assert found.detections.sum() > 0
    assert found.expected.isna().all()


def test_ground_is_estimated_from_outlines_only_on_request(night: Path) -> None:
    paths = sorted((night / "detections" / f"date={NIGHT}").glob("*.parquet"))
    scenes = open_date(NIGHT, paths)
    assert len(observed_ground(scenes, night, estimate=False).parts) == 0
    ground = observed_ground(scenes, night, estimate=True)
    assert ground.without == len(paths) == 3
    (outline,) = ground.parts
    frame = gpd.read_parquet(night / "detections" / f"date={NIGHT}")
    assert outline.contains(shapely.union_all(shapely.centroid(frame.geometry.to_numpy())))
    assert area_km2(np.array([outline], object))[0] == pytest.approx(600 * 300 * 0.36e-6, rel=0.01)


def test_ground_does_not_depend_on_the_order_of_files() -> None:
    boxes = [shapely.box(0, 0, 2, 2), shapely.box(1, 1, 3, 3), shapely.box(5, 5, 6, 6)]
    a, b = disjoint(boxes), disjoint(boxes[::-1])
    assert [part.wkb for part in a] == [part.wkb for part in b]
    assert shapely.area(a).sum() == pytest.approx(8)
    assert len(disjoint([])) == 0


def test_scenes_in_pixels_are_told_and_not_counted(tmp_path: Path) -> None:
    out = publish_night(tmp_path, "publish.formats=[]")
    job = night_job(out, "scenes.pixel_coordinates=true", "publish.formats=[]")
    publish_scene(tmp_path, job, "pixels", objects(9))
    counts = count(out, DATED, Zones.of(districts(out).geometry.to_numpy()))
    assert counts.tallies[NIGHT].pixel_scenes == 1


def test_an_output_without_tables_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnreadableOutput, match="expected tables in detections"):
        count(tmp_path, Query(), Cells(5))


def test_every_column_has_a_text() -> None:
    assert list(COLUMNS) == SCHEMA.names
