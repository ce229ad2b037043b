"""A few published scenes for those who read what a run left: two of a night overlap."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.planning.plan import Job, plan_scene
from scenesweep.pipeline.publish.publish import publish
from scenesweep.pipeline.storage.location import Location
from tests.rasters import TRANSFORM, make_card, make_job, ref_of, write_raster

WIDTH, HEIGHT, STEP = 400, 300, 200
NIGHT, OTHER = "2026-11-20", "2026-11-21"
CLASSES = ("ship", "car")


def night_job(out: Location, *assignments: str) -> Job:
    return make_job(out, *assignments, card=make_card(classes=CLASSES))


def objects(count: int, seed: int = 0) -> Candidates:
    """Return boxes on a ground of 600 x 300 px: `publish_scene` cuts scenes out of it."""
    rng = np.random.default_rng(seed)
    corner = rng.random((count, 2)) * [WIDTH + STEP - 20, HEIGHT - 20]
    return Candidates(
        np.hstack([corner, corner + rng.uniform(6, 18, (count, 2))]),
        rng.random(count).astype(np.float32).round(2),
        rng.integers(0, 2, count).astype(np.int16),
        np.zeros(count, np.bool_),
    )


def seen(ground: Candidates, left: int, seed: int) -> Candidates:
    """Return what one scene reports of the ground: shifted by a pixel at most, other scores.

    What reaches over the scene's edge by up to two thirds is cut there.
    """
    rng = np.random.default_rng(seed)
    x0, x1 = ground.xyxy[:, 0], ground.xyxy[:, 2]
    reach = (x1 - x0) / 3
    found = ground.take((x1 - reach > left) & (x0 + reach < left + WIDTH))
    shift = np.tile(rng.uniform(-1, 1, (len(found), 2)), 2)
    score = np.clip(found.score + rng.uniform(-0.1, 0.1, len(found)), 0, 1).round(2)
    moved = found.xyxy - [left, 0, left, 0] + shift
    moved = np.clip(moved, 0, [WIDTH, HEIGHT] * 2)
    return Candidates(moved, score.astype(np.float32), found.label, found.cut)


def publish_scene(
    folder: Path, job: Job, name: str, found: Candidates, *, left: int = 0, day: str | None = NIGHT
) -> dict[str, Location]:
    """Publish detections as those of a blank scene `left` pixels east of the ground's edge."""
    tags = {} if day is None else {"TIFFTAG_DATETIME": f"{day.replace('-', ':')} 10:00:00"}
    transform = TRANSFORM @ TRANSFORM.translation(left, 0)
    blank = np.ones((1, HEIGHT, WIDTH), np.uint8)
    path = write_raster(folder / f"{name}.tif", blank, transform=transform, tags=tags)
    os.utime(path, (0, 0))  # a scene's time of change is in its fingerprint
    return publish(found, plan_scene(ref_of(path), job), job).by_kind()


def publish_night(folder: Path, *assignments: str, count: int = 200) -> Path:
    """Publish `east` and `west`, which share half their ground, and scenes of other days."""
    job = night_job(folder / "out", *assignments)
    ground = objects(count)
    publish_scene(folder, job, "west", seen(ground, 0, 1))
    publish_scene(folder, job, "east", seen(ground, STEP, 2), left=STEP)
    publish_scene(folder, job, "later", seen(ground, 0, 3), day=OTHER)
    publish_scene(folder, job, "undated", seen(ground, 0, 4), day=None)
    publish_scene(folder, job, "empty", ground.take(np.zeros(count, np.bool_)))
    return folder / "out"


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the IoU of two boxes in pixels of one ground: the obvious reference."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(shared / (area - shared))
