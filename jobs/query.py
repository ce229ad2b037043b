"""`scenesweep query`: find detections in what a run published, and print or write them."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from scenesweep.jobs.cli import run_job
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.publish.formats import FORMATS, Format, Layer
from scenesweep.pipeline.publish.formats.qml import write_style
from scenesweep.pipeline.publish.table import with_metadata
from scenesweep.pipeline.results.compact import ROWS_PER_GROUP
from scenesweep.pipeline.results.query import (
    Query,
    as_layer,
    dates_in,
    find,
    scenes_in,
    stale_dates,
    table_files,
)
from scenesweep.pipeline.runs.report import printable
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location, location_of

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""The date of scenes whose day of acquisition nobody knows, as their folder is called."""
_NAMES_SHOWN = 10
_SHOWN = ("scene_id", "class_name", "score", "center_lon", "center_lat", "width_m", "height_m")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("out", metavar="OUT", help="what detect wrote: a folder or s3://...")
    parser.add_argument(
        "--bbox", nargs=4, type=float, metavar=("W", "S", "E", "N"), help="in degrees"
    )
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME",
        help="only this class; may be repeated",
    )
    parser.add_argument(
        "--scene",
        dest="scenes",
        action="append",
        default=[],
        metavar="ID",
        help="only this scene; may be repeated",
    )
    parser.add_argument("--min-score", type=float, default=0.0, metavar="X", help="from 0 to 1")
    parser.add_argument(
        "--date", metavar="DAY", help="2026-11-20, or 2026-11-01/2026-11-20, or unknown"
    )
    parser.add_argument(
        "--compacted", action="store_true", help="ask the tables that scenesweep compact wrote"
    )
    parser.add_argument(
        "--unique",
        action="store_true",
        help="like --compacted, without duplicates: an object that several scenes of a day saw "
        "is one detection",
    )
    parser.add_argument(
        "--to",
        metavar="FILE",
        help=f"write {', '.join(WRITERS)}; the folder must exist, the file must not",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --to")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="rows printed")


def run(arguments: argparse.Namespace) -> int:
    """Find and print the best detections, or write all of them."""
    query = query_from(arguments)
    out, to = location_of(arguments.out), location_of(arguments.to) if arguments.to else None
    writer = _writer(to) if to else None
    if to is not None and writer is not None:
        _check_target(to, overwrite=arguments.overwrite)
        if writer.styled:
            _check_target(to.with_suffix(".qml"), overwrite=arguments.overwrite)
    found = find(out, query, georeferenced=writer is not None and writer.geographic)
    _warn_of_stale(out, query)
    if not len(found):
        _explain_nothing(found, out, query)
    if to is None or writer is None:
        print(listing(found, limit=arguments.limit))
        return 0
    layer = as_layer(found, out, query)
    with atomic_write(to, to.parent) as path:
        writer.write(layer, path)
    if writer.styled:
        with atomic_write(to.with_suffix(".qml"), to.parent) as path:
            write_style(layer.classes, path)
    print(f"{len(found):,} detections in {to}")
    return 0


def query_from(arguments: argparse.Namespace) -> Query:
    """Return what the command line asks for.

    Raises:
        UsageError: when a bbox, a score or a date has another form.
    """
    undated = arguments.date == UNKNOWN
    first, last = _days(arguments.date) if arguments.date and not undated else (None, None)
    if not 0 <= arguments.min_score <= 1:
        raise UsageError(f"--min-score: expected a score from 0 to 1, got {arguments.min_score:g}")
    return Query(
        bbox=_bbox(arguments.bbox) if arguments.bbox else None,
        classes=tuple(arguments.classes),
        scenes=tuple(arguments.scenes),
        min_score=arguments.min_score,
        first=first,
        last=last,
        undated=undated,
        compacted=arguments.compacted,
        unique=arguments.unique,
    )


def listing(found: pa.Table, *, limit: int) -> str:
    """Return the detections of highest score as lines of columns, and how many there are."""
    best = found.sort_by([("score", "descending"), ("detection_id", "ascending")])
    rows = [_SHOWN, *zip(*(_texts(best[name][:limit]) for name in _SHOWN), strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_SHOWN))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    shown = "" if len(found) <= limit else f", {limit:,} of highest score shown"
    return "\n".join([*lines, f"{len(found):,} detections{shown}"])


def _warn_of_stale(out: Location, query: Query) -> None:
    stale = stale_dates(out, query) if query.compacted or query.unique else []
    if stale:
        log.warning(
            "not compacted since it changed: %s; run scenesweep compact %s", ", ".join(stale), out
        )


def _explain_nothing(found: pa.Table, out: Location, query: Query) -> None:
    """Warn of days, scenes and classes that are not there: nothing can be found by them."""
    if not table_files(out, query):
        log.warning("no scene on that day; there are: %s", _some(dates_in(out, query)))
        return
    if query.scenes:
        _tell_missing("scene", query.scenes, scenes_in(out, query))
    if query.classes:
        _tell_missing("class", query.classes, as_layer(found, out, query).classes)


def _tell_missing(kind: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    for name in sorted(set(wanted) - set(there)) if there else ():
        log.warning("no %s %s; there are: %s", kind, printable(name), _some(there))


def _some(names: Sequence[str]) -> str:
    """Join the first names, and say how many more there are."""
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(map(printable, names[:_NAMES_SHOWN]))
    return f"{shown} and {more:,} more" if more > 0 else shown


def _texts(column: pa.ChunkedArray) -> list[str]:
    decimals = {pa.float32(): 3, pa.float64(): 6}.get(column.type)
    return [
        "" if value is None else printable(value) if decimals is None else f"{value:.{decimals}f}"
        for value in column.to_pylist()
    ]


def _bbox(edges: Sequence[float]) -> tuple[float, float, float, float]:
    west, south, east, north = edges
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        given = " ".join(f"{edge:g}" for edge in edges)
        raise UsageError(f"--bbox: expected W S E N in degrees, S below N, got {given}")
    return west, south, east, north


def _days(text: str) -> tuple[date, date]:
    start, _, end = text.partition("/")
    try:
        days = date.fromisoformat(start), date.fromisoformat(end or start)
    except ValueError:
        raise UsageError(
            f"--date: expected 2026-11-20, 2026-11-01/2026-11-20 or {UNKNOWN}, got {text!r}"
        ) from None
    if days[0] > days[1]:
        raise UsageError(f"--date: expected the earlier day first, got {text!r}")
    return days


def _write_parquet(layer: Layer, path: Path) -> None:
    table = with_metadata(layer.table, {"classes": layer.classes}, georeferenced=True)
    pq.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP)


def _write_csv(layer: Layer, path: Path) -> None:
    pyarrow.csv.write_csv(layer.table.drop_columns(["geometry", "bbox"]), path)


WRITERS: dict[str, Format] = {
    **{form.suffix: form for form in FORMATS.values()},
    ".parquet": Format(".parquet", _write_parquet, styled=False),
    ".csv": Format(".csv", _write_csv, geographic=False, styled=False),
}
"""By the suffix of the file to write; `.json` is COCO."""


def _writer(path: Location) -> Format:
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(f"--to {path}: expected one of {', '.join(WRITERS)}, got {path.suffix!r}")
    return writer


def _check_target(path: Location, *, overwrite: bool) -> None:
    """Refuse a file in a folder that is not there, which is a slip of the pen, or one that is.

    A store has no folders.
    """
    if isinstance(path, Path) and not path.parent.is_dir():
        raise UsageError(f"--to {path}: the folder {path.parent} does not exist: create it first")
    if path.is_file() and not overwrite:
        raise UsageError(f"--to {path}: the file exists: name another one, or add --overwrite")


if __name__ == "__main__":
    sys.exit(run_job("query"))
