"""`scenesweep track`: a simulated harbour, and 10 million sightings.

The harbour has moored ships at berths, ships that arrive and leave again, errors of position,
missed ships and clouds. All of it is simulated.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_least, at_most, tell
from benchmarks.tables import write_coverage, write_scene
from scenesweep.jobs import cli
from scenesweep.pipeline.storage.paths import Output

FIRST = date(2026, 11, 1)
WEST, SOUTH, SIDE_DEG = 4.0, 52.0, 0.06
DEG_PER_M = 1 / 111_320
BERTH_M, JITTER_M, WITHIN_M = 60.0, 3.0, 20.0
MISSES, CLOUDED = 0.1, 0.2
LOOKS = 2
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Harbour:
    """Ships as detected: of each detection its date, ship, position and whether it is moored."""

    day: NDArray[np.int64]
    ship: NDArray[np.int64]
    lon: Floats
    lat: Floats
    moored: int
    clouds: list[shapely.Polygon]


def harbour(nights: int = 30, *, moored: int = 200, traffic: int = 50, seed: int = 0) -> Harbour:
    """Simulate a harbour. Ships 0 to `moored` stay; each night, `traffic` others are replaced.

    Positions have errors of `JITTER_M` along both axes (standard deviation), a tenth of the
    ships is missed, and a cloud covers a fifth of the harbour.
    """
    rng = np.random.default_rng(seed)
    berths = _berths(rng)
    days, ships, spots, clouds = [], [], [], []
    for night in range(nights):
        arrived = moored + night * traffic + np.arange(traffic)
        ship = np.concatenate([np.arange(moored), arrived])
        spot = np.concatenate([berths[:moored], _free(berths, moored, traffic, rng)])
        left = rng.uniform(0, (1 - CLOUDED) * SIDE_DEG)
        cloud = shapely.box(WEST + left, SOUTH, WEST + left + CLOUDED * SIDE_DEG, SOUTH + SIDE_DEG)
        clear = ~shapely.intersects_xy(cloud, spot[:, 0], spot[:, 1])
        seen = np.flatnonzero(clear & (rng.random(len(ship)) >= MISSES))
        days.append(np.full(len(seen), night))
        ships.append(ship[seen])
        wide = np.cos(np.radians(SOUTH))
        spots.append(spot[seen] + rng.normal(0, JITTER_M * DEG_PER_M, (len(seen), 2)) / [wide, 1])
        clouds.append(cloud)
    lon, lat = np.concatenate(spots).T
    return Harbour(np.concatenate(days), np.concatenate(ships), lon, lat, moored, clouds)


def _berths(rng: np.random.Generator) -> Floats:
    """Return berths in random order, on a grid so that neighbours are `BERTH_M` apart."""
    step = np.array([BERTH_M / np.cos(np.radians(SOUTH)), BERTH_M]) * DEG_PER_M
    x, y = np.meshgrid(np.arange(0.001, SIDE_DEG, step[0]), np.arange(0.001, SIDE_DEG, step[1]))
    return rng.permutation(np.stack([WEST + x.ravel(), SOUTH + y.ravel()], axis=1))


def _free(berths: Floats, moored: int, count: int, rng: np.random.Generator) -> Floats:
    return berths[moored + rng.choice(len(berths) - moored, count, replace=False)]


def publish(out: Path, ships: Harbour) -> dict[str, int]:
    """Write a harbour as scenes with coverage; return the ship of each detection."""
    bounds = np.array([WEST, SOUTH, WEST + SIDE_DEG, SOUTH + SIDE_DEG])
    whole = shapely.box(*bounds)
    names: dict[str, int] = {}
    for night, cloud in enumerate(ships.clouds):
        here = ships.day == night
        day = (FIRST + timedelta(days=night)).isoformat()
        score = np.full(int(here.sum()), 0.8)
        scene = f"harbour{night:03d}"
        path = write_scene(out, scene, day, ships.lon[here], ships.lat[here], score, bounds)
        write_coverage(out, scene, day, shapely.difference(whole, cloud))
        ids = pq.read_table(path, columns=["detection_id"], partitioning=None)["detection_id"]
        names |= dict(zip(ids.to_pylist(), ships.ship[here].tolist(), strict=True))
    return names


@dataclass(frozen=True, slots=True)
class Quality:
    """The shares of moored ships that keep one id, and of new objects that are not new."""

    one_id: float
    false_new: float
    found_new: float


def quality(out: Path, names: dict[str, int], moored: int) -> Quality:
    """Compare the tracks with the ships. Of a new object, its first detection says the ship.

    An object is new if it is confirmed and its place was observed on two dates before, as for
    `query --new-since`. It is wrong if its ship is moored, or was seen before.
    """
    output, objects_of = Output(out), dict[int, set[str]]()
    for path in output.sightings_tables():
        table = pq.read_table(path, columns=["detection_id", "object_id"], partitioning=None)
        for detection, found in zip(*(column.to_pylist() for column in table), strict=True):
            objects_of.setdefault(names[detection], set()).add(found)
    objects = pq.read_table(output.tracked_objects).to_pandas()
    new = objects[(objects.observed_before >= LOOKS) & objects.confirmed]
    ships = new.object_id.map(names)
    wrong = (ships < moored) | ships.duplicated()
    kept = [len(objects_of[ship]) == 1 for ship in range(moored)]
    seen = {ship for ship in objects_of if ship >= moored}
    return Quality(
        float(np.mean(kept)), float(wrong.mean()), float(len({*ships} & seen) / len(seen))
    )


def crowd(out: Path, nights: int, each: int) -> None:
    """Write nights of one crowd with errors of position and misses, a tenth of it replaced."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(each / (1 - MISSES))))
    step = 40 * DEG_PER_M
    x, y = np.meshgrid(np.arange(side) * step, np.arange(side) * step)
    lon, lat = 10 + x.ravel(), y.ravel()
    bounds = np.array([9.9, -0.1, 10.1 + side * step, 0.1 + side * step])
    there = rng.random(len(lon)) < 0.9
    for night in range(nights):
        change = rng.random(len(lon)) < 0.1
        there[change] = rng.random(int(change.sum())) < 0.9
        seen = np.flatnonzero(there & (rng.random(len(lon)) >= MISSES))
        error = rng.normal(0, JITTER_M * DEG_PER_M, (2, len(seen)))
        day = (FIRST + timedelta(days=night)).isoformat()
        score = rng.uniform(0.3, 1, len(seen))
        scene = f"crowd{night:03d}"
        write_scene(out, scene, day, lon[seen] + error[0], lat[seen] + error[1], score, bounds)


