"""Find detections in OUT: DuckDB over the published tables, or over the compacted ones.

A bbox is compared with the tables' `bbox` column, whose statistics let DuckDB skip row groups.
Values from the user are bound as parameters and never become part of the SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scenesweep.model.errors import needs_extra
from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.formats import Layer, SceneImage
from scenesweep.pipeline.publish.provenance import read_footer, read_provenance
from scenesweep.pipeline.publish.table import SCHEMA
from scenesweep.pipeline.results.compact import COMPACT_SCHEMA, compacted_scenes, read_record
from scenesweep.pipeline.results.zones import Zones
from scenesweep.pipeline.storage.location import Location, local_copies
from scenesweep.pipeline.storage.paths import (
    COMPACT_PATTERN,
    TABLE_PATTERN,
    Output,
    date_of,
    is_day,
)

if TYPE_CHECKING:
    import duckdb

LAYER = "detections"
"""The name of the layer in files of a query."""
_NEAR_ANTIMERIDIAN = 179.9
_BATCH_ROWS = 100_000
_NO_ROWS = "no_rows"  # the empty table of the schema: it adds columns that all tables lack
_TABLES = "read_parquet($files, hive_partitioning = false)"
_TABLES_OF_ANY_VERSION = (
    "(select * from read_parquet($files, hive_partitioning = false, union_by_name = true) "
    "union all by name select * from no_rows)"
)
"""With null for columns that tables of an earlier version lack. It opens all tables at first."""
_IS_NEW = (
    "detection_id in (select object_id from read_parquet($objects) "
    "where first_seen >= $new_since and observed_before >= $looks and confirmed)"
)
Bounds = tuple[float, float, float, float]
"""West, south, east, north in degrees; west above east across the antimeridian."""


@dataclass(frozen=True, slots=True)
class Query:
    """The conditions of a query; an empty field sets no condition.

    `bbox` is west, south, east, north in degrees, with west above east across the antimeridian;
    it selects the boxes whose own bounds touch it. `first` and `last` are dates of acquisition,
    both included; `undated` selects only the scenes without such a date. `compacted` reads the
    tables of OUT/compact, and `unique` also drops the rows that are marked there as duplicates.
    `new_since` selects the first detections of the objects that are new since a date: confirmed,
    first seen on it or later, at a place that was observed on at least `looks` dates before.
    """

    bbox: tuple[float, float, float, float] | None = None
    classes: tuple[str, ...] = ()
    scenes: tuple[str, ...] = ()
    min_score: float = 0.0
    first: date | None = None
    last: date | None = None
    compacted: bool = False
    unique: bool = False
    undated: bool = False
    new_since: date | None = None
    looks: int = 1


def find(
    out: Location, query: Query, *, area: Zones | None = None, georeferenced: bool = False
) -> pa.Table:
    """Return the rows that a query selects, in the order of the files.

    With `area`, only rows with their centre in one of its polygons. With a bbox, an area or
    `georeferenced`, rows of scenes without georeference are dropped. Rows are read in batches, so
    only the selected ones are in memory.

    Raises:
        UnreadableOutput: when OUT has no such tables, or they cannot be read.
        MissingExtra: when DuckDB is not installed.
    """
    with needs_extra("query"):
        import duckdb
    schema = _schema(query)
    files = table_files(out, query)
    if not files:
        return schema.empty_table()
    try:
        with (
            ExitStack() as stack,
            local_copies(files, out) as here,
            duckdb.connect() as connection,
        ):
            bounds = None if area is None else area.bounds()
            sql, values = as_sql(query, here, within=bounds, georeferenced=georeferenced)
            if query.new_since is not None:
                values["objects"] = str(tracked_objects(out, stack))
            # Geometry stays WKB: its type would need an extension that is not always there.
            connection.execute("set enable_geoparquet_conversion = false")
            try:
                return _rows(connection, sql, values, schema=schema, area=area)
            except (duckdb.BinderException, duckdb.InvalidInputException):
                connection.register(_NO_ROWS, schema.empty_table())
                sql = sql.replace(_TABLES, _TABLES_OF_ANY_VERSION)
                return _rows(connection, sql, values, schema=schema, area=area)
    except (duckdb.Error, pa.ArrowInvalid) as error:
        raise UnreadableOutput(f"{out}: cannot be queried: {str(error).splitlines()[0]}") from error


def _rows(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    values: Mapping[str, Any],
    *,
    schema: pa.Schema,
    area: Zones | None,
) -> pa.Table:
    """Return the rows of a query; only those inside the area are in memory."""
    found = connection.sql(sql, params=values).arrow(_BATCH_ROWS)
    batches = (inside(pa.Table.from_batches([batch]), area) for batch in found)
    return pa.concat_tables([schema.empty_table(), *(batch.cast(schema) for batch in batches)])


def inside(rows: pa.Table, area: Zones | None) -> pa.Table:
    """Return the rows with their centre in one of some polygons; all rows without an area."""
    if area is None:
        return rows
    lon, lat = (rows[name].to_numpy() for name in ("center_lon", "center_lat"))
    return rows.filter(pa.array(area.contain(lon, lat)))


def tracked_objects(out: Location, stack: ExitStack) -> Path:
    """Give the table of objects as a file on disk, for the time of `stack`.

    Raises:
        UnreadableOutput: when OUT was not tracked.
    """
    path = Output(out).tracked_objects
    if not path.is_file():
        raise UnreadableOutput(f"{out}: its objects are not tracked; run scenesweep track {out}")
    (copy,) = stack.enter_context(local_copies([path], out))
    return copy


def as_sql(
    query: Query,
    files: Sequence[Location],
    *,
    within: Bounds | None = None,
    georeferenced: bool = False,
) -> tuple[str, dict[str, Any]]:
    """Return a query over some tables as SQL for DuckDB, and the values of its parameters.

    With `within`, only boxes that touch these bounds in degrees. With `new_since`, the caller
    adds the parameter `objects`: the path of the table of objects.
    """
    boxes = [bounds for bounds in (query.bbox, within) if bounds is not None]
    conditions, values = _conditions(query, boxes, georeferenced=georeferenced)
    sql = (
        f"select {', '.join(_schema(query).names)} "  # noqa: S608  # our own names and conditions
        f"from {_TABLES} "
        f"where {' and '.join(conditions)}"
    )
    return sql, values | {"files": [str(path) for path in files]}


def table_files(out: Location, query: Query) -> list[Location]:
    """Return the tables on the dates of a query, sorted by name.

    Raises:
        UnreadableOutput: when OUT has no table at all, on any date.
    """
    compacted = query.compacted or query.unique
    output = Output(out)
    paths = output.compacted_tables() if compacted else output.tables()
    if not paths:
        pattern = COMPACT_PATTERN if compacted else TABLE_PATTERN
        advice = (
            f"run scenesweep compact {out}"
            if compacted
            else "is it the --out of scenesweep detect?"
        )
        raise UnreadableOutput(f"{out}: expected tables in {pattern}, found none; {advice}")
    return _on_dates(paths, query)


def _on_dates(paths: Sequence[Location], query: Query) -> list[Location]:
    if query.undated:
        return [path for path in paths if not is_day(date_of(path))]
    if query.first is None and query.last is None:
        return list(paths)
    first = (query.first or date.min).isoformat()
    last = (query.last or date.max).isoformat()
    return [p for p in paths if is_day(date_of(p)) and first <= date_of(p) <= last]


def dates_in(out: Location, query: Query) -> list[str]:
    """Return all dates of the tables, plain or compacted, that a query reads."""
    everything = replace(query, first=None, last=None, undated=False)
    return sorted({date_of(path) for path in table_files(out, everything)})


def scenes_in(out: Location, query: Query) -> list[str]:
    """Return the ids of all scenes on the dates of a query."""
    paths = table_files(out, query)
    if query.compacted or query.unique:
        return sorted({name for path in paths for name in compacted_scenes(path)})
    return sorted({path.stem for path in paths})


def stale_dates(out: Location, query: Query) -> list[str]:
    """Return the dates of a query whose compacted table is older than their scenes.

    A date is stale when it has no compacted table, when a scene was added or removed, or when a
    scene has another fingerprint. Only tables that were written after the compacted one are
    opened: opening all of them would cost the time that compacting saves.
    """
    compacted = {date_of(path): path for path in _on_dates(Output(out).compacted_tables(), query)}
    tables: dict[str, list[Location]] = {date: [] for date in compacted}
    for path in _on_dates(Output(out).tables(), query):
        tables.setdefault(date_of(path), []).append(path)
    return [
        date
        for date, paths in sorted(tables.items())
        if date not in compacted or _is_stale(compacted[date], paths)
    ]


def _is_stale(compacted: Location, tables: Sequence[Location]) -> bool:
    made_from, written = compacted_scenes(compacted), compacted.stat().st_mtime_ns
    if {path.stem for path in tables} != made_from.keys():
        return True
    newer = [path for path in tables if path.stat().st_mtime_ns >= written]
    try:
        now = {path.stem: read_footer(path).record.get("fingerprint") for path in newer}
    except UnreadableOutput:
        return True
    return any(fingerprint != made_from[name] for name, fingerprint in now.items())


def as_layer(table: pa.Table, out: Location, query: Query) -> Layer:
    """Return the rows of a query with the scenes and classes that they may come from.

    Raises:
        UnreadableOutput: when a table of the query cannot be read.
    """
    images: dict[str, SceneImage] = {}
    classes: set[str] = set()
    for path in table_files(out, query):
        of_table, names = _contents(path, query)
        images |= {image.scene_id: image for image in of_table}
        classes.update(names)
    scene_ids = sorted(set(table["scene_id"].to_pylist()))
    return Layer(LAYER, table, tuple(sorted(classes)), tuple(images[name] for name in scene_ids))


def _schema(query: Query) -> pa.Schema:
    return COMPACT_SCHEMA if query.compacted or query.unique else SCHEMA


def _contents(path: Location, query: Query) -> tuple[tuple[SceneImage, ...], tuple[str, ...]]:
    """Return the scenes and the model's classes that a table records."""
    if query.compacted or query.unique:
        record = read_record(path)
        if record is None:
            raise UnreadableOutput(f"{path}: not a table of scenesweep compact; run it again")
        return record.images, record.classes
    provenance = read_provenance(path)
    source = provenance.source
    return (SceneImage(path.stem, source.name, *source.size),), provenance.model.classes


