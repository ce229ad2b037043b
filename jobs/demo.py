"""`scenesweep demo`: paint a synthetic scene, detect on it, and compare with the known trees."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.shutil import copy as copy_raster
from rasterio.transform import from_origin

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.detect import detect, summary
from scenesweep.jobs.suburb import PX_M, Suburb, paint_suburb
from scenesweep.jobs.view import view
from scenesweep.model.evaluate import PointComparison, PointScores, score_points
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.results.view import PageSettings
from scenesweep.pipeline.runs.report import write_report
from scenesweep.pipeline.settings import Settings
from scenesweep.pipeline.sweep import take_order

MODEL = "naip-trees"
CRS = "EPSG:32611"
ORIGIN_M = (430_000.0, 3_775_000.0)  # north-west corner: a plain in Southern California
BANDS = ("red", "green", "blue", "nir")
REACH_M = 6.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder to write to")
    parser.add_argument("--size", type=int, default=6144, help="side of the scene in pixels")
    parser.add_argument("--seed", type=int, default=7, help="seed of the painted scene")
    parser.add_argument("--address", default="local", help="as for scenesweep detect")


def run(arguments: argparse.Namespace) -> int:
    """Paint the scene unless it exists, detect on it, and print the results."""
    scene = arguments.out / f"suburb-{arguments.size}-{arguments.seed}.tif"
    truth = scene.with_name(f"{scene.stem}-trees.npy")
    if not (scene.exists() and truth.exists()):
        started = time.monotonic()
        print(f"painting a synthetic suburb of {arguments.size} x {arguments.size} px ...")
        suburb = paint_suburb(arguments.size, seed=arguments.seed)
        write_scene(scene, suburb)
        np.save(truth, suburb.trees)
        print(f"painted in {time.monotonic() - started:.0f} s: {scene}")
    model = open_model(MODEL)
    order = take_order([str(scene)], model, str(arguments.out / "out"), None, Settings())
    done = detect(order, address=arguments.address)
    report = write_report(done, order.job)
    print(summary(done, order.job))
    if done.exit_code:
        return done.exit_code
    files = done.results[0].files
    print(f"against the truth: {_describe(compare(Path(files['detections']), np.load(truth)))}")
    print("(a synthetic scene, painted by scenesweep: not imagery of any place)")
    for kind in ("quicklook", "detections", "geojson"):
        print(f"{kind}: {files[kind]}")
    print(f"report: {report}")
    index, _ = view(arguments.out / "out", [], arguments.out / "view", PageSettings())
    print(f"look at it in a browser: {index}")
    return 0


def write_scene(path: Path, suburb: Suburb) -> None:
    """Write a painted suburb as a COG with overviews, named bands, nodata 0 and a CRS."""
    bands, height, width = suburb.pixels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=width,
            height=height,
            count=bands,
            dtype="uint8",
            crs=CRS,
            transform=from_origin(*ORIGIN_M, PX_M, PX_M),
            nodata=0,
            tiled=True,
        ) as dataset:
            dataset.colorinterp = [
                *(ColorInterp.red, ColorInterp.green, ColorInterp.blue),
                ColorInterp.undefined,
            ]
            dataset.descriptions = BANDS
            dataset.update_tags(
                TIFFTAG_IMAGEDESCRIPTION="Synthetic scene painted by scenesweep, not imagery",
                TIFFTAG_DATETIME="2026:06:21 18:00:00",
            )
            dataset.write(suburb.pixels)
        copy_raster(
            memory.name,
            path,
            driver="COG",
            compress="DEFLATE",
            predictor="YES",
            blocksize=512,
            overview_resampling=Resampling.average.name,
        )


def compare(table: Path, trees: NDArray[np.float64]) -> PointScores:
    """Match published detections one to one with painted trees, up to 6 m apart."""
    frame = gpd.read_parquet(table, columns=["x_min", "y_min", "x_max", "y_max", "geometry"])
    centres = np.stack([(frame.x_min + frame.x_max) / 2, (frame.y_min + frame.y_max) / 2], axis=1)
    sample = PointComparison(centres, np.ones(len(frame), np.float32), trees[:, :2])
    return score_points([sample], radius=REACH_M / PX_M, threshold=0.5)


def _describe(scores: PointScores) -> str:
    return (
        f"{scores.true_positives:,} of {scores.true_positives + scores.false_negatives:,} trees "
        f"found within {REACH_M:g} m, {scores.false_positives:,} false: precision "
        f"{scores.precision:.3f}, recall {scores.recall:.3f}, F {scores.f_score:.3f}"
    )


if __name__ == "__main__":
    sys.exit(run_job("demo"))
