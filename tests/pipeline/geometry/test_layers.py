"""Layers say of a detection what slow geodesic arithmetic says; bad layers are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from pyproj import Geod

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.geometry.layers import Layers, LayerSettings, join, open_layers

SUFFIXES = ("gpkg", "fgb", "geojson", "parquet", "shp")


def write(path: Path, geometries: Any, crs: str = "EPSG:4326", **columns: Any) -> str:
    frame = gpd.GeoDataFrame(columns, geometry=list(geometries), crs="OGC:CRS84").to_crs(crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    return str(path)


def layers(**settings: Any) -> Layers:
    opened = open_layers(LayerSettings(**settings))
    assert opened is not None
    return opened


def around(lon: float, lat: float, count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal([lon, lat], 0.02, (count, 2))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_points_in_polygons_are_excluded(tmp_path: Path, suffix: str) -> None:
    circles = shapely.buffer(shapely.points(around(12, 55, 200)), 0.002)
    file = write(tmp_path / f"land.{suffix}", circles, "EPSG:32633", name=range(200))
    points = around(12, 55, 3000, seed=1)
    excluded = join(layers(exclude=(file,)), points).excluded
    union = shapely.union_all(circles)
    clear = shapely.distance(shapely.boundary(union), shapely.points(points)) > 1e-7
    assert 0.1 < excluded.mean() < 0.9
    np.testing.assert_array_equal(excluded[clear], shapely.contains_xy(union, *points[clear].T))


@pytest.mark.parametrize(("lon", "lat"), [(12, 55), (179.995, -17), (0.001, 80), (-75, 0)])
def test_distances_are_geodesic(tmp_path: Path, lon: float, lat: float) -> None:
    known, points = around(lon, lat, 60), around(lon, lat, 300, seed=1)
    wrapped = known - [[360, 0]] * (known[:, :1] > 180)
    names = [f"rig {number:02d}" for number in range(len(known))]
    file = write(tmp_path / "rigs.gpkg", shapely.points(wrapped), id=names)
    points[:, 0] -= 360 * (points[:, 0] > 180)
    joined = join(layers(near=f"{file}:500"), points)
    all_m = np.array(
        [
            Geod(ellps="WGS84").inv(*np.broadcast_to(point, known.shape).T, *wrapped.T)[2]
            for point in points
        ]
    )
    nearest = all_m.min(axis=1)
    near = nearest < 499
    assert near.sum() > 5
    np.testing.assert_allclose(joined.near_m[near], nearest[near], rtol=1e-3, atol=0.02)
    clear = near & (np.sort(all_m, axis=1)[:, 1] > 1.01 * nearest)
    assert [names[i] for i in all_m.argmin(axis=1)[clear]] == joined.near_id[clear].tolist()
    assert np.isnan(joined.near_m[nearest > 501]).all()
    assert set(joined.near_id[nearest > 501].tolist()) <= {""}


def test_a_point_does_not_depend_on_the_others(tmp_path: Path) -> None:
    points = around(12, 55.99, 200, seed=3)
    file = write(tmp_path / "rigs.fgb", shapely.points(around(12, 56, 50)))
    opened = layers(near=file, near_m=900)
    together = join(opened, points)
    alone = [join(opened, point[None]) for point in points]
    np.testing.assert_array_equal(together.near_m, [each.near_m[0] for each in alone])
    assert together.near_id.tolist() == [each.near_id[0] for each in alone]


def test_equal_distances_go_to_the_first_id(tmp_path: Path) -> None:
    file = write(tmp_path / "r.geojson", shapely.points([[1, 1], [1, 1]]), name=["b", "a"])
    assert join(layers(near=file), np.array([[1.0, 1.001]])).near_id.tolist() == ["a"]


def test_inside_a_polygon_the_distance_is_zero(tmp_path: Path) -> None:
    file = write(tmp_path / "p.geojson", [shapely.box(0, 0, 1, 1)], port=["west"])
    joined = join(layers(near=file, near_id="port"), np.array([[0.5, 0.5], [5.0, 5.0]]))
    assert joined.near_m[0] == 0
    assert joined.near_id.tolist() == ["west", ""]


def test_hashes_follow_the_content(tmp_path: Path) -> None:
    file = write(tmp_path / "p.shp", [shapely.box(0, 0, 1, 1)], port=["west"])
    before = layers(exclude=(file,)).hashes()
    assert layers(exclude=(file,)).hashes() == before
    write(tmp_path / "p.shp", [shapely.box(0, 0, 1, 1)], port=["east"])  # only the .dbf differs
    assert layers(exclude=(file,)).hashes() != before


def test_settings_show_names_only(tmp_path: Path) -> None:
    settings = LayerSettings(exclude=(str(tmp_path / "a.gpkg"),), near="/data/b.fgb:25.5")
    assert (settings.near, settings.near_m) == ("/data/b.fgb", 25.5)
    names = settings.names_only()
    assert (names.exclude, names.near, names.near_m) == (("a.gpkg",), "b.fgb", 25.5)
    assert open_layers(LayerSettings()) is None


def test_bad_layers_are_one_line(tmp_path: Path) -> None:
    points = write(tmp_path / "points.gpkg", shapely.points([[1, 1]]), a=[1])
    text = tmp_path / "text.gpkg"
    text.write_text("x")
    table = tmp_path / "table.parquet"
    gpd.pd.DataFrame({"a": [1]}).to_parquet(table)
    for settings, reason in (
        ({"exclude": (points,)}, "layers.exclude .*points.gpkg: expected polygons, found Point"),
        ({"near": str(text)}, "layers.near .*text.gpkg: cannot be read"),
        ({"near": str(tmp_path / "no.gpkg")}, "cannot be read"),
        ({"near": str(table)}, "no GeoParquet"),
        ({"near": points, "near_id": "b"}, r"expected a column b \(layers.near_id\), found a"),
    ):
        with pytest.raises(UsageError, match=reason) as error:
            layers(**settings)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="which is not set"):
        LayerSettings(near_id="a")
