"""Options and messages that the commands on a finished OUT share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from scenesweep.pipeline.errors import UsageError, printable
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import UNKNOWN_DATE

_NAMES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Days:
    """The dates of `--date`: first and last, both included, or only scenes without a date."""

    first: date | None = None
    last: date | None = None
    undated: bool = False


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the argument OUT."""
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the --out of scenesweep detect: a folder, s3://..., gs://... or az://...",
    )


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add the options that select detections by class, score and date."""
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME",
        help="only this class; may be repeated",
    )
    parser.add_argument(
        "--min-score", type=float, default=0.0, metavar="X", help="lowest score, from 0 to 1"
    )
    parser.add_argument(
        "--date",
        metavar="DAY",
        help="date of acquisition (UTC): 2026-11-20, 2026-11-01/2026-11-20, or unknown",
    )


def check_score(score: float, option: str = "--min-score") -> None:
    """Check that a score is between 0 and 1.

    Raises:
        UsageError: when it is not.
    """
    if not 0 <= score <= 1:
        raise UsageError(f"{option}: expected a score from 0 to 1, got {score:g}")


def days_of(text: str | None, option: str = "--date") -> Days:
    """Return the dates that an option names; all dates without a text.

    Raises:
        UsageError: when the text has an invalid form.
    """
    if not text:
        return Days()
    if text == UNKNOWN_DATE:
        return Days(undated=True)
    start, _, end = text.partition("/")
    try:
        days = date.fromisoformat(start), date.fromisoformat(end or start)
    except ValueError:
        raise UsageError(
            f"{option}: expected 2026-11-20, 2026-11-01/2026-11-20 or {UNKNOWN_DATE}, got {text!r}"
        ) from None
    if days[0] > days[1]:
        raise UsageError(f"{option}: expected the earlier date first, got {text!r}")
    return Days(*days)


def check_target(path: Location, *, overwrite: bool) -> None:
    """Check that the folder of a file exists and the file does not; an object store has no folders.

    Raises:
        UsageError: when the folder is missing, or the file exists without --overwrite.
    """
    if isinstance(path, Path) and not path.parent.is_dir():
        raise UsageError(f"--to {path}: the folder {path.parent} does not exist; create it first")
    if path.is_file() and not overwrite:
        raise UsageError(f"--to {path}: the file exists; choose another name, or add --overwrite")


def some(names: Sequence[str]) -> str:
    """Join the first names, and add the number of the others."""
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(map(printable, names[:_NAMES_SHOWN]))
    return f"{shown} and {more:,} more" if more > 0 else shown
