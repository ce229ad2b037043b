"""`scenesweep count`: 10 million detections in 50,000 polygons, and in H3 cells."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

from benchmarks.figures import Figure, at_most, tell
from benchmarks.tables import write_scene
from scenesweep.jobs import cli

DATE = "2026-11-20"
WEST, SOUTH, SIDE_DEG = 5.0, 45.0, 10.0
SCENES_A_SIDE = 10
VERTICES = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--polygons", type=int, default=50_000)
    parser.add_argument("--h3", type=int, default=7, help="resolution of the H3 cells")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, districts = Path(folder) / "OUT", Path(folder) / "districts.gpkg"
        paint(out, arguments.rows)
        write_districts(districts, arguments.polygons)
        by, to = f"--by={districts}", f"--to={folder}/counts.parquet"
        wall, cpu = timed("count", str(out), by, to)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        h3_wall, h3_cpu = timed("count", str(out), f"--h3={arguments.h3}", to, "--overwrite")
    what = f"{arguments.rows:,} detections"
    figures = [
        at_most(f"{what} in {arguments.polygons:,} polygons", wall, "s", 60),
        Figure("CPU time of that", cpu, "s"),
        at_most("peak memory, with writing the simulated tables", peak, "GiB", 4),
        at_most(f"{what} in H3 cells of resolution {arguments.h3}", h3_wall, "s", 60),
        Figure("CPU time of that", h3_cpu, "s"),
    ]
    tell("count", figures)


def timed(*command: str) -> tuple[float, float]:
    """Run a command and return its wall-clock time and its CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    assert cli.main(command) == 0
    return time.perf_counter() - wall, time.process_time() - cpu


def paint(out: Path, rows: int) -> None:
    """Write a date of scenes that tile a square, with points along no particular order."""
    rng = np.random.default_rng(0)
    side = SIDE_DEG / SCENES_A_SIDE
    each = rows // SCENES_A_SIDE**2
    for number in range(SCENES_A_SIDE**2):
        row, column = divmod(number, SCENES_A_SIDE)
        west, south = WEST + column * side, SOUTH + row * side
        lon, lat = rng.uniform(0.001, side - 0.001, (2, each))
        bounds = np.array([west, south, west + side, south + side])
        score = rng.random(each)
        write_scene(out, f"scene{number:03d}", DATE, west + lon, south + lat, score, bounds)


def write_districts(path: Path, count: int) -> None:
    """Write round polygons that overlap a little and cover the square."""
    side = int(np.ceil(np.sqrt(count)))
    step = SIDE_DEG / side
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    lon, lat = (WEST + (x + 0.5) * step).ravel()[:count], (SOUTH + (y + 0.5) * step).ravel()[:count]
    centres = np.asarray(shapely.points(lon, lat))
    round_ones = shapely.buffer(centres, 0.6 * step, quad_segs=VERTICES // 4)
    names = [f"district {number}" for number in range(count)]
    gpd.GeoDataFrame({"name": names}, geometry=round_ones, crs="EPSG:4326").to_file(path)


if __name__ == "__main__":
    main()
