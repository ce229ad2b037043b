"""Compacted nights: the same rows, near each other, with what was seen twice marked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
from numpy.typing import NDArray
from pyproj import Transformer
from pystac.stac_object import STACObjectType
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.transform import from_origin

from scenesweep.jobs import cli
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.publish.formats.pmtiles import BOXES_AT
from scenesweep.pipeline.publish.publish import publish
from scenesweep.pipeline.publish.stac.catalog import write_catalog
from scenesweep.pipeline.publish.stac.maps import link_maps
from scenesweep.pipeline.results import compact as compacting
from scenesweep.pipeline.results.compact import FILE_SCHEMA, CompactedDate, compact
from scenesweep.pipeline.results.compact_map import write_map
from scenesweep.pipeline.results.duplicates import CONTAINMENT, find_duplicates
from scenesweep.pipeline.results.tables import SceneTable, open_scene_table
from scenesweep.pipeline.storage.paths import TABLE_PATTERN, Output
from tests.nights import (
    CLASSES,
    HEIGHT,
    NIGHT,
    OTHER,
    STEP,
    WIDTH,
    iou,
    night_job,
    objects,
    publish_night,
    publish_scene,
    seen,
)
from tests.rasters import TRANSFORM, make_card, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import sweep


@pytest.fixture(scope="module")
def model() -> ModelFile:
    """A model that says it is the one of the night's job."""
    return replace(open_model("naip-trees"), card=make_card(classes=CLASSES), sha256="0" * 64)


EDGES = ["x_min", "y_min", "x_max", "y_max"]


def read(out: Path, date: str) -> gpd.GeoDataFrame:
    return gpd.read_parquet(out / "compact" / f"date={date}" / "detections.parquet")


def by_definition(frame: gpd.GeoDataFrame, threshold: float) -> dict[str, str]:
    """Mark duplicates by the definition: a slow loop over boxes in pixels of the ground."""
    touched = (frame.x_min <= 1) * 1 + (frame.y_min <= 1) + (frame.x_max >= WIDTH - 1)
    cuts = touched + (frame.y_max >= HEIGHT - 1) + frame.truncated
    frame = frame.assign(order=-frame.score, cuts=cuts)
    frame = frame.sort_values(["cuts", "order", "scene_id", "detection_id"])
    left = np.where(frame.scene_id == "east", STEP, 0)[:, None]
    boxes = frame[EDGES].to_numpy() + left * [1, 0, 1, 0]
    duplicate_of: dict[str, str] = {}
    columns = (frame.detection_id, frame.scene_id, frame.class_name, frame.cuts, boxes)
    rows = list(zip(*columns, strict=True))
    for place, (name, scene, kind, cut, box) in enumerate(rows):
        for better, other, its_kind, its_cut, its_box in rows[:place]:
            alike = other != scene and its_kind == kind and better not in duplicate_of
            fragment = cut > its_cut and share_inside(box, its_box) > CONTAINMENT
            if alike and (fragment or iou(its_box, box) > threshold):
                duplicate_of[name] = better
                break
    return duplicate_of


def share_inside(box: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the share of a box's area that lies in another one."""
    corner = np.maximum(box[:2], other[:2])
    shared = np.prod(np.maximum(np.minimum(box[2:], other[2:]) - corner, 0))
    return float(shared / np.prod(box[2:] - box[:2]))


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 200), (0.2, 200), (0.1, 600)])
def test_duplicates_are_those_of_the_definition(
    tmp_path: Path, threshold: float, count: int
) -> None:
    """Crowded ground: many boxes overlap more than one other."""
    out = publish_night(tmp_path, "publish.formats=[]", "publish.stac=false", count=count)
    nights = {night.date: night for night in compact(out, iou=threshold)}
    frame = read(out, NIGHT)
    expected = by_definition(frame, threshold)
    marked = frame[frame.duplicate_of.notna()]
    assert dict(zip(marked.detection_id, marked.duplicate_of, strict=True)) == expected
    assert nights[NIGHT].duplicates == len(expected) > count / 8
    assert not set(expected.values()) & set(expected)
    assert read(out, OTHER).duplicate_of.isna().all()
    assert read(out, "unknown").duplicate_of.isna().all()


