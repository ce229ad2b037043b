"""S5: processor time for the plan of a scene, as the scene grows, with and without overviews.

A raster of any size is made of 16 painted tiles of 512 px: the block index of its TIFF names each
of them many times. So a file of 100,000 x 100,000 px takes 20 MB, and a reader decodes as much of
it as of any other. "Full pass" is a plan without limits, as before version 5 of the stage. It is
measured at 4,096 px and computed for the largest scene, where it grows with their pixels.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.windows import Window

from benchmarks.figures import Figure, at_most, tell
from benchmarks.read import CODECS, MODEL, ORIGIN_M
from benchmarks.repeated_tiles import ACROSS, TILE_PX, repeat_tiles
from scenesweep.jobs.demo import BANDS, CRS
from scenesweep.jobs.suburb import paint_suburb
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.planning.plan import Method, plan_scene
from scenesweep.pipeline.raster import sample, survey
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import load_settings

GIANT_PX = 100_000
MOST_S = 60.0
FULL_PASS_PX = 4096


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of raster. Of a sparse one, only one tile in sixteen is not empty."""

    codec: str
    dtype: str = "uint8"
    sparse: bool = False

    @property
    def name(self) -> str:
        kind = "8 bits" if self.dtype == "uint8" else "16 bits"
        return f"{self.codec}, {kind}, {'sparse' if self.sparse else 'dense'}"


CASES = (
    Case("uncompressed"),
    Case("uncompressed", sparse=True),
    Case("DEFLATE + predictor"),
    Case("DEFLATE + predictor", sparse=True),
    Case("DEFLATE + predictor", "uint16"),
    Case("LERC", "uint16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--giant", type=int, default=GIANT_PX, help="pixels along the longest side")
    parser.add_argument("--full", type=int, default=FULL_PASS_PX, help="pixels of the full pass")
    arguments = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            for figure in measured(Path(folder), case, arguments.giant, arguments.full):
                print(f"{figure.what}: {figure.value:.3g} {figure.unit}", flush=True)
                figures.append(figure)
    tell("planning", figures, giant_px=arguments.giant, load=os.getloadavg()[0])


def measured(folder: Path, case: Case, giant: int, full: int) -> Iterator[Figure]:
    """Measure one kind of raster at several sizes."""
    below = min(giant, largest_in_budget(case))
    path = folder / "scene.tif"
    for side in sorted({full, below, giant}):
        write(path, side, case)
        yield at_most(f"{case.name}, {side:,} px", plan_s(path), "s", MOST_S)
        if side == full:
            with without_limits():
                seconds = plan_s(path)
            yield Figure(f"  full pass, {side:,} px", seconds, "s")
            computed = seconds * (giant / side) ** 2
            yield Figure(f"  full pass, {giant:,} px, computed", computed, "s")
            add_overviews(path)
            yield Figure(f"  with overviews, {side:,} px", plan_s(path), "s")


def largest_in_budget(case: Case) -> int:
    """Return the side of the largest scene that is still surveyed at full resolution."""
    pixel = len(BANDS) * np.dtype(case.dtype).itemsize
    side = int((survey.SURVEY_BYTES / pixel) ** 0.5)
    return side // TILE_PX * TILE_PX


def plan_s(path: Path) -> float:
    """Return the seconds of processor time for a plan in a fresh cache."""
    model = open_model(MODEL)
    method = Method(model.card, model.sha256, load_settings(None, []).resolved(model.card))
    survey._repeated_on_disk.cache_clear()
    started = time.process_time()
    plan_scene(SceneRef.of_file(str(path)), method)
    return time.process_time() - started


@contextmanager
def without_limits() -> Iterator[None]:
    """Let a plan decode the whole scene."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(survey, "SURVEY_BYTES", 10**18))
        stack.enter_context(mock.patch.object(sample, "SAMPLE_BYTES", 10**18))
        yield


def write(path: Path, side: int, case: Case) -> None:
    """Write a square raster whose block index repeats painted tiles."""
    path.unlink(missing_ok=True)
    pixel_m = open_model(MODEL).card.gsd_m
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=len(BANDS),
        dtype=case.dtype,
        nodata=0,
        crs=CRS,
        transform=from_origin(*ORIGIN_M, pixel_m, pixel_m),
        tiled=True,
        blockxsize=TILE_PX,
        blockysize=TILE_PX,
        interleave="pixel",
        alpha="unspecified",
        BIGTIFF="YES",
        SPARSE_OK="TRUE",
        **CODECS[case.codec],
    ) as dataset:
        dataset.descriptions = BANDS
        dataset.write(painted(case), window=Window(0, 0, TILE_PX * ACROSS, TILE_PX * ACROSS))
    repeat_tiles(path, -(-side // TILE_PX))


def painted(case: Case) -> NDArray[np.generic]:
    """Return (bands, 2048, 2048) pixels; 0 is nodata."""
    pixels = suburb().copy()
    if case.sparse:
        tiles = pixels.reshape(len(BANDS), ACROSS, TILE_PX, ACROSS, TILE_PX)
        row, column = np.indices((ACROSS, ACROSS))
        empty = (row % 4 > 0) | (column % 4 > 0)
        tiles.transpose(1, 3, 0, 2, 4)[empty] = 0
    return pixels if case.dtype == "uint8" else pixels.astype(case.dtype) * 15


@cache
def suburb() -> NDArray[np.uint8]:
    """Paint a suburb without nodata, once: it takes half a minute."""
    return np.maximum(paint_suburb(TILE_PX * ACROSS, seed=3).pixels, 1)


def add_overviews(path: Path) -> None:
    """Build overviews down to 1/64."""
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8, 16, 32, 64], Resampling.average)


if __name__ == "__main__":
    main()
