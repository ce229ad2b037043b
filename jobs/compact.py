"""`scenesweep compact`: a night's many tables as one for each date, with duplicates marked."""

from __future__ import annotations

import argparse
import sys

from scenesweep.jobs.cli import run_job
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.results.compact import CompactedDate, compact
from scenesweep.pipeline.runs.lock import output_lock
from scenesweep.pipeline.storage.location import location_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("out", metavar="OUT", help="what detect wrote: a folder or s3://...")
    parser.add_argument(
        "--iou",
        type=float,
        default=0.5,
        help="above this overlap, two boxes of one class from two scenes of a day are one object",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compact every date that changed, and print a line for each."""
    if not 0 < arguments.iou < 1:
        raise UsageError(f"--iou: expected a number between 0 and 1, got {arguments.iou:g}")
    out = location_of(arguments.out)
    if not out.is_dir():
        raise UsageError(f"{arguments.out}: expected a folder that detect wrote, found none")
    with output_lock(out):
        for night in compact(out, iou=arguments.iou):
            print(_line(night))
    return 0


def _line(night: CompactedDate) -> str:
    if night.status == "removed":
        return f"{night.status}: {night.date}: its scenes are gone"
    line = (
        f"{night.status}: {night.date}: {night.rows:,} detections of {night.scenes:,} scenes, "
        f"{night.duplicates:,} duplicates marked"
    )
    if night.pixel_scenes:
        line += f"; {night.pixel_scenes:,} scenes without georeference left out"
    return line


if __name__ == "__main__":
    sys.exit(run_job("compact"))
