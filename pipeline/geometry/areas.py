"""Areas of polygons on the ground."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from scenesweep.pipeline.geometry.georef import LONLAT

_EQUAL_AREA = "+proj=cea +ellps=WGS84"
_SEGMENT_DEG = 0.05  # a straight edge is a curve in another CRS


def area_km2(polygons: NDArray[np.object_]) -> NDArray[np.float64]:
    """Return the areas of polygons in degrees on the WGS 84 ellipsoid.

    They are projected to the cylindrical equal-area projection (Snyder 1987, "Map projections: a
    working manual", chapter 10).
    """
    to_equal_area = Transformer.from_crs(LONLAT, _EQUAL_AREA, always_xy=True)

    def project(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(to_equal_area.transform(*points.T), axis=-1)

    areas: NDArray[np.float64] = shapely.area(
        shapely.transform(shapely.segmentize(polygons, _SEGMENT_DEG), project)
    )
    return areas / 1e6