@pytest.mark.parametrize("seed", range(3))
def test_objects_that_a_scene_s_edge_cuts_count_once(tmp_path: Path, seed: int) -> None:
    """Four overlapping quarters of one painted scene: its squares are the truth.

    The overlap is wider than any square, so each is whole in some quarter, or cut by no edge
    but the ground's own.
    """
    pixels, truth = paint_squares(300, 260, largest=14, seed=seed, count=220)
    job = make_job(tmp_path / "out", "scenes.acquired_at=2026-11-20")
    quarters = []
    for left, top in product((0, 130), (0, 110)):
        path = tmp_path / f"q{left}-{top}.tif"
        transform = TRANSFORM @ TRANSFORM.translation(left, top)
        part = pixels[:, top : top + 150, left : left + 170]
        quarters.append(write_raster(path, part, transform=transform))
    sweep(quarters, job)
    (night,) = compact(tmp_path / "out", iou=0.5)
    frame = read(tmp_path / "out", NIGHT)
    assert night.rows > len(truth)
    assert night.rows - night.duplicates == len(truth)
    offset = frame.scene_id.str.extract(r"q(\d+)-(\d+)").to_numpy(float)
    corners = frame[EDGES].to_numpy() + np.tile(offset, 2)
    kept = corners[frame.duplicate_of.isna()].round(6)
    assert sorted(map(tuple, kept)) == sorted(map(tuple, truth))
    tables = [open_scene_table(path) for path in sorted((tmp_path / "out").glob(TABLE_PATTERN))]
    marks = {frozenset(marked(order)) for order in permutations(tables)}
    assert len(marks) == 1  # in whatever order the scenes come


def marked(tables: Sequence[SceneTable]) -> set[tuple[str, str]]:
    ids = [i for t in tables for i in pq.read_table(t.path)["detection_id"].to_pylist()]
    duplicates = find_duplicates(tables, 0.5)
    return {(ids[row], of) for row, of in zip(duplicates.rows, duplicates.of, strict=True)}


def test_a_fragment_s_higher_score_does_not_win(tmp_path: Path) -> None:
    """Of a cut box and the whole one the whole one stays; a whole box beside it stays too."""
    job = night_job(tmp_path / "out")
    west = np.array([[WIDTH - 6.0, 50, WIDTH, 70], [WIDTH - 40.0, 50, WIDTH - 34, 70]])
    east = np.array([[WIDTH - 6.0 - STEP, 50, WIDTH + 14 - STEP, 70], [160.0, 50, 180, 70]])
    for name, boxes, left in (("west", west, 0), ("east", east, STEP)):
        score = np.full(2, 0.9 if name == "west" else 0.3, np.float32)
        found = Candidates(boxes, score, np.zeros(2, np.int16), np.zeros(2, np.bool_))
        publish_scene(tmp_path, job, name, found, left=left)
    list(compact(tmp_path / "out", iou=0.5))
    frame = read(tmp_path / "out", NIGHT)
    (gone,) = frame[frame.duplicate_of.notna()].itertuples()
    assert (gone.scene_id, gone.x_max) == ("west", WIDTH)
    assert frame.set_index("detection_id").loc[gone.duplicate_of].scene_id == "east"


def test_every_row_is_there_once_and_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the rows go through memory a few at a time."""
    out = publish_night(tmp_path)
    monkeypatch.setattr(compacting, "ROWS_PER_GROUP", 20)
    monkeypatch.setattr(compacting, "_ROWS_IN_MEMORY", 60)
    plain = gpd.read_parquet(out / "detections")
    list(compact(out, iou=0.5))
    for date in (NIGHT, OTHER, "unknown"):
        path = out / "compact" / f"date={date}" / "detections.parquet"
        assert pq.read_schema(path).remove_metadata().equals(FILE_SCHEMA)
        got = read(out, date)
        wanted = plain[plain.date == date].drop(columns="date")
        got = got.set_index("detection_id").loc[wanted.detection_id].reset_index()
        got = got[wanted.columns]
        assert got.crs == wanted.crs == "OGC:CRS84"
        assert got.equals(wanted.reset_index(drop=True))
        footer = pq.read_metadata(path)
        groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        assert groups == [20] * (len(wanted) // 20) + [len(wanted) % 20] * bool(len(wanted) % 20)
        for group in range(footer.num_row_groups):
            (sorted_by,) = footer.row_group(group).sorting_columns
            column = footer.row_group(group).column(sorted_by.column_index)
            assert column.path_in_schema == "hilbert"
            for number in range(footer.num_columns):
                column = footer.row_group(group).column(number)
                assert column.compression == "ZSTD"
                assert column.has_column_index
                assert column.has_offset_index
        assert (read(out, date).hilbert.diff().dropna() >= 0).all()


def test_neighbours_lie_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of 20 rows in Hilbert order spans a small part of the ground of both scenes."""
    out = publish_night(tmp_path, count=600)
    monkeypatch.setattr(compacting, "ROWS_PER_GROUP", 20)
    list(compact(out, iou=0.5))
    frame = read(out, NIGHT)
    width, height = np.subtract(frame.total_bounds[2:], frame.total_bounds[:2])
    spans = [frame.iloc[i : i + 20].total_bounds for i in range(0, len(frame), 20)]
    shares = [(e - w) * (n - s) / (width * height) for w, s, e, n in spans]
    assert np.mean(shares) < 4 * 20 / len(frame)


