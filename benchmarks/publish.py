"""S4: core-seconds that publishing takes for a megapixel, at 800 detections each, part by part.

The scene is a painted suburb with four bands, without overviews. Its parts hold random boxes, a
quarter of them reported by two windows. All figures are processor time of one process. The time
of 10 gigapixels on 8 cores is computed from the measured pieces, not measured: the pieces of a
round run on the core that is free first.
"""

from __future__ import annotations

import argparse
import heapq
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import rasterio
from rasterio.transform import from_origin

from benchmarks.figures import Figure, at_most, tell
from scenesweep.jobs.demo import BANDS, CRS
from scenesweep.jobs.suburb import paint_suburb
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.detection.detect import Candidates, ShardDetections
from scenesweep.pipeline.detection.parts import read_parts, work_folder, write_part
from scenesweep.pipeline.planning.plan import Job, Plan, plan_scene
from scenesweep.pipeline.publish.formats import FORMATS
from scenesweep.pipeline.publish.manifest import sha256
from scenesweep.pipeline.publish.pieces import make_piece, publish_scene, rounds_of
from scenesweep.pipeline.publish.publish import merged, origin_of, write_file
from scenesweep.pipeline.publish.rows import Rows
from scenesweep.pipeline.publish.table import detection_table
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import load_settings
from scenesweep.pipeline.storage.paths import TABLES

MODEL, SUBURB_PX, ORIGIN_M = "naip-trees", 1024, (430_000.0, 3_775_000.0)
PER_MPX, TWICE, SIDES_PX, SHIFT_PX = 830, 0.25, (6, 16), 1.0
"""Objects in a megapixel (the merge takes some random overlaps for one), the share of them that
two windows report, their sides, and how far apart the two reports are."""
TARGET, TARGET_S = 0.03, 60.0
GIGA, CORES = 10_000, 8
PIECES = {"picture": 16, "strip": 28, "seams": 1, "rows": 32, f"file-{TABLES}": 1}
"""The pieces that a scene of 10 gigapixels has of each kind, with this model."""
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=16_384, help="pixels along a side")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small = write_scene(Path(folder) / "small.tif", SUBURB_PX)
        at_once(small, Path(folder) / "small")  # imports, and GDAL's drivers
        scene = write_scene(Path(folder) / "scene.tif", arguments.side)
        figures = [*at_once(scene, Path(folder)), *in_pieces(scene, Path(folder))]
    tell("publish", figures, side=arguments.side, load=os.getloadavg()[0])


def at_once(scene: Path, folder: Path) -> list[Figure]:
    """Measure each part of publishing, and the whole with all defaults."""
    plan, job = staged(scene, folder / "once", "engine.pieces_from_windows=1000000")
    mpx = plan.scene.megapixels
    figures: list[Figure] = []

    def measure(what: str, work: Callable[[], T]) -> T:
        seconds, value = timed(work)
        figures.append(Figure(what, seconds / mpx, "s/Mpx"))
        return value

    parts_in = work_folder(job.out, plan.scene.id, plan.stage_id)
    parts = measure("read parts", lambda: read_parts(parts_in, plan.layout.numbers))
    detections = measure("merge", lambda: merged(parts, plan, job))
    table = measure("rows", lambda: detection_table(detections, origin_of(plan, job)))
    rows = Rows.of(table, job.card.classes)
    for kind in (TABLES, *FORMATS, "quicklook"):
        suffix = FORMATS[kind].suffix if kind in FORMATS else f".{kind}"
        path = folder / f"file{suffix}"
        measure(kind, lambda kind=kind, path=path: write_file(kind, rows, plan, job, path))  # type: ignore[misc]
    measure("SHA-256 of the table", lambda: sha256(folder / f"file.{TABLES}"))
    seconds, published = timed(lambda: publish_scene(plan, job))
    figures.append(Figure("detections", published.rows / mpx, "/Mpx"))
    return [*figures, at_most("all defaults, one process", seconds / mpx, "s/Mpx", TARGET)]


