"""`scenesweep demo`: paint a suburb on two dates, detect, and compare with the known trees."""

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
from scenesweep.jobs.suburb import PX_M, LaterSuburb, Suburb, paint_two_dates
from scenesweep.jobs.suburb.later import QUALITY_PX, quality_of
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
FIRST, LATER = "2026:06:21 18:00:00", "2026:06:28 18:00:00"
POSITION_ERROR_M = (0.9, -0.6)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder to write to")
    parser.add_argument("--size", type=int, default=6144, help="side of the scene in pixels")
    parser.add_argument("--seed", type=int, default=7, help="seed of the painted scene")
    parser.add_argument("--address", default="local", help="as for scenesweep detect")


def run(arguments: argparse.Namespace) -> int:
    """Paint the scenes unless they exist, detect on them, and print the results."""
    scene = arguments.out / f"suburb-{arguments.size}-{arguments.seed}.tif"
    later = scene.with_name(f"{scene.stem}-later.tif")
    if not all(path.exists() for one in (scene, later) for path in (one, _truth(one))):
        started = time.monotonic()
        print(f"painting a synthetic suburb of {arguments.size} x {arguments.size} px ...")
        first, second = paint_two_dates(arguments.size, seed=arguments.seed)
        write_dates(scene, later, (first, second))
        print(f"painted in {time.monotonic() - started:.0f} s: {scene}, {later}")
    model = open_model(MODEL)
    names = [str(scene), str(later)]
    order = take_order(names, model, str(arguments.out / "out"), None, Settings())
    done = detect(order, address=arguments.address)
    report = write_report(done, order.job)
    print(summary(done, order.job))
    if done.exit_code:
        return done.exit_code
    files = {result.scene_id: result.files for result in done.results}
    for one in (scene, later):
        table = Path(files[one.stem]["detections"])
        told = _describe(compare(table, np.load(_truth(one))))
        print(f"{one.stem} against the truth: {told}")
    print("(synthetic scenes, painted by scenesweep: not imagery of any place)")
    for kind in ("quicklook", "detections", "geojson"):
        print(f"{kind}: {files[scene.stem][kind]}")
    print(f"report: {report}")
    index, _ = view(arguments.out / "out", [], arguments.out / "view", PageSettings())
    print(f"look at it in a browser: {index}")
    print("what to try next: docs/tutorial.md, section Every command on the demo")
    return 0


def write_dates(scene: Path, later: Path, dates: tuple[Suburb, LaterSuburb]) -> None:
    """Write both dates with their true trees, and a quality raster beside each.

    The later image has a position error of about a metre, as real images have.
    """
    first, second = dates
    write_scene(scene, first)
    np.save(_truth(scene), first.trees)
    seen = np.asarray(first.pixels.any(axis=0))
    write_quality(scene, quality_of(np.zeros(seen.shape, np.float32), seen), ORIGIN_M)
    east, north = ORIGIN_M
    corner_m = (
        east + second.corner * PX_M + POSITION_ERROR_M[0],
        north - second.corner * PX_M + POSITION_ERROR_M[1],
    )
    write_scene(later, second, corner_m=corner_m, taken=LATER)
    write_quality(later, second.quality, corner_m)
    np.save(_truth(later), second.trees)


def write_scene(
    path: Path,
    suburb: Suburb | LaterSuburb,
    *,
    corner_m: tuple[float, float] = ORIGIN_M,
    taken: str = FIRST,
) -> None:
    """Write a painted suburb as a COG with overviews, named bands, nodata 0 and a CRS.

    `corner_m` is the easting and northing of its north-west corner, `taken` the time in TIFF's
    form.
    """
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
            transform=from_origin(*corner_m, PX_M, PX_M),
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
                TIFFTAG_DATETIME=taken,
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


def write_quality(scene: Path, values: NDArray[np.uint8], corner_m: tuple[float, float]) -> None:
    """Write the quality raster of a scene beside it, as NAME_scl.tif."""
    pixel_m = PX_M * QUALITY_PX
    with rasterio.open(
        scene.with_name(f"{scene.stem}_scl.tif"),
        "w",
        driver="GTiff",
        width=values.shape[1],
        height=values.shape[0],
        count=1,
        dtype="uint8",
        crs=CRS,
        transform=from_origin(*corner_m, pixel_m, pixel_m),
        nodata=0,
        compress="DEFLATE",
    ) as dataset:
        dataset.write(values, 1)


def _truth(scene: Path) -> Path:
    return scene.with_name(f"{scene.stem}-trees.npy")


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