def test_a_run_again_does_nothing_and_a_new_scene_its_date(tmp_path: Path) -> None:
    out = publish_night(tmp_path)
    first = list(compact(out, iou=0.5))
    assert [night.status for night in first] == ["done"] * 3
    path = out / "compact" / f"date={NIGHT}" / "detections.parquet"
    before, changed_at = path.read_bytes(), path.stat().st_mtime_ns
    again = list(compact(out, iou=0.5))
    assert [night.status for night in again] == ["up-to-date"] * 3
    assert [(n.rows, n.scenes, n.duplicates) for n in again] == [
        (n.rows, n.scenes, n.duplicates) for n in first
    ]
    assert path.stat().st_mtime_ns == changed_at
    path.unlink()
    list(compact(out, iou=0.5))
    assert path.read_bytes() == before
    assert [night.status for night in compact(out, iou=0.4)] == ["done"] * 3
    (out / "detections" / f"date={OTHER}" / "later.parquet").unlink()
    (out / "detections" / f"date={NIGHT}" / "east.parquet").unlink()
    statuses = {night.date: night.status for night in compact(out, iou=0.4)}
    assert statuses == {OTHER: "removed", NIGHT: "done", "unknown": "up-to-date"}
    assert read(out, NIGHT).duplicate_of.isna().all()
    assert str(tmp_path).encode() not in path.read_bytes()


def test_compacting_leaves_the_published_files_alone(tmp_path: Path) -> None:
    out = publish_night(tmp_path)

    def published() -> dict[Path, str]:
        paths = (p for p in out.rglob("*") if p.is_file() and "compact" not in p.parts)
        return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}

    before = published()
    list(compact(out, iou=0.5))
    assert published() == before


