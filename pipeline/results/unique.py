"""Read the detections of one date, each object once.

An object in several overlapping scenes of one date has a detection in each of them. These readers
leave out the duplicates of `pipeline.results.duplicates`, at its usual IoU, whether or not the
date was compacted. Scenes without a date may be of different days: nothing is left out there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.table import SCHEMA
from scenesweep.pipeline.results.duplicates import Duplicates, find_duplicates
from scenesweep.pipeline.results.tables import SceneTable, open_scene_table
from scenesweep.pipeline.storage.location import Location, local_copies
from scenesweep.pipeline.storage.paths import date_of, is_day

SAME_OBJECT_IOU = 0.5
"""The default of `scenesweep compact --iou`."""


@dataclass(frozen=True, slots=True)
class DateScenes:
    """The georeferenced scenes of one date, and the number of those without georeference.

    `made_from` has the fingerprints of all its scenes by id.
    """

    date: str
    scenes: tuple[SceneTable, ...]
    pixel_scenes: int
    made_from: Mapping[str, str]


def open_date(date: str, paths: Sequence[Location]) -> DateScenes:
    """Read the footers of the tables of a date.

    Raises:
        UnreadableOutput: when a file is not the table of a swept scene.
    """
    tables = [open_scene_table(path) for path in paths]
    scenes = tuple(table for table in tables if table.georeferenced)
    made_from = {table.image.scene_id: table.fingerprint for table in tables}
    return DateScenes(date, scenes, len(tables) - len(scenes), made_from)


def by_date(paths: Sequence[Location]) -> dict[str, list[Location]]:
    """Group tables by their date, in ascending order."""
    groups: dict[str, list[Location]] = {}
    for path in paths:
        groups.setdefault(date_of(path), []).append(path)
    return dict(sorted(groups.items()))


def unique_rows(night: DateScenes, out: Location, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows of a date without duplicates, one row group at a time.

    `columns` are names of `SCHEMA`. A column that a table of an earlier version lacks is null.

    Raises:
        UnreadableOutput: when a table cannot be read.
    """
    with local_copies([scene.path for scene in night.scenes], out) as paths:
        scenes = [replace(s, path=path) for s, path in zip(night.scenes, paths, strict=True)]
        duplicates = Duplicates.none()
        if len(scenes) > 1 and is_day(night.date):
            duplicates = find_duplicates(scenes, SAME_OBJECT_IOU)
        first = 0
        for scene in scenes:
            for rows in _row_groups(scene, columns):
                numbers = np.arange(first, first + len(rows))
                first += len(rows)
                twice = np.isin(numbers, duplicates.rows, assume_unique=True)
                yield rows.filter(pa.array(~twice)) if twice.any() else rows


def _row_groups(scene: SceneTable, columns: Sequence[str]) -> Iterator[pa.Table]:
    schema = pa.schema([SCHEMA.field(name) for name in columns])
    try:
        with pq.ParquetFile(scene.path) as file:
            there = [name for name in columns if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=there)
                yield pa.table([_column(rows, field) for field in schema], schema=schema)
    except (OSError, pa.ArrowInvalid) as error:
        raise UnreadableOutput(f"{scene.path}: cannot be read: {error}") from error


def _column(rows: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in rows.column_names:
        return pa.nulls(len(rows), field.type)
    return rows[field.name].cast(field.type)
