"""S3: core-seconds that a reader takes for a megapixel, against GDAL's decoding of the same blocks.

Each raster is read in shards of 4 x 4 windows, alternating with `dataset.read` of the same source
pixels, which is the limit. Where a GPU would stretch and resample, it is also measured what its
readers do: "as source pixels". The figures are processor time, per megapixel of the model's grid.
All rasters have the four bands of a painted suburb in tiles of 512 px.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.windows import Window as Area

from benchmarks.figures import Figure, at_most, tell
from scenesweep.jobs.demo import BANDS, CRS
from scenesweep.jobs.suburb import paint_suburb
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.geometry.grid import Shard
from scenesweep.pipeline.planning.plan import Method, Plan, plan_scene
from scenesweep.pipeline.raster import gdal, opening
from scenesweep.pipeline.raster.chips import read_shard
from scenesweep.pipeline.raster.source_chips import read_source, travels
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import load_settings

MODEL = "naip-trees"
ORIGIN_M = (430_000.0, 3_775_000.0)
CODECS: dict[str, dict[str, Any]] = {
    "uncompressed": {},
    "DEFLATE": {"compress": "DEFLATE"},
    "DEFLATE + predictor": {"compress": "DEFLATE", "predictor": 2},
    "ZSTD": {"compress": "ZSTD"},
    "LZW": {"compress": "LZW"},
    "JPEG": {"compress": "JPEG", "jpeg_quality": 85},
    "LERC": {"compress": "LERC"},
}
TARGETS = {"DEFLATE + predictor": 0.016, "ZSTD": 0.010}
STRETCHED, RESAMPLED = 0.02, 0.03
SCALES = (0.5, 0.75, 1.42)


@dataclass(frozen=True, slots=True)
class Case:
    """One raster, and how many of its pixels a grid pixel spans. `target` is in s/Mpx."""

    codec: str
    dtype: str = "uint8"
    nodata: int | None = None
    scale: float = 1.0
    target: float | None = None

    @property
    def name(self) -> str:
        kind = "8 bits" if self.dtype == "uint8" else "16 bits, stretched"
        masked = "nodata" if self.nodata is not None else "no nodata"
        scale = f", resampled x{self.scale:g}" if self.scale != 1 else ""
        return f"{self.codec}, {kind}, {masked}{scale}"


def cases() -> Iterator[Case]:
    """Give all cases that are measured."""
    for codec in CODECS:
        for nodata in (None, 0):
            yield Case(codec, nodata=nodata, target=TARGETS.get(codec))
    for codec in ("uncompressed", "DEFLATE + predictor", "ZSTD"):
        for nodata in (None, 0):
            yield Case(codec, "uint16", nodata, target=STRETCHED)
    for codec in ("uncompressed", "ZSTD"):
        for scale in SCALES:
            for nodata in (None, 0):
                yield Case(codec, nodata=nodata, scale=scale, target=RESAMPLED)
    for scale in SCALES:
        yield Case("ZSTD", "uint16", None, scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=3072, help="pixels along a side (default 3072)")
    parser.add_argument("--rounds", type=int, default=5, help="the best of so many counts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(Path(folder), size=arguments.size, rounds=arguments.rounds)
    tell("read", figures, size=arguments.size, rounds=arguments.rounds, load=os.getloadavg()[0])


def measured(folder: Path, *, size: int, rounds: int, every: int = 1) -> list[Figure]:
    """Measure every so many of the cases, with rasters of `size` pixels a side."""
    painted = paint_suburb(size, seed=3).pixels
    figures = []
    for case in list(cases())[::every]:
        path = write(folder / "scene.tif", painted, case)
        ours, as_source, limit = seconds_per_mpx(path, rounds)
        figures.append(
            at_most(case.name, ours, "s/Mpx", case.target)
            if case.target
            else Figure(case.name, ours, "s/Mpx")
        )
        figures.append(Figure("  of which dataset.read", limit, "s/Mpx"))
        figures.append(Figure("  ratio", ours / limit, "x"))
        if as_source is not None:
            figures.append(Figure("  as source pixels", as_source, "s/Mpx"))
    return figures


def write(path: Path, painted: NDArray[np.uint8], case: Case) -> Path:
    """Write a raster of one case; without nodata the painted border is black ground."""
    path.unlink(missing_ok=True)
    pixels = painted if case.dtype == "uint8" else painted.astype(np.uint16) * 15
    bands, height, width = pixels.shape
    pixel_m = open_model(MODEL).card.gsd_m / case.scale
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=bands,
        dtype=case.dtype,
        nodata=case.nodata,
        crs=CRS,
        transform=from_origin(*ORIGIN_M, pixel_m, pixel_m),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        interleave="pixel",
        alpha="unspecified",  # the fourth band is near infrared, not a mask
        **CODECS[case.codec],
    ) as dataset:
        dataset.descriptions = BANDS
        dataset.write(pixels)
    return path


def seconds_per_mpx(path: Path, rounds: int) -> tuple[float, float | None, float]:
    """Return the processor time of chips, of source pixels and of GDAL, per grid megapixel.

    That of source pixels is None where a GPU gets chips too.
    """
    model = open_model(MODEL)
    settings = load_settings(None, ["tiling.shard=4"]).resolved(model.card)
    plan = plan_scene(SceneRef.of_file(str(path)), Method(model.card, model.sha256, settings))
    shards = [plan.layout.shard(number) for number in plan.layout.numbers]
    areas = [source_area(plan, shard) for shard in shards]
    megapixels = sum(shard.bounds.width * shard.bounds.height for shard in shards) / 1e6
    ours = source = limit = float("inf")
    for _ in range(rounds):
        opening._kept.clear()  # closes the file: its decoded blocks are forgotten
        ours = min(ours, processor_time(lambda: [read_shard(plan.source, s) for s in shards]))
        opening._kept.clear()
        source = min(source, processor_time(lambda: [read_source(plan.source, s) for s in shards]))
        limit = min(limit, processor_time(lambda: decode(path, areas)))
    as_source = source / megapixels if travels(plan.source, shards[0]) else None
    return ours / megapixels, as_source, limit / megapixels


def decode(path: Path, areas: list[Area]) -> None:
    """Read the areas of a raster with GDAL alone."""
    with rasterio.Env(**gdal.options(remote=False)), rasterio.open(path) as dataset:
        for area in areas:
            dataset.read(window=area)


def source_area(plan: Plan, shard: Shard) -> Area:
    """Return the source pixels under a shard."""
    (sx, sy), bounds, scene = plan.source.scale, shard.bounds, plan.scene
    left, top = int(bounds.col_off * sx), int(bounds.row_off * sy)
    right = min(scene.width, int(np.ceil(bounds.right * sx)))
    bottom = min(scene.height, int(np.ceil(bounds.bottom * sy)))
    return Area(left, top, right - left, bottom - top)


def processor_time(work: Callable[[], object]) -> float:
    """Return the seconds that the processors of this process compute."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
