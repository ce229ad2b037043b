"""The area of interest: where to look, as the user draws it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Geometry

from pipeline.errors import NoGeoreference, UsageError
from pipeline.georef import LONLAT, from_lonlat, to_pixels
from pipeline.scene import Scene

_SEGMENT_DEG = 0.01  # long edges bend between frames; a vertex about every kilometre follows them


def read_area(path: Path) -> Geometry:
    """Read polygons from any vector file and return their union in longitude and latitude.

    Raises:
        UsageError: when it cannot be read or holds no polygon.
    """
    if re.match(r"[a-z0-9]+:/", str(path)):  # a path has made one slash of two
        raise UsageError(f"--aoi {path}: expected a vector file on this machine, got an address")
    import geopandas as gpd  # slow to import, and few runs have an area
    from pyogrio.errors import DataSourceError

    try:
        frame = gpd.read_file(path)
    except (DataSourceError, OSError) as error:
        raise UsageError(f"--aoi {path}: cannot be read: {' '.join(str(error).split())}") from error
    if frame.crs is None:
        raise UsageError(f"--aoi {path}: expected polygons with a CRS, found none")
    union = frame.to_crs(LONLAT).union_all()
    if shapely.area(union) == 0:
        raise UsageError(f"--aoi {path}: expected polygons, found no area")
    return union


def area_in_scene(area: Geometry, scene: Scene) -> Geometry:
    """Return the area in scene pixels.

    Raises:
        NoGeoreference: when the scene has none.
    """
    crs, transform = scene.crs, scene.transform
    if crs is None or transform is None:
        raise NoGeoreference(f"{scene.href}: an area of interest needs a georeferenced scene")

    def to_scene_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return to_pixels(from_lonlat(points, crs), transform)

    dense = shapely.segmentize(area, _SEGMENT_DEG)
    return shapely.make_valid(shapely.transform(dense, to_scene_pixels))
