"""`scenesweep count`: count detections in polygons or H3 cells."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.shared.result_options import (
    add_filters,
    add_out,
    check_score,
    check_target,
    days_of,
    some,
)
from scenesweep.pipeline.errors import UsageError, printable
from scenesweep.pipeline.geometry.georef import LONLAT
from scenesweep.pipeline.results.cells import Cells
from scenesweep.pipeline.results.count import SCHEMA, Counts, add_dates, count, rows_of
from scenesweep.pipeline.results.query import Query, dates_in
from scenesweep.pipeline.results.zones import Zones, read_polygons
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import location_of

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

log = logging.getLogger(__name__)

_FINEST_H3 = 15
_SHOWN = ("date", "class_name", "detections", "expected", "observed_km2", "per_km2")
_RESERVED = {"fid", "geom", "geometry", *SCHEMA.names}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_out(parser)
    zones = parser.add_mutually_exclusive_group(required=True)
    zones.add_argument("--by", metavar="FILE", help="count in the polygons of this vector file")
    zones.add_argument(
        "--h3",
        type=int,
        metavar="RES",
        help="count in H3 cells of this resolution, from 0 (4,357,449 km2) to 15 (0.9 m2)",
    )
    parser.add_argument("--by-class", action="store_true", help="one row for each class")
    add_filters(parser)
    parser.add_argument(
        "--sum-dates",
        action="store_true",
        help="add up all dates; an object of several dates then counts once for each of them",
    )
    parser.add_argument(
        "--to", metavar="FILE", help=f"write all rows to a file ({', '.join(WRITERS)})"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the file of --to if it exists"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=20,
        metavar="N",
        help="print at most N rows; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Count, and print the rows with the most detections or write all of them."""
    query, out = _query(arguments), location_of(arguments.out)
    to = location_of(arguments.to) if arguments.to else None
    writer = _writer(arguments.to)
    if to is not None:
        check_target(to, overwrite=arguments.overwrite)
    zones, frame = _zones(arguments)
    known = dates_in(out, query)  # an error if there is no table
    counts = count(out, query, zones)
    if not counts.tallies:
        raise UsageError(f"--date {arguments.date}: no scene on that date; OUT has: {some(known)}")
    _warn(counts)
    table = _table(add_dates(counts) if arguments.sum_dates else counts, zones, frame, arguments)
    if to is None:
        print(_listing(table, limit=arguments.limit))
        return 0
    with atomic_write(to, to.parent) as path:
        writer(table, path)
    print(f"{len(table):,} rows, {table.detections.sum():,} detections in {to}")
    return 0


def _query(arguments: argparse.Namespace) -> Query:
    check_score(arguments.min_score)
    if arguments.h3 is not None and not 0 <= arguments.h3 <= _FINEST_H3:
        raise UsageError(f"--h3: expected a resolution from 0 to {_FINEST_H3}, got {arguments.h3}")
    days = days_of(arguments.date)
    return Query(
        classes=tuple(arguments.classes),
        min_score=arguments.min_score,
        first=days.first,
        last=days.last,
        undated=days.undated,
    )


def _zones(arguments: argparse.Namespace) -> tuple[Zones | Cells, GeoDataFrame | None]:
    """Return the zones, and the rows of the user's file."""
    if arguments.h3 is not None:
        return Cells(arguments.h3), None
    frame = read_polygons(arguments.by, "--by")
    return Zones.of(frame.geometry.to_numpy()), frame


def _table(
    counts: Counts, zones: Zones | Cells, frame: GeoDataFrame | None, arguments: argparse.Namespace
) -> GeoDataFrame:
    """Join the counts to the columns and geometries of their zones."""
    import geopandas as gpd  # slow to import
    import pandas as pd

    if frame is None:
        assert isinstance(zones, Cells)
        frame = gpd.GeoDataFrame({"h3": zones.names()}, geometry=zones.polygons(), crs=LONLAT)
    frame = frame.rename(columns=_new_names([str(name) for name in frame.columns]))
    parts = []
    for numbers, rows in rows_of(counts, frame.geometry.to_numpy(), by_class=arguments.by_class):
        part = frame.iloc[numbers].reset_index(drop=True)
        parts.append(part.join(rows.to_pandas(types_mapper=None)))
    return gpd.GeoDataFrame(pd.concat(parts, ignore_index=True), crs=LONLAT)


def _new_names(names: Sequence[str]) -> dict[str, str]:
    """Return other names for columns that are called like ours; GeoPackage ignores case."""
    taken = {name.casefold() for name in names} | _RESERVED
    renamed: dict[str, str] = {}
    for name in names:
        new = name
        while new.casefold() in (taken if new != name else _RESERVED) and name != "geometry":
            new = f"{new}_input"
        if new != name:
            taken.add(new.casefold())
            renamed[name] = new
    return renamed


def _warn(counts: Counts) -> None:
    """Say what the numbers do not contain."""
    pixels = sum(tally.pixel_scenes for tally in counts.tallies.values())
    if pixels:
        log.warning("%d scenes without georeference are not counted", pixels)
    without = sum(ground.without for ground in counts.observed.values())
    if without:
        log.warning(
            "%d scenes have no coverage file: observed_km2 and per_km2 of their dates are null",
            without,
        )
    if any(tally.without_probability for tally in counts.tallies.values()):
        log.warning(
            "detections have no probability: `detections` counts those above the score "
            "threshold, without an interval (see scenesweep evaluate --calibrate)"
        )


def _listing(table: GeoDataFrame, *, limit: int) -> str:
    """Return the rows with the most detections as lines of columns, and the sum of all."""
    first = [name for name in table if name not in {*_RESERVED, table.geometry.name}][:1]
    names = [*first, *(name for name in _SHOWN if table[name].notna().any())]
    best = table.sort_values("detections", ascending=False, kind="stable")[:limit]
    cells = [names, *zip(*(map(_text, best[name]) for name in names), strict=True)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    total = f"{len(table):,} rows, {table.detections.sum():,} detections"
    shown = "" if len(table) <= limit else f"; {limit:,} rows with the most detections shown"
    return "\n".join([*lines, total + shown])


def _text(value: object) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def _write_parquet(table: GeoDataFrame, path: Path) -> None:
    table.to_parquet(path, compression="zstd", index=False, write_covering_bbox=True)


def _write_gpkg(table: GeoDataFrame, path: Path) -> None:
    table.to_file(path, driver="GPKG", layer="counts", engine="pyogrio")


def _write_csv(table: GeoDataFrame, path: Path) -> None:
    table.drop(columns=table.geometry.name).to_csv(path, index=False)


WRITERS: dict[str, Callable[[GeoDataFrame, Path], None]] = {
    ".parquet": _write_parquet,
    ".gpkg": _write_gpkg,
    ".csv": _write_csv,
}


def _writer(to: str | None) -> Callable[[GeoDataFrame, Path], None]:
    suffix = Path(to or ".csv").suffix.lower() if to else ".csv"
    if suffix not in WRITERS:
        raise UsageError(f"--to {to}: expected one of {', '.join(WRITERS)}, got {suffix!r}")
    return WRITERS[suffix]


if __name__ == "__main__":
    sys.exit(run_job("count"))
