"""Polygons that detections are counted in or selected by, with an index for points.

Polygons are in longitude and latitude (OGC:CRS84). A point on the common border of two polygons
lies in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.geometry.georef import LONLAT
from scenesweep.pipeline.planning.footprint import in_first_turn
from scenesweep.pipeline.storage.remote import local_file, shown

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pyproj import CRS

Numbers = NDArray[np.int64]
Polygons = NDArray[np.object_]

_SEGMENT_M = 1_000.0  # a straight edge is a curve in another CRS


@dataclass(frozen=True, slots=True)
class Zones:
    """Polygons (N,) in degrees and a tree of their bounds."""

    polygons: Polygons
    tree: shapely.STRtree

    @classmethod
    def of(cls, polygons: Polygons) -> Zones:
        """Index polygons, each with longitudes of -180 to 180."""
        shapely.prepare(polygons)
        return cls(polygons, shapely.STRtree(polygons))

    def __len__(self) -> int:
        return len(self.polygons)

    def locate(self, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> tuple[Numbers, Numbers]:
        """Return pairs of a point's number and the number of a polygon that contains it.

        Pairs are ordered by polygon, then by point. GEOS tests points against one polygon fastest
        when they follow each other.
        """
        point, zone = self.tree.query(shapely.points(lon, lat))
        order = np.lexsort((point, zone))
        point, zone = point[order], zone[order]
        inside = shapely.intersects_xy(self.polygons[zone], lon[point], lat[point])
        return point[inside], zone[inside]

    def contain(self, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points lie in at least one polygon."""
        found = np.zeros(len(lon), np.bool_)
        found[self.locate(lon, lat)[0]] = True
        return found

    def bounds(self) -> tuple[float, float, float, float]:
        """Return west, south, east, north of all polygons."""
        west, south, east, north = shapely.total_bounds(self.polygons).tolist()
        return west, south, east, north


def read_polygons(file: str, option: str) -> GeoDataFrame:
    """Read the polygons of any vector file, in OGC:CRS84, with the file's other columns.

    `file` is a path or an address, whose file is copied first.
    `option` is for messages. Rows without a geometry are left out.

    Raises:
        UsageError: when it cannot be read, has no CRS, has a geometry that is no polygon or no
            polygon at all, or has coordinates that its CRS cannot have.
    """
    import geopandas as gpd  # slow to import
    from pyogrio.errors import DataLayerError, DataSourceError

    name, path = f"{option} {shown(file)}", local_file(file)
    try:
        if path.suffix.lower() in (".parquet", ".geoparquet"):  # many GDAL builds cannot open it
            frame = gpd.read_parquet(path)
        else:
            frame = gpd.read_file(path, layer=0)  # a GeoPackage may have its styles in a second one
    except (DataLayerError, DataSourceError, OSError, ValueError) as error:
        raise UsageError(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(frame, gpd.GeoDataFrame) or frame.crs is None:
        raise UsageError(f"{name}: expected polygons with a CRS, found none")
    frame = _plain(frame)
    frame = frame[frame.geometry.notna() & ~frame.geometry.is_empty].reset_index(drop=True)
    kinds = sorted(set(frame.geom_type) - {"Polygon", "MultiPolygon"})
    if kinds or not len(frame):
        found = f"a {kinds[0]}" if kinds else "none"
        raise UsageError(f"{name}: expected polygons, found {found}")
    return frame.set_geometry(gpd.GeoSeries(_in_lonlat(frame, name), crs=LONLAT))


def _plain(frame: GeoDataFrame) -> GeoDataFrame:
    """Call the geometry `geometry`, and drop GeoParquet's `bbox`, which is not the user's."""
    if frame.geometry.name != "geometry":
        frame = frame.drop(columns="geometry", errors="ignore").rename_geometry("geometry")
    structs = [
        name for name in frame if frame[name].map(lambda value: isinstance(value, dict)).any()
    ]
    return frame.drop(columns=structs)


def _in_lonlat(frame: GeoDataFrame, name: str) -> Polygons:
    fine = shapely.segmentize(frame.geometry.to_numpy(), _segment(frame.crs))
    lonlat = frame.set_geometry(fine, crs=frame.crs).to_crs(LONLAT).geometry.to_numpy()
    points = shapely.get_coordinates(lonlat)
    wrong = ~(np.abs(points) <= [360, 90]).all(axis=1)
    if wrong.any():
        x, y = shapely.get_coordinates(frame.geometry.to_numpy())[0]
        raise UsageError(
            f"{name}: coordinates such as {x:.10g}, {y:.10g} do not fit the CRS {frame.crs.name}; "
            "in GeoJSON, they must be longitude, latitude (reproject to EPSG:4326)"
        )
    lonlat = shapely.make_valid(lonlat)
    west, _, east, _ = shapely.bounds(lonlat).T
    for number in np.flatnonzero((west < -180) | (east > 180)):
        lonlat[number] = in_first_turn(lonlat[number])
    return lonlat


def _segment(crs: CRS) -> float:
    """Return the longest edge that stays straight enough, in units of the CRS."""
    if crs.is_geographic:
        return 360.0  # in degrees already
    return _SEGMENT_M / crs.axis_info[0].unit_conversion_factor
