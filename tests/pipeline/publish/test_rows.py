"""The rows of a table: their order, their geometry, and the GeoJSON made of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from scenesweep.pipeline.publish.formats.geojson import _cut, write_geojson
from scenesweep.pipeline.publish.formats.layer import Layer
from scenesweep.pipeline.publish.hilbert import hilbert_codes
from scenesweep.pipeline.publish.rows import Rows, bounds_around
from scenesweep.pipeline.publish.table import SCHEMA, with_all_columns

SIDE = 2**16


def test_neighbours_on_the_curve_are_neighbours_on_the_ground() -> None:
    """All cells of a coarse grid, sorted along the curve: each step goes to a next cell."""
    step, cells = SIDE // 32, np.arange(32)
    x, y = (axis.ravel() for axis in np.meshgrid(cells, cells))
    codes = hilbert_codes(_at(x * step, y * step), (SIDE, SIDE)).astype(np.int64)
    order = np.argsort(codes // step**2)
    assert len(set((codes // step**2).tolist())) == 32 * 32
    walk = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (walk == 1).all()


def test_the_place_on_the_curve_does_not_depend_on_other_boxes() -> None:
    boxes = np.random.default_rng(0).random((100, 4)) * 3000
    codes = hilbert_codes(boxes, (3000, 1000))
    assert [hilbert_codes(box[None], (3000, 1000))[0] for box in boxes] == codes.tolist()


def _at(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    return np.stack([x, y, x + 1, y + 1], axis=1).astype(np.float64)


NAMES = ("detection_id", "class_name", "score", "center_lon", "truncated", "acquired_at")


@pytest.mark.parametrize("time", [None, datetime(2026, 5, 31, 18, 22, 1, tzinfo=UTC)])
def test_geojson_says_what_gdal_writes(tmp_path: Path, time: datetime | None) -> None:
    layer = Layer('a "layer"', _table(500, time), ("tree",), ())
    write_geojson(layer, tmp_path / "ours.geojson")
    rows = layer.table.drop_columns(["bbox"])
    pyogrio.write_arrow(
        rows,
        tmp_path / "gdal.geojson",
        layer=layer.name,
        driver="GeoJSON",
        geometry_name="geometry",
        geometry_type="Polygon",
        crs="OGC:CRS84",
        RFC7946="YES",
        COORDINATE_PRECISION="8",
    )
    ours, gdal = (json.loads((tmp_path / f"{n}.geojson").read_text()) for n in ("ours", "gdal"))
    assert {k: v for k, v in ours.items() if k != "features"} == {
        k: v for k, v in gdal.items() if k != "features"
    }
    assert len(ours["features"]) == 500
    for mine, its in zip(ours["features"], gdal["features"], strict=True):
        # GDAL writes 8 digits of a float32, and some need 9.
        score, rounded = mine["properties"].pop("score"), its["properties"].pop("score")
        assert score == pytest.approx(rounded, rel=1e-7)
        assert mine["properties"] == its["properties"]
        assert mine["geometry"]["type"] == its["geometry"]["type"]
        _same_ground(mine["geometry"], its["geometry"])


def _same_ground(mine: dict[str, Any], its: dict[str, Any]) -> None:
    """A polygon has the same points; the halves of a cut one are the same ground, in any order.

    GDAL drops the last digits of some numbers: it writes -43.85000002 as -43.85.
    """
    if mine["type"] == "Polygon":
        np.testing.assert_allclose(mine["coordinates"], its["coordinates"], rtol=0, atol=1e-7)
        return
    a, b = shapely.from_geojson(json.dumps(mine)), shapely.from_geojson(json.dumps(its))
    assert a.symmetric_difference(b).area < 1e-12
    assert all(abs(x) <= 180 for x, _ in shapely.get_coordinates(a))
    assert all(shapely.is_ccw(part.exterior) for part in shapely.get_parts(a))


def _table(count: int, time: datetime | None) -> pa.Table:
    """Return rows with awkward names and numbers; some boxes lie across the antimeridian."""
    draw = np.random.default_rng(1)
    west, south = draw.random(count) * 360 - 180, draw.random(count) * 160 - 80
    west[:20] = 180 - draw.random(20) * 0.001
    west[20:30], south[20:30] = draw.random(10) * 1e-7, draw.random(10) * 1e-7
    boxes = shapely.box(west, south, west + 0.001, south + 0.001)
    columns: dict[str, Any] = {
        "detection_id": [f"{number:016x}" for number in range(count)],
        "class_name": ['a "b"\\', "naïve\n", "tree", None, ""] * (count // 5),
        "score": draw.random(count).astype(np.float32),
        "geometry": shapely.to_wkb(boxes),
        "center_lon": draw.random(count) * 10.0 ** draw.integers(-9, 9, count),
        "truncated": draw.random(count) < 0.5,
        "acquired_at": [time] * count,
    }
    kept = [SCHEMA.field(name) for name in (*NAMES, "geometry", "bbox")]
    nothing = pa.nulls(count)
    return pa.table(
        [pa.array(columns.get(f.name, nothing), f.type) for f in kept], schema=pa.schema(kept)
    )


@pytest.mark.parametrize("lengths", [[], [0], [5], [3, 4, 0, 9, 1], [4, 4]])
def test_groups_have_one_length_whatever_the_tables(lengths: list[int]) -> None:
    numbers = iter(range(100))
    tables = [_numbered([next(numbers) for _ in range(length)]) for length in lengths]
    rows = Rows({"tree": sum(lengths)}, (), None, lambda: tables)
    groups = list(rows.in_groups(4))
    assert [n for group in groups for n in group["scene_id"].to_pylist()] == [
        str(n) for n in range(sum(lengths))
    ]
    assert {len(group) for group in groups[:-1]} <= {4}
    assert all(group["scene_id"].num_chunks <= 1 for group in groups)
    assert rows.table()["scene_id"].to_pylist() == [str(n) for n in range(sum(lengths))]


def _numbered(numbers: list[int]) -> pa.Table:
    count = len(numbers)
    return pa.table(
        [
            pa.array([str(n) for n in numbers]) if f.name == "scene_id" else pa.nulls(count, f.type)
            for f in SCHEMA
        ],
        schema=SCHEMA,
    )


def test_bounds_around_several() -> None:
    assert bounds_around([None, None]) is None
    assert bounds_around([[0, 1, 2, 3], None, [-1, 2, 1, 4]]) == [-1, 1, 2, 4]


def test_geojson_of_boxes_around_a_pole() -> None:
    """Their corners may lie on several sides of the antimeridian, and edges may cross."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(-300, 280, (300, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 30, (300, 2))], axis=1)
    for crs in ("EPSG:3995", "EPSG:3031"):
        x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
        lonlat = np.stack(Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y), axis=-1)
        unwrapped = np.rad2deg(np.unwrap(np.deg2rad(lonlat[..., 0]), axis=1))
        rings = np.stack([unwrapped, lonlat[..., 1]], axis=-1)
        for ring in rings:
            found = shapely.from_geojson(_cut(shapely.Polygon(ring)))
            assert -180 <= found.bounds[0] <= found.bounds[2] <= 180


def test_rows_of_an_older_table_get_its_missing_columns() -> None:
    newer = SCHEMA.empty_table().append_column("x", pa.array([], pa.int8()))
    assert with_all_columns(newer.drop_columns(["masked", "near_id"])).schema.equals(SCHEMA)
