"""The area of interest: the polygons inside which a run looks.

An area is in longitude and latitude (OGC:CRS84). A run looks at a scene where its footprint and the
area overlap, and publishes a detection when its centre lies there.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Geometry, MultiPolygon, Polygon
from shapely.geometry import mapping

from scenesweep.pipeline.errors import NoGeoreference, SceneError, UsageError
from scenesweep.pipeline.geometry.georef import LONLAT, from_lonlat, to_pixels
from scenesweep.pipeline.planning.footprint import footprint, in_first_turn
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.storage.remote import address_of, local_file, shown

_SEGMENT_DEG = 0.01  # a straight edge is a curve in another CRS: add a vertex about every kilometre
_NEAR_DEG = 0.1  # parts farther from the scene are left out: its CRS may not place them
_LOST_SHARE = 1e-6  # of an area; a smaller loss is rounding
_DECIMALS_PX = 1


def read_area(path: Path) -> Geometry:
    """Read polygons from any vector file and return their union in longitude and latitude.

    A remote file is copied first.

    Raises:
        UsageError: when it cannot be read, has no polygon, or has a geographic CRS and
            coordinates that are not degrees.
    """
    if not address_of(path) and re.match(r"[a-z0-9]+:/", str(path)):
        raise UsageError(
            f"--aoi {path}: expected a vector file, or its https, s3, gs or az address"
        )
    import geopandas as gpd  # slow to import, and few runs have an area

    file, name = local_file(path), f"--aoi {shown(path)}"
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        # QGIS keeps styles in a second layer of a GeoPackage; GeoPandas warns about a choice.
        frame = gpd.read_file(file, layer=0)
    except (DataLayerError, DataSourceError, OSError) as error:
        raise UsageError(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(frame, gpd.GeoDataFrame) or frame.crs is None:
        raise UsageError(f"{name}: expected polygons with a CRS, found none")
    if frame.crs.is_geographic:
        _check_degrees(frame.geometry.to_numpy(), name)
    lonlat = frame.to_crs(LONLAT).geometry.to_numpy()
    if not np.isfinite(shapely.get_coordinates(lonlat)).all():
        raise UsageError(f"{name}: its coordinates lie outside the reach of its CRS")
    return checked_area(lonlat, name)


def checked_area(geometries: Geometry | NDArray[np.object_], name: str) -> Geometry:
    """Return the union of geometries in degrees, made valid; `name` is for messages.

    Raises:
        UsageError: when they are not polygons, or not in degrees.
    """
    _check_degrees(geometries, name)
    union = shapely.union_all(shapely.make_valid(geometries))
    if shapely.area(union) == 0:
        raise UsageError(f"{name}: expected polygons, found no area")
    return in_first_turn(union)


def area_sha256(area: Geometry) -> str:
    """Return the SHA-256 of the normalized WKB of an area."""
    return hashlib.sha256(shapely.to_wkb(shapely.normalize(area))).hexdigest()


@dataclass(frozen=True, slots=True)
class LookedAt:
    """The part of a scene inside the area of interest.

    `geometry` is in OGC:CRS84, or None if the scene's outline cannot be placed. `outline_px` are
    the same polygons in scene pixels. `sha256` is that of the whole area of interest.
    """

    geometry: Polygon | MultiPolygon | None
    outline_px: Polygon | MultiPolygon
    sha256: str

    def to_json(self) -> dict[str, object]:
        """Return JSON-able values; `rings_px` are the rings of `outline_px`."""
        rings = [
            shapely.get_coordinates(ring).round(_DECIMALS_PX).tolist()
            for polygon in shapely.get_parts(shapely.simplify(self.outline_px, 0.5))
            for ring in (polygon.exterior, *polygon.interiors)
        ]
        geometry = None if self.geometry is None else mapping(self.geometry)
        return {"sha256": self.sha256, "geometry": geometry, "rings_px": rings}


def looked_at(scene: Scene, area: Geometry | None, area_px: Geometry | None) -> LookedAt | None:
    """Return the part of a scene inside the area; None without an area, for the whole scene."""
    if area is None or area_px is None:
        return None
    outline, geometry = footprint(scene), None
    if outline is not None:
        geometry = polygons_of(shapely.intersection(shapely.make_valid(outline), area))
    inside = polygons_of(shapely.intersection(area_px, _frame(scene)))
    known = geometry is not None and not geometry.is_empty
    return LookedAt(geometry if known else None, inside, area_sha256(area))


def meets(scene: Scene, area_px: Geometry | None) -> bool:
    """Return whether a part of a scene lies in the area of interest."""
    return area_px is None or bool(shapely.area(shapely.intersection(area_px, _frame(scene))) > 0)


def is_narrower(now: Geometry, before: Geometry) -> bool:
    """Return whether a part of `before` lies outside `now`; both are in degrees."""
    lost = shapely.area(shapely.difference(shapely.make_valid(before), now))
    return bool(lost > _LOST_SHARE * shapely.area(before))


def area_in_scene(area: Geometry, scene: Scene) -> Geometry:
    """Return the area in scene pixels, without parts that are far from the scene.

    Raises:
        NoGeoreference: when the scene has none.
        SceneError: when the scene's CRS cannot place the area.
    """
    crs, transform = scene.crs, scene.transform
    if crs is None or transform is None:
        raise NoGeoreference(f"{scene.href}: an area of interest needs a georeferenced scene")

    def to_scene_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return to_pixels(from_lonlat(points, crs), transform)

    outline = footprint(scene)
    if outline is not None:
        west, south, east, north = shapely.bounds(shapely.get_parts(outline)).T
        near = [west - _NEAR_DEG, south - _NEAR_DEG, east + _NEAR_DEG, north + _NEAR_DEG]
        area = shapely.intersection(area, shapely.union_all(shapely.box(*near)))
    area_px = shapely.transform(shapely.segmentize(area, _SEGMENT_DEG), to_scene_pixels)
    if not np.isfinite(shapely.get_coordinates(area_px)).all():
        raise SceneError(f"{scene.href}: its CRS cannot place the area of interest")
    return shapely.make_valid(area_px)


def _check_degrees(geometries: Geometry | NDArray[np.object_], name: str) -> None:
    points = shapely.get_coordinates(geometries)
    wrong = ~((np.abs(points) <= [360, 90]).all(axis=1))  # NaN and infinity are wrong too
    if wrong.any():
        x, y = points[wrong][0]
        raise UsageError(
            f"{name}: coordinates such as {x:.10g}, {y:.10g} are not degrees; GeoJSON is always "
            "longitude, latitude (reproject to EPSG:4326)"
        )


def _frame(scene: Scene) -> Polygon:
    return shapely.box(0, 0, scene.width, scene.height)


def polygons_of(geometry: Geometry) -> Polygon | MultiPolygon:
    """Return the polygons of a geometry, without the lines and points of mere contact."""
    parts = [part for part in shapely.get_parts(geometry) if isinstance(part, Polygon)]
    oriented = [shapely.orient_polygons(part) for part in parts]
    return oriented[0] if len(oriented) == 1 else MultiPolygon(oriented)


def area_report(area: Geometry) -> dict[str, object]:
    """Return an area of interest in the form of the run report."""
    return {
        "sha256": area_sha256(area),
        "bbox": shapely.bounds(area).tolist(),
        "geometry": json.loads(shapely.to_geojson(area)),
    }


def meets_nothing(area: Geometry, scenes: int) -> str:
    """Return the message for an area of interest that meets none of the scenes of a run."""
    west, south, east, north = shapely.bounds(area)
    of = "the scene" if scenes == 1 else f"any of the {scenes} scenes"
    return (
        f"the area of interest (longitude {west:.6g} to {east:.6g}, latitude {south:.6g} to "
        f"{north:.6g}) does not meet {of}; in GeoJSON, longitude comes first"
    )
