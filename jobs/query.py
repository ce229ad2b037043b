"""`scenesweep query`: select published detections, and print or write them."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.shared.result_options import check_target, days_of, some
from scenesweep.pipeline.errors import UsageError, printable
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
from scenesweep.pipeline.results.tracks import untracked_dates, usual_looks
from scenesweep.pipeline.results.zones import Zones, read_polygons
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location, location_of

log = logging.getLogger(__name__)

_SHOWN = ("scene_id", "class_name", "score", "center_lon", "center_lat", "width_m", "height_m")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the --out of scenesweep detect: a folder, s3://..., gs://... or az://...",
    )
    parser.add_argument(
        "--bbox",
        nargs=4,
        type=float,
        metavar=("W", "S", "E", "N"),
        help="bounds in degrees; W above E means across the antimeridian",
    )
    parser.add_argument(
        "--aoi",
        metavar="FILE",
        help="only detections with their centre in the polygons of this vector file",
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
    parser.add_argument(
        "--min-score", type=float, default=0.0, metavar="X", help="lowest score, from 0 to 1"
    )
    parser.add_argument(
        "--date",
        metavar="DAY",
        help="date of acquisition (UTC): 2026-11-20, 2026-11-01/2026-11-20, or unknown",
    )
    parser.add_argument(
        "--new-since",
        metavar="DAY",
        help="only the first detections of objects that are new since this date; run scenesweep "
        "track before",
    )
    parser.add_argument(
        "--looks",
        type=int,
        metavar="N",
        help="with --new-since: the place of a new object was observed on at least N dates "
        "before it appeared; default: 2, or 1 if only two dates are tracked",
    )
    parser.add_argument(
        "--compacted", action="store_true", help="read the tables that scenesweep compact wrote"
    )
    parser.add_argument(
        "--unique",
        action="store_true",
        help="as --compacted, but drop duplicates: an object in several scenes of one date "
        "counts once",
    )
    parser.add_argument(
        "--to",
        metavar="FILE",
        help=f"write all detections to a file ({', '.join(WRITERS)}); its folder must exist",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the file of --to if it exists"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=20,
        metavar="N",
        help="print at most N detections; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the detections with the highest scores, or write all of them."""
    out, to = location_of(arguments.out), location_of(arguments.to) if arguments.to else None
    query = query_from(arguments)
    if query.new_since is not None and arguments.looks is None:
        query = replace(query, looks=usual_looks(out))
    writer = _writer(to) if to else None
    if to is not None and writer is not None:
        check_target(to, overwrite=arguments.overwrite)
        if writer.styled:
            check_target(to.with_suffix(".qml"), overwrite=arguments.overwrite)
    area = None
    if arguments.aoi is not None:
        area = Zones.of(read_polygons(arguments.aoi, "--aoi").geometry.to_numpy())
    geographic = writer is not None and writer.geographic
    rows = find(out, query, area=area, georeferenced=geographic)
    _warn_of_stale(out, query)
    if not len(rows):
        _explain_nothing(rows, out, query)
    if to is None or writer is None:
        print(listing(rows, limit=arguments.limit))
        return 0
    layer = as_layer(rows, out, query)
    with atomic_write(to, to.parent) as path:
        writer.write(layer, path)
    if writer.styled:
        with atomic_write(to.with_suffix(".qml"), to.parent) as path:
            write_style(layer.classes, path)
    print(f"{len(rows):,} detections in {to}")
    return 0


def query_from(arguments: argparse.Namespace) -> Query:
    """Return the query that the command line describes.

    Raises:
        UsageError: when a bbox, a score or a date has an invalid form.
    """
    days = days_of(arguments.date)
    if not 0 <= arguments.min_score <= 1:
        raise UsageError(f"--min-score: expected a score from 0 to 1, got {arguments.min_score:g}")
    return Query(
        bbox=_bbox(arguments.bbox) if arguments.bbox else None,
        classes=tuple(arguments.classes),
        scenes=tuple(arguments.scenes),
        min_score=arguments.min_score,
        first=days.first,
        last=days.last,
        undated=days.undated,
        compacted=arguments.compacted,
        unique=arguments.unique,
        looks=_looks(arguments.looks),
        new_since=_day(arguments.new_since) if arguments.new_since else None,
    )


def _looks(number: int | None) -> int:
    if number is not None and number < 1:
        raise UsageError(f"--looks: expected at least 1, got {number}")
    return number or 1


def _day(text: str) -> date:
    days = days_of(text, "--new-since")
    if days.first is None or days.first != days.last:
        raise UsageError(f"--new-since: expected a date such as 2026-11-20, got {text!r}")
    return days.first


def listing(rows: pa.Table, *, limit: int) -> str:
    """Return the detections with the highest scores as lines of columns, and their number."""
    best = rows.sort_by([("score", "descending"), ("detection_id", "ascending")])
    cells = [_SHOWN, *zip(*(_texts(best[name][:limit]) for name in _SHOWN), strict=True)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_SHOWN))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    shown = "" if len(rows) <= limit else f", {limit:,} with the highest scores shown"
    return "\n".join([*lines, f"{len(rows):,} detections{shown}"])


def _warn_of_stale(out: Location, query: Query) -> None:
    stale = stale_dates(out, query) if query.compacted or query.unique else []
    if stale:
        log.warning(
            "scenes changed since they were compacted: %s; run scenesweep compact %s",
            ", ".join(stale),
            out,
        )
    untracked = untracked_dates(out) if query.new_since is not None else []
    if untracked:
        log.warning(
            "dates are not tracked, or changed since: %s; run scenesweep track %s",
            some(untracked),
            out,
        )


def _explain_nothing(rows: pa.Table, out: Location, query: Query) -> None:
    """Warn about dates, scenes and classes of the query that OUT does not have."""
    if not table_files(out, query):
        log.warning("no scene on that date; OUT has: %s", some(dates_in(out, query)))
        return
    if query.scenes:
        _warn_of_missing("scene", query.scenes, scenes_in(out, query))
    if query.classes:
        _warn_of_missing("class", query.classes, as_layer(rows, out, query).classes)


def _warn_of_missing(kind: str, names: Sequence[str], existing: Sequence[str]) -> None:
    for name in sorted(set(names) - set(existing)) if existing else ():
        log.warning("no %s %s; OUT has: %s", kind, printable(name), some(existing))


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
"""The formats by the suffix of the file; `.json` is COCO."""


def _writer(path: Location) -> Format:
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(f"--to {path}: expected one of {', '.join(WRITERS)}, got {path.suffix!r}")
    return writer


if __name__ == "__main__":
    sys.exit(run_job("query"))
