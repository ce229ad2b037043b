"""Vector files of polygons for tests."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely


def write_world(path: Path) -> Path:
    """Write one polygon in degrees that contains everything."""
    frame = gpd.GeoDataFrame({"name": ["world"]}, geometry=[shapely.box(-180, -90, 180, 90)])
    frame.set_crs("EPSG:4326").to_file(path)
    return path


def grid(bounds: tuple[float, float, float, float], columns: int, rows: int) -> gpd.GeoDataFrame:
    """Return rectangles in degrees that tile some bounds, with a `name` each."""
    west, south, east, north = bounds
    x, y = np.linspace(west, east, columns + 1), np.linspace(south, north, rows + 1)
    boxes = [
        shapely.box(x[i], y[j], x[i + 1], y[j + 1]) for j in range(rows) for i in range(columns)
    ]
    names = [f"block {number}" for number in range(len(boxes))]
    return gpd.GeoDataFrame({"name": names}, geometry=boxes, crs="OGC:CRS84")
