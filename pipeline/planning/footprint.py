"""A scene's outline in longitude and latitude, in the form that GeoJSON requires."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from shapely import MultiPolygon, Polygon

from scenesweep.pipeline.geometry.georef import on_earth, point_on_earth, to_lonlat, to_map
from scenesweep.pipeline.scene import Scene

_SIDE_POINTS = 16  # a straight side is a curve in degrees
_FINER, _HALVINGS = 4, 40
DECIMALS = 7  # of a degree: one centimetre


def footprint(scene: Scene) -> Polygon | MultiPolygon | None:
    """Return the outline of a raster in OGC:CRS84, split where it crosses the antimeridian.

    If a raster extends off the Earth, it is the outline of the part on the Earth. It is None when
    the scene has no georeference, or its CRS cannot place the outline.
    """
    ring = _outline(scene)
    if ring is None:
        return None
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)
    if abs(ring[-1, 0] - ring[0, 0]) > 180:
        ring = over_the_pole(ring)
    ring[-1] = ring[0]  # rounding may have left a gap, and GEOS then returns the outside
    outline = in_first_turn(Polygon(ring))
    parts = [part for part in shapely.get_parts(outline) if isinstance(part, Polygon)]
    parts = [shapely.orient_polygons(part) for part in parts]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def in_first_turn(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return a geometry with longitudes of -180 to 180, split at the antimeridian."""
    west, _, east, _ = shapely.bounds(geometry)
    turns = range(math.floor((west + 180) / 360), math.ceil((east + 180) / 360))
    return shapely.union_all([_in_turn(geometry, turn) for turn in turns])


def encloses_pole(scene: Scene) -> bool:
    """Return whether the outline of a raster runs once round the globe."""
    ring = _outline(scene)
    if ring is None:
        return False
    east = np.unwrap(ring[:, 0], period=360)
    return bool(abs(east[-1] - east[0]) > 180)


def bounding_box(outline: Polygon | MultiPolygon) -> list[float]:
    """Return west, south, east, north; west > east across the antimeridian (RFC 7946)."""
    west, south, east, north = outline.bounds
    if isinstance(outline, MultiPolygon) and (west, east) == (-180, 180):
        bounds = shapely.bounds(shapely.get_parts(outline))
        starts, ends = bounds[bounds[:, 0] > -180, 0], bounds[bounds[:, 2] < 180, 2]
        if len(starts) and len(ends):
            west, east = starts.min(), ends.max()
    return [float(west), float(south), float(east), float(north)]


def over_the_pole(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Close a ring that runs once round the globe through the pole that it encloses."""
    pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
    over = [[ring[-1, 0], pole], [ring[0, 0], pole], ring[0]]
    return np.concatenate([ring, over])


def moved_to_earth(points: NDArray[np.float64], scene: Scene) -> NDArray[np.float64]:
    """Move points (N, 2) that are off the Earth towards the middle, to the edge of the Earth."""
    assert scene.crs is not None
    assert scene.transform is not None
    middle = point_on_earth((scene.width, scene.height), scene.crs, scene.transform)
    if middle is None:
        return points
    off = ~on_earth(points, scene.crs, scene.transform)
    near, far = np.broadcast_to(middle, points[off].shape), points[off]
    for _ in range(_HALVINGS):
        half = (near + far) / 2
        inside = on_earth(half, scene.crs, scene.transform)[:, None]
        near, far = np.where(inside, half, near), np.where(inside, far, half)
    points[off] = near
    return points


def _in_turn(geometry: shapely.Geometry, turn: int) -> shapely.Geometry:
    """Return the part of a geometry within one turn of 360 degrees, shifted to -180 to 180."""
    east = 360 * turn
    part = shapely.intersection(geometry, shapely.box(east - 180, -90, east + 180, 90))
    return shapely.transform(part, lambda points: points - [east, 0])


def _outline(scene: Scene) -> NDArray[np.float64] | None:
    """Return the closed ring (N, 2) of a raster's edge in degrees, from the top left."""
    if scene.crs is None or scene.transform is None:
        return None
    count = _SIDE_POINTS * (_FINER if scene.off_earth else 1)  # the edge of the Earth is round
    along = np.linspace(0, 1, count, endpoint=False)[:, None]
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * [scene.width, scene.height]
    sides = [a + along * (b - a) for a, b in pairwise(corners)]
    points = np.concatenate([*sides, corners[:1]])
    if scene.off_earth:
        points = moved_to_earth(points, scene)
    try:
        ring = to_lonlat(to_map(points, scene.transform), scene.crs)
    except ProjError:
        return None
    return ring.round(DECIMALS) if np.isfinite(ring).all() else None
