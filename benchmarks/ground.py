"""What coverage, masks and layers cost: CPU time on painted rasters and simulated polygons."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scipy import ndimage

from benchmarks.figures import Figure, tell
from scenesweep.pipeline.geometry.layers import LayerSettings, join, open_layers
from scenesweep.pipeline.planning.coverage import coverage_of
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.quality import Quality, Rule, masked_shares
from scenesweep.pipeline.scene import Scene

T = TypeVar("T")

_UTM, _WEST, _NORTH = "EPSG:32633", 500_000, 5_000_000
_LON, _LAT = 14.0, 44.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=10_980, help="of the scene, in pixels of 10 m")
    parser.add_argument("--boxes", type=int, default=1_000_000)
    parser.add_argument("--polygons", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = [*ground(Path(folder), arguments.side, arguments.boxes)]
        figures += layers(Path(folder), arguments.polygons)
    tell("ground", figures)


def ground(folder: Path, side: int, boxes: int) -> list[Figure]:
    """Measure the coverage of a scene with its mask, and the masked share of boxes."""
    scene = painted(folder / "scene.tif", side, 10.0, nodata=0)
    quality = Quality(painted(folder / "mask.tif", side // 2, 20.0), Rule((1,), (0,)))
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, side - 30, (boxes, 2))
    drawn = np.hstack([corner, corner + rng.uniform(2, 30, (boxes, 2))])
    outline = footprint(scene)
    plain_s, plain = timed(lambda: coverage_of(scene, outline))
    masked_s, masked = timed(lambda: coverage_of(scene, outline, quality))
    shares_s, _ = timed(lambda: masked_shares(quality, drawn, scene))
    assert plain is not None
    assert masked is not None
    what = f"scene of {side:,} x {side:,} px"
    vertices = len(shapely.get_coordinates(masked.ground))
    return [
        Figure(f"coverage of a {what}", plain_s, "s"),
        Figure("the same with a mask of half the resolution", masked_s, "s"),
        Figure("vertices of that polygon", vertices, ""),
        Figure(f"masked share of {boxes:,} boxes", shares_s, "s"),
    ]


def layers(folder: Path, count: int) -> list[Figure]:
    """Measure the join of 10,000 points of one scene with a layer of many polygons around it."""
    rng = np.random.default_rng(2)
    lon, lat = rng.uniform(-10, 10, (2, count))
    circles = shapely.buffer(shapely.points(_LON + lon, _LAT + lat), 0.002, quad_segs=4)
    path = folder / "layer.gpkg"
    gpd.GeoDataFrame({"id": np.arange(count)}, geometry=circles, crs="EPSG:4326").to_file(path)
    opened_s, opened = timed(
        lambda: open_layers(LayerSettings(exclude=(str(path),), near=f"{path}:500"))
    )
    assert opened is not None
    points = np.array([_LON, _LAT]) + rng.uniform(0, 1, (10_000, 2))
    joined_s, joined = timed(lambda: join(opened, points))
    assert joined.excluded.any()
    return [
        Figure(f"check and hash a GeoPackage of {count:,} polygons", opened_s, "s"),
        Figure("10,000 detections in a square of one degree against it", joined_s, "s"),
    ]


def painted(path: Path, side: int, metres: float, *, nodata: int | None = None) -> Scene:
    """Write patches of ones on zeros, with borders of about the size of clouds."""
    noise = np.random.default_rng(round(metres)).normal(size=(400, 400))
    small = ndimage.gaussian_filter(noise, 6) > 0
    index = np.arange(side) * 400 // side
    pixels: NDArray[np.uint8] = small[np.ix_(index, index)].astype(np.uint8)
    profile = {
        "driver": "GTiff",
        "width": side,
        "height": side,
        "count": 1,
        "dtype": "uint8",
        "crs": _UTM,
        "transform": from_origin(_WEST, _NORTH, metres, metres),
        "tiled": True,
        "compress": "DEFLATE",
        "nodata": nodata,
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels, 1)
    return inspect(str(path))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU time of a call, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()