def in_pieces(scene: Path, folder: Path) -> list[Figure]:
    """Measure the pieces, and compute how long 10 gigapixels take on 8 cores."""
    plan, job = staged(scene, folder / "pieces", "engine.pieces_from_windows=1")
    mpx = plan.scene.megapixels
    figures: list[Figure] = []
    total = elapsed = 0.0
    for number, names in enumerate(rounds_of(plan, job), start=1):
        seconds = {
            name: timed(lambda name=name: make_piece(plan, job, name))[0]  # type: ignore[misc]
            for name in names
        }
        large = at_large(seconds, mpx)
        of_round = f"round {number}: {len(names)} pieces"
        figures += [
            Figure(f"{of_round}, sum", sum(seconds.values()) / mpx, "s/Mpx"),
            Figure(f"round {number} at 10 gigapixels", on_cores(large, CORES), "s"),
        ]
        total += sum(seconds.values())
        elapsed += on_cores(large, CORES)
    seconds_at_end, _ = timed(lambda: publish_scene(plan, job))
    figures.append(Figure("the end: copies, item, manifest", seconds_at_end / mpx, "s/Mpx"))
    elapsed += seconds_at_end * GIGA / mpx
    what = f"computed: 10 gigapixels on {CORES} cores"
    return [
        *figures,
        at_most("all defaults, in pieces", (total + seconds_at_end) / mpx, "s/Mpx", TARGET),
        at_most(what, elapsed, "s", TARGET_S),
    ]


def at_large(seconds: Mapping[str, float], mpx: float) -> list[float]:
    """Return the seconds of the pieces of a round at 10 gigapixels, given those of a smaller scene.

    The sum for each kind of piece grows with the scene, and is shared out among the pieces that
    such a scene has. The picture keeps its size, and so many detections get no GeoJSON.
    """
    pieces: list[float] = []
    for kind, count in PIECES.items():
        total = sum(s for name, s in seconds.items() if name.startswith(kind)) * GIGA / mpx
        pieces += [total / count] * count
    return [*pieces, seconds.get("file-quicklook", 0.0)]


def on_cores(seconds: Sequence[float], cores: int) -> float:
    """Return when the last piece ends if each begins on the core that is free first."""
    free = [0.0] * cores
    for piece in seconds:
        heapq.heapreplace(free, free[0] + piece)
    return max(free)


def write_scene(path: Path, side: int) -> Path:
    """Write a scene of four bands, DEFLATE with a predictor, of one painted suburb many times."""
    painted, pixel_m = paint_suburb(SUBURB_PX, seed=3).pixels, open_model(MODEL).card.gsd_m
    across = np.tile(painted, (1, 1, -(-side // SUBURB_PX)))[:, :, :side]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=len(painted),
        dtype="uint8",
        crs=CRS,
        transform=from_origin(*ORIGIN_M, pixel_m, pixel_m),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        interleave="pixel",
        alpha="unspecified",
        compress="DEFLATE",
        predictor=2,
        BIGTIFF="YES",
    ) as dataset:
        dataset.descriptions = BANDS
        for top in range(0, side, SUBURB_PX):
            rows = min(SUBURB_PX, side - top)
            dataset.write(across[:, :rows], window=((top, top + rows), (0, side)))
    return path


def staged(scene: Path, out: Path, *chosen: str) -> tuple[Plan, Job]:
    """Plan a scene and write parts with random boxes for all of its shards."""
    model = open_model(MODEL)
    job = Job(model.card, model.sha256, load_settings(None, chosen).resolved(model.card), out=out)
    plan = plan_scene(SceneRef.of_file(str(scene)), job)
    folder = work_folder(out, plan.scene.id, plan.stage_id)
    for number in plan.layout.numbers:
        draw = np.random.default_rng(number)
        bounds = plan.layout.shard(number).bounds
        count = int(PER_MPX * plan.scene.megapixels / len(plan.layout.numbers))
        sides = draw.uniform(*SIDES_PX, (count, 2))
        low = bounds.origin + sides / 2
        far = np.minimum([bounds.right, bounds.bottom], [plan.scene.width, plan.scene.height])
        centres = low + draw.random((count, 2)) * (far - bounds.origin - sides)
        first = np.hstack([centres - sides / 2, centres + sides / 2])
        again = first[draw.random(count) < TWICE]
        boxes = np.concatenate([first, again + draw.normal(0, SHIFT_PX, again.shape)])
        limits = [*bounds.origin, *bounds.origin], [*far, *far]
        boxes = np.clip(boxes, *limits).astype(np.float32).astype(np.float64)
        candidates = Candidates(
            boxes,
            draw.random(len(boxes)).astype(np.float32),
            np.zeros(len(boxes), np.int16),
            np.zeros(len(boxes), np.bool_),
        )
        write_part(folder, number, ShardDetections(candidates, 1, 0, 0, "cpu float32"))
    return plan, job


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the processor time of this process in some work, and what the work returns."""
    started = time.process_time()
    value = work()
    return time.process_time() - started, value


if __name__ == "__main__":
    main()
