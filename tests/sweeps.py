"""Sweep painted scenes in the plain loop, and read what was published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.transform import from_origin

from scenesweep.pipeline.engine import local
from scenesweep.pipeline.engine.steps import Listener
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.scene import SceneRef
from tests.rasters import (
    TRANSFORM,
    UTM,
    SquareDetector,
    ref_of,
)

ROTATED = Affine.translation(430_000, 3_775_000) @ Affine.rotation(30) @ Affine.scale(0.6, -0.6)


FRAMES = {
    "utm": (UTM, TRANSFORM),
    "degrees": ("EPSG:4326", from_origin(-117.2, 34.1, 6.5e-6, 5.4e-6)),
    "web_mercator": ("EPSG:3857", from_origin(-13_046_000, 4_040_000, 0.72, 0.72)),
    "rotated": (UTM, ROTATED),
    "south_up": (UTM, Affine(0.6, 0, 430_000, 0, 0.6, 3_775_000)),
}


def sweep(
    sources: Sequence[Path | str | SceneRef], job: Job, detector: Any = None
) -> list[SceneResult]:
    """Run the plain loop with a detector in place of the network."""
    results: list[SceneResult] = []
    steps = replace(scene_steps(job), make_detector=lambda _: detector or SquareDetector())
    refs = [s if isinstance(s, SceneRef) else ref_of(s) for s in sources]
    local.sweep(refs, steps, None, listener=Listener(results.append))
    return results


def published(result: SceneResult) -> gpd.GeoDataFrame:
    return gpd.read_parquet(result.files["detections"])


def boxes_of(frame: gpd.GeoDataFrame) -> NDArray[np.float64]:
    return frame[["x_min", "y_min", "x_max", "y_max"]].to_numpy()


def ordered(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return boxes[np.lexsort(boxes.T)]


def digests(out: Path) -> dict[str, str]:
    """Hash all published files by their path under OUT."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in sorted(out.iterdir())
        if folder.name not in (".work", "runs")
        for path in sorted([folder, *folder.rglob("*")])
        if path.is_file()
    }


def tables(digests: Mapping[str, str]) -> list[str]:
    """Return the published tables among files by their path under OUT."""
    return [name for name in digests if name.startswith("detections/")]
