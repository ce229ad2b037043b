"""`scenesweep compact`: join the tables of each date into one, and mark duplicates."""

from __future__ import annotations

import argparse
import sys

from scenesweep.jobs.cli import run_job
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.publish.stac.maps import link_maps
from scenesweep.pipeline.results.compact import CompactedDate, compact
from scenesweep.pipeline.runs.writers import writing
from scenesweep.pipeline.storage.location import location_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the --out of scenesweep detect: a folder, s3://..., gs://... or az://...",
    )
    parser.add_argument(
        "--iou",
        type=float,
        default=0.5,
        help="two boxes of one class, from two scenes of one date, are one object above this "
        "overlap; default: %(default)g",
    )
    parser.add_argument(
        "--pmtiles",
        action="store_true",
        help="also write each date as vector tiles (PMTiles) for web maps: centres up to zoom 12, "
        "boxes from zoom 13, without duplicates",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compact every date whose scenes changed, and print one line per date."""
    if not 0 < arguments.iou < 1:
        raise UsageError(f"--iou: expected a number between 0 and 1, got {arguments.iou:g}")
    out = location_of(arguments.out)
    if not out.is_dir():
        raise UsageError(
            f"{arguments.out}: expected the --out of scenesweep detect, found no such folder"
        )
    with writing(out, alone=True):
        for result in compact(out, iou=arguments.iou, maps=arguments.pmtiles):
            print(_line(result))
        link_maps(out)
    return 0


def _line(result: CompactedDate) -> str:
    if result.status == "removed":
        return f"{result.status}: {result.date}: no scene of this date is published any more"
    line = (
        f"{result.status}: {result.date}: {result.rows:,} detections of {result.scenes:,} scenes, "
        f"{result.duplicates:,} duplicates marked"
    )
    if result.pixel_scenes:
        line += f"; {result.pixel_scenes:,} scenes without georeference are not included"
    if result.mapped:
        line += "; map written"
    return line


if __name__ == "__main__":
    sys.exit(run_job("compact"))
