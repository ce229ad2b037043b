"""The map of all scenes: its frame, its ground, and the detections that it has."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer

from benchmarks.tables import write_coverage, write_scene
from scenesweep.jobs import cli
from scenesweep.pipeline.results.view import find_published, make_night
from scenesweep.pipeline.results.view.night.frame import BITS, UNITS, Frame
from scenesweep.pipeline.results.view.night.map import NightMap, state_of
from scenesweep.pipeline.results.view.night.points import SIDE_STEPS, Points, _read, z_order
from scenesweep.pipeline.storage.paths import Output
from tests.nights import publish_night
from tests.pages import Parsed, published

DAY = "2026-11-20"


def night_of(out: Path, *, most: int = 1_000_000) -> NightMap:
    night = make_night(out, list(find_published(out).values()), {}, most=most)
    assert night is not None
    return night


def unpacked(column: dict[str, Any], rows: int) -> NDArray[np.generic]:
    """Unpack a column as the page does, by the obvious means."""
    kind = np.dtype(column["type"]).newbyteorder("<")
    planes = np.frombuffer(zlib.decompress(b64decode(column["data"])), np.uint8)
    values = np.ascontiguousarray(planes.reshape(kind.itemsize, rows).T).view(kind)[:, 0]
    return np.cumsum(values, dtype=kind) if column["differences"] else values


def lonlat_of(night: NightMap) -> NDArray[np.float64]:
    columns = night.points.columns
    x, y = columns["x"] + 0.5, columns["y"] + 0.5
    lat = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * y / UNITS))))
    lon = (night.frame.west + x / UNITS * 360 + 180) % 360 - 180
    return np.stack([lon, lat], axis=-1)


@given(st.lists(st.tuples(st.floats(-180, 180), st.floats(-85, 85)), min_size=1, max_size=20))
def test_the_frame_is_web_mercator(points: list[tuple[float, float]]) -> None:
    lonlat = np.array(points)
    frame = Frame(-180.0)
    mine = frame.project(lonlat) / UNITS
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:3857", always_xy=True).transform(*lonlat.T)
    half = np.pi * 6378137
    # The two edges of the map are the same longitude.
    difference = mine[:, 0] - (np.array(x) + half) / (2 * half)
    assert np.abs(difference - np.rint(difference)).max() < 1e-9
    np.testing.assert_allclose(mine[:, 1], (half - np.array(y)) / (2 * half), atol=1e-9)


def test_scenes_on_both_sides_of_the_antimeridian_are_neighbours() -> None:
    frame = Frame.around([(179.0, 179.0), (-179.0, -179.0), (-178.0, -178.0)])
    x = frame.project(np.array([[179.0, 0], [-179.0, 0], [-178.0, 0]]))[:, 0]
    np.testing.assert_allclose(np.diff(x), np.array([2, 1]) / 360 * UNITS)
    line = frame.project_line(np.array([[179.0, 0], [181.0, 0]]))
    np.testing.assert_allclose(line[1, 0], x[1])
    assert Frame.around([]).west == -180


@given(
    st.lists(st.tuples(st.floats(-180, 180), st.floats(0, 100)), min_size=1, max_size=6),
    st.integers(0, 359),
)
def test_no_ground_is_cut_if_there_is_a_gap(grounds: list[tuple[float, float]], turn: int) -> None:
    whole = [(west + turn, west + turn + width) for west, width in grounds]
    west = Frame.around(whole).west
    assert -180 <= west < 180
    cut = [low for low, high in whole if 1e-6 < (west - low) % 360 < high - low - 1e-6]
    marks = np.arange(0, 360, 0.25)
    free = [all((mark - low) % 360 > high - low for low, high in whole) for mark in marks]
    assert not (cut and any(free))


def test_a_wide_scene_is_not_cut_from_its_detections(tmp_path: Path) -> None:
    """Its centre is far from those of the others, its west is not."""
    spot = np.array([0.5])
    for name, west, east in (("wide", -100.0, 100.0), ("a", 100.0, 101.0), ("b", 102.0, 103.0)):
        bounds = np.array([west, 0.0, east, 1.0])
        write_scene(tmp_path, name, DAY, np.array([west + 0.5]), spot, spot, bounds)
    night = night_of(tmp_path)
    columns = night.points.columns
    for x, scene in zip(columns["x"], columns["scene"], strict=True):
        outline = night.rings[scene][0]
        assert outline[:, 0].min() < x < outline[:, 0].max()


@given(st.lists(st.tuples(*[st.integers(0, 2**BITS - 1)] * 2), min_size=1, max_size=20))
def test_z_order_takes_the_bits_in_turn(points: list[tuple[int, int]]) -> None:
    x, y = np.array(points, np.int32).T
    slow = [
        sum((a >> bit & 1) << 2 * bit | (b >> bit & 1) << 2 * bit + 1 for bit in range(BITS))
        for a, b in points
    ]
    assert z_order(x, y).tolist() == slow


def test_the_map_has_every_detection_where_it_is(tmp_path: Path) -> None:
    out = publish_night(tmp_path)
    night = night_of(out)
    frame = gpd.read_parquet(out / "detections")
    assert night.points.total == len(night.points) == len(frame) > 500
    assert night.classes == ("ship", "car")
    names = [scene["id"] for scene in night.scenes]
    assert names == sorted(find_published(out))
    columns = night.points.columns
    mine = gpd.pd.DataFrame(
        {
            "scene_id": [names[number] for number in columns["scene"]],
            "class_name": [night.classes[label] for label in columns["label"]],
            "hundredths": columns["score"],
            "center_lon": lonlat_of(night)[:, 0],
            "center_lat": lonlat_of(night)[:, 1],
            "width": columns["width"] / SIDE_STEPS,
            "height": columns["height"] / SIDE_STEPS,
        }
    )
    steps = np.arange(1, 101).astype(np.float32) / np.float32(100)
    theirs = frame.assign(
        hundredths=[sum(score >= steps) for score in frame.score],
        width=frame.x_max - frame.x_min,
        height=frame.y_max - frame.y_min,
    )
    key = ["scene_id", "class_name", "center_lon", "center_lat"]
    mine, theirs = (t.sort_values(key).reset_index(drop=True) for t in (mine, theirs))
    for name in ("scene_id", "class_name", "hundredths"):
        assert mine[name].tolist() == theirs[name].tolist()
    np.testing.assert_allclose(mine[key[2:]], theirs[key[2:]], atol=4e-7)  # 4 cm
    np.testing.assert_allclose(mine[["width", "height"]], theirs[["width", "height"]], atol=0.126)


def test_packed_columns_come_back_as_they_were(tmp_path: Path) -> None:
    night = night_of(publish_night(tmp_path))
    said: dict[str, Any] = json.loads(json.dumps(night.packed({"west"})))
    points = said["points"]
    for name, column in night.points.columns.items():
        np.testing.assert_array_equal(unpacked(points["columns"][name], points["rows"]), column)
    assert [scene["id"] for scene in said["scenes"] if scene["page"]] == ["west"]
    order = z_order(*(night.points.columns[name].astype(np.int32) for name in ("x", "y")))
    assert (np.diff(order.astype(np.int64)) >= 0).all()


def test_of_too_many_the_highest_scores_are_kept(tmp_path: Path) -> None:
    out = publish_night(tmp_path)
    few = night_of(out, most=40)
    every = np.sort(night_of(out).points.columns["score"])
    np.testing.assert_array_equal(np.sort(few.points.columns["score"]), every[-40:])
    assert few.points.total == len(every)
    names = [scene["id"] for scene in few.scenes]
    tables = gpd.read_parquet(out / "detections").scene_id.value_counts()
    assert {s["id"]: s["detections"] for s in few.scenes} == {n: tables.get(n, 0) for n in names}


def test_detections_beyond_web_mercator_are_counted_and_left_out(tmp_path: Path) -> None:
    lon, lat = np.array([10.5, 10.5, 10.5]), np.array([84.5, 85.5, 85.9])
    bounds = np.array([10.0, 84.0, 11.0, 86.0])
    write_scene(tmp_path, "polar", DAY, lon, lat, np.array([0.5, 0.6, 0.7]), bounds)
    night = night_of(tmp_path)
    assert (len(night.points), night.points.total, night.points.beyond) == (1, 3, 2)
    assert night.scenes[0]["detections"] == 3
    np.testing.assert_allclose(lonlat_of(night), [[10.5, 84.5]], atol=1e-6)
    assert night.packed(())["points"]["beyond"] == 2  # type: ignore[index]


def test_there_may_be_more_than_65536_scenes(tmp_path: Path) -> None:
    write_scene(
        *(tmp_path, "s", DAY, np.array([10.5]), np.array([50.5]), np.array([0.5])),
        np.array([10.0, 50.0, 11.0, 51.0]),
    )
    (scene,) = find_published(tmp_path).values()
    columns, _ = _read(scene, 70_000, ["ship"], Frame(-180.0))
    assert columns["scene"].tolist() == [70_000]
    packed = Points(columns, (1,), 0).packed()["columns"]["scene"]  # type: ignore[index]
    assert packed["type"] == "uint32"
    assert unpacked(packed, 1).tolist() == [70_000]


def test_axes_turn_pixels_into_the_boxes_of_the_table(tmp_path: Path) -> None:
    out = publish_night(tmp_path)
    night = night_of(out)
    columns = night.points.columns
    axes = np.array([scene["axes"] for scene in night.scenes])[columns["scene"]]
    half = np.stack([columns["width"], columns["height"]], axis=-1) / SIDE_STEPS / 2
    corner = np.stack([columns["x"], columns["y"]], axis=-1) + 0.5
    corner = corner + axes[:, :2] * half[:, :1] + axes[:, 2:] * half[:, 1:]
    frame = gpd.read_parquet(out / "detections")
    polygons = night.frame.project(shapely.get_coordinates(frame.geometry))
    tree = shapely.STRtree(np.asarray(shapely.points(polygons), object))
    _, distance = tree.query_nearest(shapely.points(corner), return_distance=True)
    assert distance.max() < 6  # units of 4 cm; a side has an eighth of a pixel of 60 cm


def test_the_ground_is_the_coverage_or_else_the_scene(tmp_path: Path) -> None:
    bounds = np.array([10.0, 50.0, 10.1, 50.1])
    lon, lat = np.array([10.05]), np.array([50.05])
    for name in ("plain", "clouded"):
        write_scene(tmp_path, name, DAY, lon, lat, np.array([0.5]), bounds)
    west = shapely.box(10.0, 50.0, 10.05, 50.1)
    write_coverage(tmp_path, "clouded", DAY, west)
    night = night_of(tmp_path)
    clouded, plain = night.scenes
    assert (clouded["estimated"], plain["estimated"]) == (False, True)
    assert clouded["km2"] == pytest.approx(plain["km2"] / 2, rel=1e-3)
    outline, observed = night.rings[0]
    expected = night.frame.project(shapely.get_coordinates(west))
    np.testing.assert_allclose(observed.min(axis=0), expected.min(axis=0), atol=1)
    np.testing.assert_allclose(observed.max(axis=0), expected.max(axis=0), atol=1)
    np.testing.assert_array_equal(outline, night.rings[1][0])


def test_a_damaged_coverage_file_leaves_the_scene_off_the_map(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = publish_night(tmp_path)
    path = Output(out).coverage("east", DAY)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no table")
    assert "east" not in [scene["id"] for scene in night_of(out).scenes]
    assert "left out of the map" in caplog.text
    assert "expected polygons of observed ground" in caplog.text


def test_states_come_from_the_last_results() -> None:
    assert state_of(None) == "unknown"
    assert state_of({"status": "done", "warnings": []}) == "complete"
    assert state_of({"status": "up-to-date", "warnings": ["w"]}) == "warned"
    assert state_of({"status": "failed"}) == state_of({"status": "quarantined"}) == "failed"


def test_view_writes_the_map_and_without_georeference_a_list(tmp_path: Path) -> None:
    out = tmp_path / "out"
    published(out, name="one", count=5)
    published(out, name="plain", count=3, settings=("scenes.pixel_coordinates=true",))
    assert cli.main(["view", str(out)]) == 0
    index = Parsed((out / "view" / "index.html").read_text())
    assert [scene["id"] for scene in index.data["scenes"]] == ["one"]
    assert index.data["points"]["total"] == 5
    cards = [attributes["data-name"] for tag, attributes in index.tags if "data-name" in attributes]
    assert cards == ["one", "plain"]
    Output(out).table("one", "unknown").unlink()
    assert cli.main(["view", str(out), "plain"]) == 0
    index = Parsed((out / "view" / "index.html").read_text())
    assert not [a for a, _ in index.scripts if a.get("id") == "data"]
    assert pq.read_metadata(Output(out).table("plain", "unknown")).num_rows == 3
