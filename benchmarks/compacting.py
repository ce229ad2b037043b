"""`scenesweep compact --pmtiles`: one date of many detections, all simulated.

Scenes lie beside each other, and their detections in clusters, as houses or trees do. For a
comparison, the compacted file is also written with the default level of zstd.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.figures import Figure, at_most, tell
from benchmarks.tables import write_scene
from scenesweep.pipeline.results.compact import FILE_SCHEMA, ROWS_PER_GROUP, compact
from scenesweep.pipeline.results.compact_map import write_map
from scenesweep.pipeline.storage.paths import Output

DAY = "2026-11-20"
SIDE_DEG = 0.1
SECONDS_FOR_10_MILLION = 300


def night(out: Path, scenes: int, detections: int) -> None:
    """Write scenes of 0.1 degrees without gaps, with detections in clusters of about 150 m."""
    rng = np.random.default_rng(0)
    columns = int(np.ceil(np.sqrt(scenes)))
    each = detections // scenes
    for number in range(scenes):
        west = 10 + SIDE_DEG * (number % columns)
        south = 45 + SIDE_DEG * (number // columns)
        middle = rng.uniform(0.05, 0.95, (2, each // 50 + 1))[
            :, rng.integers(0, each // 50 + 1, each)
        ]
        spot = (middle + rng.normal(0, 0.015, (2, each))).clip(0.001, 0.999) * SIDE_DEG
        bounds = np.array([west, south, west + SIDE_DEG, south + SIDE_DEG])
        score = rng.beta(2, 2, each) * 0.7 + 0.3
        write_scene(out, f"scene{number:04d}", DAY, west + spot[0], south + spot[1], score, bounds)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock time and the CPU time of some work, GDAL's threads included."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def rewritten(table: Path, level: int) -> tuple[float, int]:
    """Write a compacted file again, and return the CPU time of writing and the size."""
    cpu, target = 0.0, table.with_name(f"level{level}.parquet")
    with (
        pq.ParquetFile(table) as file,
        pq.ParquetWriter(
            target, FILE_SCHEMA, compression="zstd", compression_level=level, write_page_index=True
        ) as writer,
    ):
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group).cast(FILE_SCHEMA)
            started = time.process_time()
            writer.write_table(rows, row_group_size=ROWS_PER_GROUP)
            cpu += time.process_time() - started
    return cpu, target.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--detections", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        out = Path(folder)
        night(out, arguments.scenes, arguments.detections)
        compacting = timed(lambda: list(compact(out, iou=0.5)))
        mapping = timed(lambda: write_map(out, DAY))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        table, tiles = Output(out).compacted(DAY), Output(out).compacted_map(DAY)
        rows = pq.read_metadata(table).num_rows
        sizes = {path.suffix: path.stat().st_size for path in (table, tiles)}
        slow, quick = rewritten(table, 15), rewritten(table, 1)
    most = SECONDS_FOR_10_MILLION * rows / 1e7
    figures = [
        at_most(f"map of {rows:,} detections", mapping[0], "s", most),
        Figure("CPU time of that", mapping[1], "s"),
        Figure("size of the map for each detection", sizes[".pmtiles"] / rows, "bytes"),
        Figure("compact", compacting[0], "s"),
        Figure("CPU time of that", compacting[1], "s"),
        Figure("size of the table for each detection", sizes[".parquet"] / rows, "bytes"),
        Figure("zstd 15 instead of 1: size", slow[1] / quick[1], "times"),
        Figure("zstd 15 instead of 1: CPU time of writing", slow[0] / quick[0], "times"),
        Figure("peak memory, with writing the simulated tables", peak, "GiB"),
    ]
    tell("compacting", figures, scenes=arguments.scenes, detections=rows)


if __name__ == "__main__":
    main()