def timed(out: Path, *options: str) -> tuple[float, float]:
    """Track an output and return the wall-clock time and the CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    assert cli.main(["track", str(out), *options]) == 0
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--sightings", type=int, default=10_000_000)
    parser.add_argument("--seeds", type=int, default=5, help="number of simulated harbours")
    arguments = parser.parse_args()
    results = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            ships = harbour(seed=seed)
            names = publish(Path(folder), ships)
            timed(Path(folder), f"--within={WITHIN_M}")
            results.append(quality(Path(folder), names, ships.moored))
    with tempfile.TemporaryDirectory() as folder:
        crowd(Path(folder), arguments.nights, arguments.sightings // arguments.nights)
        count = sum(pq.read_metadata(path).num_rows for path in Output(Path(folder)).tables())
        wall, cpu = timed(Path(folder), "--within=15")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = [
        at_least("moored ships that keep one id", min(r.one_id for r in results), "", 0.95),
        at_most("false among new objects", max(r.false_new for r in results), "", 0.02),
        Figure("arrivals found as new", min(r.found_new for r in results), ""),
        at_most(f"{count:,} sightings of {arguments.nights} nights", wall, "s", 300),
        Figure("CPU time of that", cpu, "s"),
        at_most("peak memory, with writing the simulated tables", peak, "GiB", 4),
    ]
    tell("track", figures, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
