"""`scenesweep track`: link the detections of all dates to objects."""

from __future__ import annotations

import argparse
import logging
import sys

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.shared.result_options import add_out, check_score
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.results.tracks import Linking, Tracked, track, tracked_dates
from scenesweep.pipeline.runs.writers import writing
from scenesweep.pipeline.storage.location import location_of
from scenesweep.pipeline.storage.paths import Output

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    usual = Linking()
    add_out(parser)
    parser.add_argument(
        "--within",
        type=float,
        default=usual.within_m,
        metavar="M",
        help="largest distance in metres between an object and its next sighting: about five "
        "times the standard error of a position; default: %(default)g",
    )
    parser.add_argument(
        "--gone-after",
        type=int,
        default=usual.gone_after,
        metavar="N",
        help="an object is gone after N observations in a row without it; default: %(default)d",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=usual.min_score,
        metavar="X",
        help="ignore detections with lower scores; default: %(default)g",
    )
    parser.add_argument(
        "--confirm-above",
        type=float,
        default=usual.confirm_above,
        metavar="X",
        help="an object is confirmed by a score this much above the score threshold of its "
        "scene; default: %(default)g",
    )
    parser.add_argument(
        "--rebuild", action="store_true", help="link all dates again, even if nothing changed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Link every date that is new, and print one line per date."""
    linking = _linking(arguments)
    out = location_of(arguments.out)
    if not out.is_dir():
        raise UsageError(
            f"{arguments.out}: expected the --out of scenesweep detect, found no such folder"
        )
    outlines = 0
    tracked_dates(out)  # before the lock, which makes a folder
    with writing(out, alone=True):
        for result in track(out, linking, rebuild=arguments.rebuild):
            print(_line(result))
            outlines += result.outlines
    if outlines:
        log.warning(
            "%d scenes have no coverage file: their whole outline counts as observed, also under "
            "clouds",
            outlines,
        )
    print(f"objects: {Output(out).tracked_objects}")
    return 0


def _linking(arguments: argparse.Namespace) -> Linking:
    check_score(arguments.min_score)
    check_score(arguments.confirm_above, "--confirm-above")
    if not 0 < arguments.within <= 10_000:
        raise UsageError(
            f"--within: expected metres, above 0 and up to 10,000, got {arguments.within:g}"
        )
    if arguments.gone_after < 1:
        raise UsageError(f"--gone-after: expected at least 1, got {arguments.gone_after}")
    return Linking(
        arguments.within, arguments.gone_after, arguments.min_score, arguments.confirm_above
    )


def _line(result: Tracked) -> str:
    if result.status == "up-to-date":
        return f"up-to-date: no date was added or changed since {result.date}"
    return (
        f"{result.status}: {result.date}: {result.sightings:,} sightings, {result.objects:,} "
        f"objects: {result.new:,} new, {result.gone:,} gone, {result.unobserved:,} unobserved"
    )


if __name__ == "__main__":
    sys.exit(run_job("track"))