def _conditions(
    query: Query, boxes: Sequence[Bounds], *, georeferenced: bool
) -> tuple[list[str], dict[str, Any]]:
    conditions = ["score >= $min_score"]
    given: dict[str, Any] = {"min_score": query.min_score}
    for column, names in (("class_name", query.classes), ("scene_id", query.scenes)):
        if names:
            conditions.append(f"list_contains(${column}, {column})")
            given[column] = list(names)
    if query.unique:
        conditions.append("duplicate_of is null")
    if georeferenced or boxes:
        conditions.append("crs is not null")
    for number, box in enumerate(boxes):
        condition, values = _touches(box, f"box{number}_")
        conditions.append(condition)
        given |= values
    if query.new_since is not None:
        conditions.append(_IS_NEW)
        given |= {"new_since": query.new_since, "looks": query.looks}
    return conditions, given


def _touches(box: Bounds, name: str) -> tuple[str, dict[str, float]]:
    """Return the condition that a row's bounds touch a box, and its values with their names."""
    west, south, east, north = box
    given = {f"{name}south": south, f"{name}north": north}
    either = []
    for number, (start, end) in enumerate(_spans(west, east)):
        given |= {f"{name}west{number}": start, f"{name}east{number}": end}
        either.append(f"(bbox.xmax >= ${name}west{number} and bbox.xmin <= ${name}east{number})")
    above_and_below = f"bbox.ymax >= ${name}south and bbox.ymin <= ${name}north"
    return f"{above_and_below} and ({' or '.join(either)})", given


def _spans(west: float, east: float) -> Sequence[tuple[float, float]]:
    """Return the spans of longitude that a bbox covers; boxes may extend a little beyond 180."""
    if west > east:
        return (west, 181.0), (-181.0, east)
    spans = [(west, east)]
    if east > _NEAR_ANTIMERIDIAN:
        spans.append((west - 360, east - 360))
    if west < -_NEAR_ANTIMERIDIAN:
        spans.append((west + 360, east + 360))
    return spans
