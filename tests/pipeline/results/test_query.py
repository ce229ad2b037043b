"""Queries give what a plain filter over all rows gives, and read less for it."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.transform import from_origin

from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.publish.publish import publish
from scenesweep.pipeline.publish.table import SCHEMA
from scenesweep.pipeline.results.compact import COMPACT_SCHEMA, compact
from scenesweep.pipeline.results.query import (
    Query,
    as_layer,
    find,
    stale_dates,
    table_files,
)
from scenesweep.pipeline.results.zones import Zones
from tests.nights import CLASSES, NIGHT, OTHER, night_job, objects, publish_night, publish_scene
from tests.rasters import ref_of, write_raster

DAYS = [date(2026, 11, 19), date(2026, 11, 20), date(2026, 11, 21)]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = publish_night(tmp_path_factory.mktemp("night"))
    list(compact(out, iou=0.5))
    return out


def filtered(frame: gpd.GeoDataFrame, query: Query) -> list[str]:
    """Filter all rows one by one: the obvious reference."""
    found = []
    for row in frame.itertuples():
        west, south, east, north = row.geometry.bounds
        box = query.bbox
        day = None if row.date == "unknown" else date.fromisoformat(row.date)
        dated = query.first is None or (
            day is not None and query.last is not None and query.first <= day <= query.last
        )
        if (
            dated
            and row.score >= np.float32(query.min_score)
            and (not query.classes or row.class_name in query.classes)
            and (not query.scenes or row.scene_id in query.scenes)
            and (box is None or (east >= box[0] and west <= box[2]))
            and (box is None or (north >= box[1] and south <= box[3]))
        ):
            found.append(row.detection_id)
    return sorted(found)


@settings(max_examples=40, deadline=None)
@given(
    box=st.none() | st.tuples(*[st.floats(0, 1)] * 4),
    classes=st.lists(st.sampled_from([*CLASSES, "boat"]), max_size=2),
    scenes=st.lists(st.sampled_from(["west", "east", "undated", "none"]), max_size=2),
    score=st.integers(0, 100),
    days=st.none() | st.tuples(st.sampled_from(DAYS), st.sampled_from(DAYS)),
    compacted=st.booleans(),
)
def test_a_query_is_a_filter(
    night: Path,
    box: tuple[float, float, float, float] | None,
    classes: list[str],
    scenes: list[str],
    score: int,
    days: tuple[date, date] | None,
    compacted: bool,
) -> None:
    frame = gpd.read_parquet(night / "detections")
    west, south, east, north = frame.total_bounds
    bbox = None
    if box is not None:
        x, y = sorted(box[:2]), sorted(box[2:])
        width, height = east - west, north - south
        bbox = (
            *(west + x[0] * width, south + y[0] * height),
            *(west + x[1] * width, south + y[1] * height),
        )
    first, last = sorted(days) if days else (None, None)
    query = Query(bbox, tuple(classes), tuple(scenes), score / 100 - 0.005, first, last, compacted)
    found = find(night, query)
    assert found.schema.equals(COMPACT_SCHEMA if compacted else SCHEMA)
    assert sorted(found["detection_id"].to_pylist()) == filtered(frame, query)


def test_unique_leaves_out_what_is_marked(night: Path) -> None:
    every = find(night, Query(compacted=True)).to_pandas()
    unique = find(night, Query(unique=True)).to_pandas()
    assert 0 < len(unique) < len(every)
    assert unique.detection_id.tolist() == every[every.duplicate_of.isna()].detection_id.tolist()


@pytest.mark.parametrize(
    "text", ["x' or '1'='1", "ship') or (true", '"; drop table x; --', "$files"]
)
def test_what_a_user_gives_is_never_sql(night: Path, text: str) -> None:
    assert len(find(night, Query(classes=(text,)))) == 0
    assert len(find(night, Query(scenes=(text,)))) == 0


def test_a_bbox_across_the_antimeridian(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out")
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:32601", always_xy=True).transform(180, 10)
    path = write_raster(
        tmp_path / "s.tif",
        np.ones((1, 200, 400), np.uint8),
        crs="EPSG:32601",
        transform=from_origin(x - 200, y + 100, 1, 1),
    )
    boxes = np.array([[50.0, 90, 60, 100], [195, 90, 207, 100], [300, 90, 310, 100]])
    score, label = np.ones(3, np.float32), np.zeros(3, np.int16)
    publish(
        Candidates(boxes, score, label, np.zeros(3, np.bool_)), plan_scene(ref_of(path), job), job
    )

    def places(west: float, east: float) -> list[float]:
        table = find(tmp_path / "out", Query(bbox=(west, 0, east, 20)))
        return sorted(table["x_min"].to_pylist())

    assert places(179, -179) == [50, 195, 300]
    assert places(179, 180) == [50, 195]
    assert places(-180, -179) == [195, 300]
    assert places(-180, 180) == [50, 195, 300]
    assert places(-179.9995, -179) == [300]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_bbox_skips_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compacted: bool
) -> None:
    """DuckDB does not read them: their data is destroyed, and the query still succeeds."""
    monkeypatch.setattr("scenesweep.pipeline.publish.publish.ROWS_PER_GROUP", 500)
    monkeypatch.setattr("scenesweep.pipeline.results.compact.ROWS_PER_GROUP", 500)
    job = night_job(tmp_path / "out", "publish.formats=[]")
    path = publish_scene(tmp_path, job, "crowded", objects(10_000))["detections"]
    if compacted:
        list(compact(tmp_path / "out", iou=0.9))
    middle = gpd.read_parquet(path).iloc[4321]
    west, south = middle.center_lon, middle.center_lat
    query = Query(
        bbox=(west, south, west + 1e-6, south + 1e-6),
        classes=(middle.class_name,),
        compacted=compacted,
    )
    (table,) = table_files(tmp_path / "out", query)
    everything = find(tmp_path / "out", query)
    assert middle.detection_id in everything["detection_id"].to_pylist()
    kept, total = destroy_row_groups_outside(Path(str(table)), west, south)
    assert total == 20
    assert 1 <= kept <= 5
    assert find(tmp_path / "out", query).equals(everything)
    with pytest.raises(duckdb.Error):
        duckdb.execute(f"select * from read_parquet('{table}')").fetchall()


def destroy_row_groups_outside(table: Path, lon: float, lat: float) -> tuple[int, int]:
    """Write zeros over the row groups whose statistics exclude a point; count the rest and all."""
    footer = pq.read_metadata(table)
    kept = 0
    with table.open("r+b") as file:
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            columns = [group.column(i) for i in range(group.num_columns)]
            stats = {column.path_in_schema: column.statistics for column in columns}
            if (
                stats["bbox.xmin"].min <= lon + 1e-6
                and stats["bbox.xmax"].max >= lon
                and stats["bbox.ymin"].min <= lat + 1e-6
                and stats["bbox.ymax"].max >= lat
            ):
                kept += 1
                continue
            for column in columns:
                file.seek(column.dictionary_page_offset or column.data_page_offset)
                file.write(bytes(column.total_compressed_size))
    return kept, footer.num_row_groups


def test_no_tables_are_an_error_and_no_rows_are_not(tmp_path: Path, night: Path) -> None:
    with pytest.raises(UnreadableOutput, match="expected tables in detections"):
        find(tmp_path, Query())
    job = night_job(tmp_path / "out")
    publish_scene(tmp_path, job, "empty", Candidates.none())
    with pytest.raises(UnreadableOutput, match="run scenesweep compact"):
        find(tmp_path / "out", Query(unique=True))
    assert find(tmp_path / "out", Query()).schema.equals(SCHEMA)
    assert len(find(night, Query(first=DAYS[0], last=DAYS[0]))) == 0


def test_scenes_without_a_date_can_be_asked_for(night: Path) -> None:
    for compacted in (False, True):
        found = find(night, Query(undated=True, compacted=compacted))
        assert set(found["scene_id"].to_pylist()) == {"undated"}


def test_stale_dates_are_those_whose_scenes_changed(tmp_path: Path) -> None:
    out = publish_night(tmp_path)
    assert stale_dates(out, Query()) == [NIGHT, OTHER, "unknown"]
    list(compact(out, iou=0.5))
    assert stale_dates(out, Query()) == []
    publish_scene(tmp_path, night_job(out), "later", objects(10), day=OTHER)
    assert stale_dates(out, Query()) == []  # published again, and as it was
    publish_scene(tmp_path, night_job(out, "merge.iou=0.1"), "later", objects(10), day=OTHER)
    assert stale_dates(out, Query()) == [OTHER]
    assert stale_dates(out, Query(last=DAYS[1])) == []
    assert stale_dates(out, Query(undated=True)) == []
    list(compact(out, iou=0.5))
    assert stale_dates(out, Query()) == []
    (out / "detections" / f"date={NIGHT}" / "east.parquet").unlink()
    assert stale_dates(out, Query()) == [NIGHT]
    (out / "detections" / f"date={OTHER}" / "later.parquet").unlink()
    assert stale_dates(out, Query()) == [NIGHT, OTHER]
    list(compact(out, iou=0.5))
    assert stale_dates(out, Query()) == []


def test_a_scene_in_pixels_makes_a_date_stale_once(tmp_path: Path) -> None:
    """It has no row in the compacted table, which knows it all the same."""
    out = publish_night(tmp_path)
    list(compact(out, iou=0.5))
    publish_scene(tmp_path, night_job(out, "scenes.pixel_coordinates=true"), "px", objects(9))
    assert stale_dates(out, Query()) == [NIGHT]
    list(compact(out, iou=0.5))
    assert stale_dates(out, Query()) == []


@pytest.mark.parametrize("compacted", [False, True])
def test_a_layer_knows_the_scenes_of_its_rows(night: Path, compacted: bool) -> None:
    query = Query(scenes=("east", "later"), compacted=compacted)
    layer = as_layer(find(night, query), night, query)
    assert [(p.scene_id, p.file_name) for p in layer.images] == [
        ("east", "east.tif"),
        ("later", "later.tif"),
    ]
    assert layer.classes == tuple(sorted(CLASSES))


@pytest.mark.parametrize("compacted", [False, True])
def test_an_area_selects_by_the_centre(night: Path, compacted: bool) -> None:
    frame = gpd.read_parquet(night / "detections")
    west, south, east, north = frame.total_bounds.tolist()
    middle = shapely.Point((west + east) / 2, (south + north) / 2)
    polygons = [middle.buffer((east - west) / 6), shapely.box(west, south, west + 1e-3, north)]
    area = Zones.of(np.array(polygons, object))
    found = find(night, Query(classes=("ship",), compacted=compacted), area=area)
    points = shapely.points(frame.center_lon, frame.center_lat)
    inside = shapely.intersects(shapely.union_all(polygons), points) & (frame.class_name == "ship")
    assert sorted(found["detection_id"].to_pylist()) == sorted(frame.detection_id[inside])
    assert 0 < inside.sum() < len(frame) / 2
    beside = Zones.of(np.array([shapely.box(0, 0, 1, 1)], object))
    nothing = find(night, Query(compacted=compacted), area=beside)
    assert nothing.schema.equals(COMPACT_SCHEMA if compacted else SCHEMA)
    assert len(nothing) == 0


@pytest.mark.parametrize("older", [(NIGHT,), (OTHER,), (NIGHT, OTHER, "unknown")])
@pytest.mark.parametrize("compacted", [False, True])
def test_tables_of_an_earlier_version_have_null_for_newer_columns(
    tmp_path: Path, older: tuple[str, ...], compacted: bool
) -> None:
    out = publish_night(tmp_path)
    before = find(out, Query(scenes=("later", "west", "undated")))
    for path in (out / "detections").rglob("*.parquet"):
        if path.parent.name.removeprefix("date=") in older:
            table = pq.read_table(path, partitioning=None)
            pq.write_table(table.drop_columns(["probability"]), path)
    if compacted:
        assert [one.status for one in compact(out, iou=0.5)] == ["done"] * 3
    found = find(out, Query(scenes=("later", "west", "undated"), compacted=compacted))
    assert found.schema.equals(COMPACT_SCHEMA if compacted else SCHEMA)
    ids = before["detection_id"].to_pylist()
    assert sorted(found["detection_id"].to_pylist()) == sorted(ids)
    assert found["probability"].null_count == len(found)
