"""Points are located as by a slow loop; files that are no polygons are one line."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from pyproj import Geod

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.geometry.areas import area_km2
from scenesweep.pipeline.results.cells import Cells
from scenesweep.pipeline.results.zones import Zones, read_polygons
from tests.polygons import grid

EARTH_KM2 = 510_065_622


def test_points_are_located_as_by_a_loop() -> None:
    rng = np.random.default_rng(0)
    circles = [shapely.Point(x, y).buffer(1.0) for x, y in rng.uniform(0, 10, (50, 2))]
    zones = Zones.of(np.array(circles, object))
    lon, lat = rng.uniform(0, 10, (2, 400))
    expected = {
        (i, j)
        for i, j in np.ndindex(400, 50)
        if circles[j].intersects(shapely.Point(lon[i], lat[i]))
    }
    point, zone = zones.locate(lon, lat)
    assert set(zip(point.tolist(), zone.tolist(), strict=True)) == expected
    assert len(point) == len(expected) > 400
    inside = {i for i, _ in expected}
    assert set(np.flatnonzero(zones.contain(lon, lat)).tolist()) == inside


def test_areas_are_geodesic() -> None:
    frame = grid((-10.0, 40.0, 25.0, 62.0), 5, 4)
    geod = Geod(ellps="WGS84")
    fine = shapely.segmentize(frame.geometry.to_numpy(), 0.01)  # parallels are no geodesics
    exact = [abs(geod.geometry_area_perimeter(polygon)[0]) / 1e6 for polygon in fine]
    np.testing.assert_allclose(area_km2(frame.geometry.to_numpy()), exact, rtol=1e-6)


@pytest.mark.parametrize("resolution", [0, 1])
def test_h3_cells_tile_the_earth(resolution: int) -> None:
    """Cells at the poles and across the antimeridian are among them."""
    rng = np.random.default_rng(resolution)
    lon, lat = rng.uniform(-180, 180, 50_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 50_000)))
    cells = Cells(resolution)
    point, cell = cells.locate(lon, lat)
    assert point.tolist() == list(range(50_000))
    polygons = cells.polygons()
    assert len(set(cells.names())) == len(cells) == 2 + 120 * 7**resolution
    assert abs(area_km2(polygons).sum() - EARTH_KM2) < 2
    inside = shapely.intersects_xy(polygons[cell], lon, lat)
    assert inside.mean() > 0.97  # edges of cells are great circles, not straight in degrees


def test_observed_cells_are_those_with_their_centre_in_the_ground() -> None:
    cells = Cells(4)
    cells.add_observed(np.array([shapely.box(5, 45, 7, 47)], object))
    centres = shapely.centroid(cells.polygons())
    assert len(cells) > 10
    assert shapely.intersects(shapely.box(4.99, 44.99, 7.01, 47.01), centres).all()


def test_more_cells_than_fit_are_one_line() -> None:
    cells = Cells(15)
    with pytest.raises(UsageError, match=r"^--h3 15: the observed ground has about \d+,.*lower"):
        cells.add_observed(np.array([shapely.box(5, 45, 7, 47)], object))
    assert len(cells) == 0


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".parquet"])
def test_any_vector_file_is_read(tmp_path: Path, suffix: str) -> None:
    frame = grid((5.0, 45.0, 6.0, 46.0), 3, 2)
    path = tmp_path / f"districts{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path)
    found = read_polygons(str(path), "--by")
    assert sorted(found.name) == sorted(frame.name)
    joined = found.set_index("name").geometry.loc[frame.name].to_numpy()
    assert shapely.equals_exact(
        shapely.normalize(joined), shapely.normalize(frame.geometry), 1e-9
    ).all()


def test_projected_polygons_are_reprojected(tmp_path: Path) -> None:
    """A long straight edge of a projection is a curve in degrees."""
    box = gpd.GeoSeries([shapely.box(3e5, 5e6, 7e5, 5.4e6)], crs="EPSG:32632")
    box.to_file(tmp_path / "a.gpkg")
    (polygon,) = read_polygons(str(tmp_path / "a.gpkg"), "--by").geometry
    middle = gpd.GeoSeries([shapely.Point(5e5, 5e6 + 5)], crs="EPSG:32632").to_crs("OGC:CRS84")[0]
    assert polygon.contains(middle)
    below = gpd.GeoSeries([shapely.Point(5e5, 5e6 - 5)], crs="EPSG:32632").to_crs("OGC:CRS84")[0]
    assert not polygon.contains(below)


def test_longitudes_beyond_180_are_turned_back(tmp_path: Path) -> None:
    gpd.GeoSeries([shapely.box(175, 0, 185, 5)], crs="OGC:CRS84").to_file(tmp_path / "a.gpkg")
    zones = Zones.of(read_polygons(str(tmp_path / "a.gpkg"), "--by").geometry.to_numpy())
    inside = zones.contain(np.array([-178.0, 178.0, 0.0]), np.array([1.0, 1.0, 1.0]))
    assert inside.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("geometry", "crs", "said"),
    [
        ([shapely.box(0, 0, 1, 1)], None, "expected polygons with a CRS, found none"),
        ([shapely.Point(0, 0)], "EPSG:4326", "expected polygons, found a Point"),
        ([None], "EPSG:4326", "expected polygons, found none"),
        ([shapely.box(4e5, 5e6, 5e5, 6e6)], "EPSG:4326", "are|do not fit the CRS WGS 84"),
    ],
)
def test_other_files_are_one_line(
    tmp_path: Path, geometry: list[object], crs: str | None, said: str
) -> None:
    frame = gpd.GeoDataFrame({"name": ["a"]}, geometry=geometry, crs=crs)
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=f"^--by {tmp_path}/a.parquet: .*({said})"):
        read_polygons(str(tmp_path / "a.parquet"), "--by")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.gpkg").write_text("no GeoPackage")
    for name in ("a.gpkg", "none.gpkg"):
        with pytest.raises(UsageError, match=f"--by {tmp_path}/{name}: cannot be read"):
            read_polygons(str(tmp_path / name), "--by")
