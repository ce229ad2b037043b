"""The ground that was observed on a date, as polygons that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from scenesweep.pipeline.geometry.areas import area_km2
from scenesweep.pipeline.geometry.georef import to_lonlat, to_map
from scenesweep.pipeline.planning.footprint import in_first_turn
from scenesweep.pipeline.publish.coverage import read_ground
from scenesweep.pipeline.results.tables import SceneTable
from scenesweep.pipeline.results.unique import DateScenes
from scenesweep.pipeline.results.zones import Polygons, Zones
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output

_SIDE_POINTS = 16  # a straight side is a curve in degrees


@dataclass(frozen=True, slots=True)
class Observed:
    """The ground that was observed on a date: polygons in OGC:CRS84 that do not overlap.

    `without` is the number of scenes without a coverage file.
    """

    parts: Polygons
    without: int = 0


def observed_ground(night: DateScenes, out: Location, *, estimate: bool) -> Observed:
    """Return the union of the coverage files of a date.

    With `estimate`, a scene without such a file counts with its whole outline, or with its part
    inside the area of interest. Without `estimate` it is left out.

    Raises:
        UnreadableOutput: when a coverage file cannot be read.
    """
    output, polygons, without = Output(out), [], 0
    for scene in night.scenes:
        path = output.coverage(scene.image.scene_id, night.date)
        if path.is_file():
            polygons += [*read_ground(path)]
            continue
        without += 1
        if estimate:
            polygons += [*_outline(scene)]
    return Observed(disjoint(polygons), without)


def disjoint(polygons: Sequence[shapely.Geometry]) -> Polygons:
    """Return the parts of the union of polygons, in the order of their bounds."""
    union = shapely.union_all(np.array(list(polygons), object)) if polygons else None
    parts = shapely.get_parts(union) if union is not None else np.zeros(0, object)
    parts = shapely.normalize(parts[shapely.area(parts) > 0])
    order = np.lexsort(shapely.bounds(parts).reshape(-1, 4).T)
    return np.asarray(parts[order], object)


def observed_km2(zones: Zones, ground: Polygons) -> NDArray[np.float64]:
    """Return how much of each polygon was observed; `ground` does not overlap itself."""
    areas = np.zeros(len(zones))
    part, zone = zones.tree.query(ground, predicate="intersects")
    shared = shapely.intersection(ground[part], zones.polygons[zone])
    np.add.at(areas, zone, area_km2(shared))
    return areas


def _outline(scene: SceneTable) -> list[shapely.Geometry]:
    """Return the outline of a scene from the record in its table; empty if that has none."""
    area, source = scene.provenance.area, scene.provenance.source
    if area is not None and area.geometry is not None:
        return [shapely.make_valid(area.geometry)]
    if source.transform is None or source.crs is None:
        return []
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * np.array(source.size)
    ring = shapely.segmentize(shapely.LineString(corners), max(source.size) / _SIDE_POINTS)
    points = to_map(shapely.get_coordinates(ring), Affine(*source.transform))
    lonlat = to_lonlat(points, CRS.from_user_input(source.crs).to_wkt())
    if not np.isfinite(lonlat).all():
        return []
    lonlat[:, 0] = np.unwrap(lonlat[:, 0], period=360)
    lonlat[-1] = lonlat[0]  # rounding may have left a gap, and GEOS then returns the outside
    return [in_first_turn(shapely.make_valid(shapely.Polygon(lonlat)))]