def test_scenes_in_pixels_are_left_out(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", "scenes.pixel_coordinates=true")
    publish_scene(tmp_path, job, "pixels", seen(objects(50), 0, 1))
    job = night_job(tmp_path / "out")
    publish_scene(tmp_path, job, "placed", seen(objects(50), 0, 1))
    (night,) = compact(tmp_path / "out", iou=0.5)
    assert (night.scenes, night.pixel_scenes, night.duplicates) == (1, 1, 0)
    assert set(read(tmp_path / "out", NIGHT).scene_id) == {"placed"}


def test_a_night_in_which_nothing_was_found(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out")
    publish_scene(tmp_path, job, "empty", Candidates.none())
    assert list(compact(tmp_path / "out", iou=0.5)) == [CompactedDate(NIGHT, "done", 1)]
    assert len(read(tmp_path / "out", NIGHT)) == 0


def test_one_object_on_the_antimeridian(tmp_path: Path) -> None:
    """Two scenes of neighbouring zones meet there: one counts beyond 180, the other below -180."""
    zones = {"before": "EPSG:32660", "after": "EPSG:32601"}
    job = night_job(tmp_path / "out")
    for (name, crs), side in product(zones.items(), [0]):
        to_zone = Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
        x, y = to_zone.transform(180, side)
        shift = -3 if name == "before" else 3
        origin = from_origin(x - 60 + shift, y + 60, 1, 1)
        path = write_raster(
            tmp_path / f"{name}.tif",
            np.ones((1, 120, 120), np.uint8),
            crs=crs,
            transform=origin,
            tags={"TIFFTAG_DATETIME": "2026:11:20 10:00:00"},
        )
        boxes = np.array([[30.0, 30, 50, 50], [50, 50, 74, 74]]) - [shift, 0, shift, 0]
        score = np.array([0.5, 0.9], np.float32)
        found = Candidates(boxes, score, np.zeros(2, np.int16), np.zeros(2, np.bool_))
        publish(found, plan_scene(ref_of(path), job), job)
    (night,) = compact(tmp_path / "out", iou=0.5)
    frame = read(tmp_path / "out", NIGHT)
    assert night.duplicates == 2
    assert set(frame[frame.duplicate_of.isna()].scene_id) == {"after"}


def test_maps_have_each_object_once_and_are_written_when_they_must_be(tmp_path: Path) -> None:
    out = publish_night(tmp_path)
    assert [night.mapped for night in compact(out, iou=0.5)] == [False] * 3
    assert Output(out).compacted_maps() == []
    nights = {night.date: night for night in compact(out, iou=0.5, maps=True)}
    assert [(night.status, night.mapped) for night in nights.values()] == [("up-to-date", True)] * 3
    path = Output(out).compacted_map(NIGHT)
    boxes = pyogrio.read_dataframe(path, layer="boxes", ZOOM_LEVEL=BOXES_AT)
    frame = read(out, NIGHT)
    assert nights[NIGHT].duplicates > 0
    assert set(boxes.detection_id) == set(frame[frame.duplicate_of.isna()].detection_id)
    before, changed_at = path.read_bytes(), path.stat().st_mtime_ns
    assert [night.mapped for night in compact(out, iou=0.5, maps=True)] == [False] * 3
    assert path.stat().st_mtime_ns == changed_at
    path.write_bytes(b"damaged")
    assert sum(night.mapped for night in compact(out, iou=0.5, maps=True)) == 1
    assert path.read_bytes() == before
    list(compact(out, iou=0.2))  # other duplicates: the maps are out of date
    assert Output(out).compacted_maps() == []
    list(compact(out, iou=0.2, maps=True))
    (out / "detections" / f"date={OTHER}" / "later.parquet").unlink()
    list(compact(out, iou=0.2))
    assert not Output(out).compacted_map(OTHER).exists()
    assert Output(out).compacted_map(NIGHT).is_file()


def test_a_compacted_file_that_cannot_be_read_to_its_end_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a bug: the tiles are written while it is read."""
    out = publish_night(tmp_path)
    assert cli.main(["compact", str(out)]) == 0
    table = Output(out).compacted(NIGHT)
    content = bytearray(table.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    table.write_bytes(content)
    with pytest.raises(UnreadableOutput, match=r"detections\.parquet: expected a compacted file: "):
        write_map(out, NIGHT)
    assert Output(out).compacted_maps() == []
    capsys.readouterr()
    assert cli.main(["compact", str(out), "--pmtiles"]) != 0
    said = capsys.readouterr().err
    assert "expected a compacted file" in said
    assert "Traceback" not in said


def test_the_collection_links_the_maps_that_there_are(tmp_path: Path, model: ModelFile) -> None:
    out = publish_night(tmp_path)
    link_maps(out)  # without a collection: nothing
    write_catalog(out, model)
    plain = (out / "collection.json").read_bytes()
    link_maps(out)
    assert (out / "collection.json").read_bytes() == plain
    assert cli.main(["compact", str(out), "--pmtiles"]) == 0
    linked = (out / "collection.json").read_bytes()
    collection = json.loads(linked)
    links = [link for link in collection["links"] if link["rel"] == "pmtiles"]
    assert [(out / link["href"]).resolve() for link in links] == Output(out).compacted_maps()
    assert {link["type"] for link in links} == {"application/vnd.pmtiles"}
    assert JsonSchemaSTACValidator().validate_core(
        collection, STACObjectType.COLLECTION, collection["stac_version"]
    )
    write_catalog(out, model)
    assert (out / "collection.json").read_bytes() == linked
    for path in Output(out).compacted_maps():
        path.unlink()
    link_maps(out)
    assert (out / "collection.json").read_bytes() == plain


@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1"])
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnreadableOutput, match="expected tables in detections/date"):
        list(compact(tmp_path, iou=0.5))
    folder = tmp_path / "detections" / "date=2026-11-20"
    folder.mkdir(parents=True)
    (folder / "x.parquet").write_bytes(content)
    with pytest.raises(UnreadableOutput, match=r"x\.parquet: expected a Parquet file that"):
        list(compact(tmp_path, iou=0.5))
