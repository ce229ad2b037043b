"""Compact an output: join the tables of each date into one file, and mark duplicates.

OUT/compact/date=YYYY-MM-DD/detections.parquet

The file has the rows of OUT/detections of that date, in Hilbert order over all scenes, so that a
small bbox touches few row groups and, by the page index, few pages of them. Its additional column
`duplicate_of` is the id of the better detection of the same object in another scene, and null
where there is none. The column `hilbert` is the position along the curve, by which the file is
sorted. No row is dropped, and the tables of the scenes do not change.

With `maps`, each date also gets OUT/compact/date=YYYY-MM-DD/detections.pmtiles:
`pipeline.results.compact_map`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from scenesweep import __version__
from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.formats import SceneImage
from scenesweep.pipeline.publish.provenance import Json, read_footer
from scenesweep.pipeline.publish.table import SCHEMA, file_metadata, geo_metadata, with_all_columns
from scenesweep.pipeline.results.compact_map import write_map
from scenesweep.pipeline.results.duplicates import Duplicates, find_duplicates
from scenesweep.pipeline.results.tables import SceneTable, open_scene_table
from scenesweep.pipeline.settings import fingerprint
from scenesweep.pipeline.storage.commit import atomic_write, remove
from scenesweep.pipeline.storage.location import Location, local_copies, parquet
from scenesweep.pipeline.storage.paths import TABLE_PATTERN, Output, date_of, is_day

COMPACT_SCHEMA = SCHEMA.append(pa.field("duplicate_of", pa.string()))
FILE_SCHEMA = COMPACT_SCHEMA.append(pa.field("hilbert", pa.uint32(), nullable=False))
"""The schema of a compacted file; queries give the columns of `COMPACT_SCHEMA`."""
COMPACT_VERSION = 3
"""Increase it when the same tables give other bytes than before."""
ROWS_PER_GROUP = 50_000  # what `gpio check` recommends for spatial queries
_ROWS_IN_MEMORY = 10 * ROWS_PER_GROUP
_ZSTD_LEVEL = 15  # written once, read often


@dataclass(frozen=True, slots=True)
class CompactedDate:
    """The result of one date, for the user.

    `pixel_scenes` counts the scenes without georeference, which are not in the file. `mapped` says
    that the date's map was written now.
    """

    date: str
    status: Literal["done", "up-to-date", "removed"]
    scenes: int = 0
    rows: int = 0
    duplicates: int = 0
    pixel_scenes: int = 0
    mapped: bool = False


@dataclass(frozen=True, slots=True)
class CompactRecord:
    """The record in a compacted file of what it was made from.

    `made_from` has the fingerprint of each scene by id, `images` only the georeferenced scenes,
    whose rows are in the file. `duplicates` is the number of marked rows.
    """

    fingerprint: str
    made_from: Mapping[str, str]
    iou: float
    classes: tuple[str, ...]
    images: tuple[SceneImage, ...]
    versions: Mapping[str, str]
    duplicates: int = 0

    def to_json(self) -> dict[str, object]:
        scenes = {
            image.scene_id: {
                "fingerprint": self.made_from[image.scene_id],
                "name": image.file_name,
                "size": [image.width, image.height],
            }
            for image in self.images
        }
        return {
            "fingerprint": self.fingerprint,
            "made_from": dict(self.made_from),
            "iou": self.iou,
            "classes": list(self.classes),
            "scenes": scenes,
            "versions": dict(self.versions),
            "duplicates": self.duplicates,
        }

    @classmethod
    def from_json(cls, record: Json) -> CompactRecord:
        images = tuple(
            SceneImage(scene_id, scene["name"], *scene["size"])
            for scene_id, scene in record["scenes"].items()
        )
        return cls(
            record["fingerprint"],
            dict(record["made_from"]),
            record["iou"],
            tuple(record["classes"]),
            images,
            dict(record["versions"]),
            record["duplicates"],
        )


def compact(out: Location, *, iou: float, maps: bool = False) -> Iterator[CompactedDate]:
    """Compact every date in OUT whose scenes changed; yield one result per date.

    Two detections of one class, from two scenes of one date, count as one object when their IoU
    exceeds `iou`, or when a scene's edge cuts one of them and most of it lies in the other
    (`pipeline.results.duplicates` has the definition). Scenes without a date are compacted, but
    they may be of different dates, so nothing is marked as a duplicate in them.
    With `maps`, also write a map of each date, unless it is up to date. A map that is out of date
    is removed in any case.

    Raises:
        UnreadableOutput: when nothing is published, or a table cannot be read.
    """
    dates: dict[str, list[Location]] = {}
    for path in Output(out).tables():
        dates.setdefault(date_of(path), []).append(path)
    old = {date_of(path): path for path in Output(out).compacted_tables()}
    if not dates and not old:
        raise UnreadableOutput(
            f"{out}: expected tables in {TABLE_PATTERN}, found none; "
            "is it the --out of scenesweep detect?"
        )
    for date in sorted(old.keys() - dates.keys()):
        remove(Output(out).compacted_map(date))
        remove(old[date])
        yield CompactedDate(date, "removed")
    for date, paths in sorted(dates.items()):
        result = _compact_date(out, date, [open_scene_table(path) for path in paths], iou)
        yield replace(result, mapped=maps and write_map(out, date))


def _compact_date(
    out: Location, date: str, tables: Sequence[SceneTable], iou: float
) -> CompactedDate:
    scenes = [table for table in tables if table.georeferenced]
    target = Output(out).compacted(date)
    before, record = read_record(target), _record(tables, iou)
    result = CompactedDate(
        date,
        "up-to-date",
        len(scenes),
        sum(scene.rows for scene in scenes),
        before.duplicates if before else 0,
        len(tables) - len(scenes),
    )
    if before is not None and before.fingerprint == record.fingerprint:
        return result
    remove(Output(out).compacted_map(date))
    with local_copies([scene.path for scene in scenes], out) as paths:
        scenes = [replace(scene, path=path) for scene, path in zip(scenes, paths, strict=True)]
        duplicates = find_duplicates(scenes, iou) if is_day(date) else Duplicates.none()
        with atomic_write(target, Output(out).aside) as path:
            _write(path, scenes, duplicates, replace(record, duplicates=len(duplicates)))
    return replace(result, status="done", duplicates=len(duplicates))


def _write(
    path: Path,
    scenes: Sequence[SceneTable],
    duplicates: Duplicates,
    record: CompactRecord,
) -> None:
    geo = geo_metadata(_bounds(scenes), georeferenced=True)
    schema = FILE_SCHEMA.with_metadata(file_metadata(geo, record.to_json()))
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        write_page_index=True,
        sorting_columns=pq.SortingColumn.from_ordering(schema, [("hilbert", "ascending")]),
    ) as writer:
        for batch in _batches(scenes, duplicates):
            writer.write_table(batch.cast(schema), row_group_size=ROWS_PER_GROUP)


def compacted_scenes(target: Location) -> dict[str, str]:
    """Return the scenes that a compacted file was made from: ids with their fingerprints.

    Scenes without georeference are among them, though they have no row in the file. Empty when
    the file does not exist, cannot be read, or is of an older version.
    """
    record = read_record(target)
    return {} if record is None else dict(record.made_from)


def read_record(target: Location) -> CompactRecord | None:
    """Return the record of a compacted file; None when it does not exist or cannot be read."""
    with suppress(UnreadableOutput, KeyError, TypeError, ValueError, AttributeError):
        return CompactRecord.from_json(read_footer(target).record)
    return None


def _record(tables: Sequence[SceneTable], iou: float) -> CompactRecord:
    made_from = {table.image.scene_id: table.fingerprint for table in tables}
    scenes = [table for table in tables if table.georeferenced]
    return CompactRecord(
        fingerprint=fingerprint(COMPACT_VERSION, iou, sorted(made_from.items())),
        made_from=made_from,
        iou=iou,
        classes=tuple(sorted({name for scene in scenes for name in scene.classes})),
        images=tuple(scene.image for scene in scenes),
        versions={"scenesweep": __version__, "pyarrow": version("pyarrow")},
    )


def _batches(scenes: Sequence[SceneTable], duplicates: Duplicates) -> Iterator[pa.Table]:
    """Yield all rows in Hilbert order; a row group of a scene is read when it is needed."""
    blocks = [(scene, group) for scene in scenes for group in range(len(scene.groups))]
    starts = np.cumsum([0, *(scene.groups[group] for scene, group in blocks)])
    distances = _hilbert_distances(scenes)
    order = np.argsort(distances, kind="stable")
    for begin in range(0, len(order), _ROWS_IN_MEMORY):
        numbers = order[begin : begin + _ROWS_IN_MEMORY]
        block = np.searchsorted(starts, numbers, side="right") - 1
        parts, positions = [], []
        for number in np.unique(block).tolist():
            here = np.flatnonzero(block == number)
            scene, group = blocks[number]
            parts.append(_read_group(scene, group).take(numbers[here] - starts[number]))
            positions.append(here)
        table = pa.concat_tables(parts).take(np.argsort(np.concatenate(positions)))
        duplicate_of = np.full(len(numbers), None, object)
        _, here, found = np.intersect1d(numbers, duplicates.rows, return_indices=True)
        duplicate_of[here] = np.array(duplicates.of, object)[found]
        duplicate_column = pa.array(duplicate_of, pa.string())
        table = table.append_column(COMPACT_SCHEMA.field("duplicate_of"), duplicate_column)
        yield table.append_column(FILE_SCHEMA.field("hilbert"), pa.array(distances[numbers]))


def _read_group(scene: SceneTable, group: int) -> pa.Table:
    """Read one row group of a scene's table, which must not have changed since it was opened."""
    with pq.ParquetFile(parquet(scene.path)) as file:
        groups = tuple(
            file.metadata.row_group(number).num_rows
            for number in range(file.metadata.num_row_groups)
        )
        if groups != scene.groups:
            raise UnreadableOutput(
                f"{scene.path}: changed while compact read it; run compact again"
            )
        rows = file.read_row_group(group).replace_schema_metadata(None)
    return with_all_columns(rows)


def _hilbert_distances(scenes: Sequence[SceneTable]) -> NDArray[np.uint32]:
    """Return the position of each row's centre along a Hilbert curve through all scenes."""
    from geopandas import GeoSeries  # slow to import: most of a second, with pandas

    bounds, distances = _bounds(scenes), []
    for scene in scenes:
        table = pq.read_table(
            parquet(scene.path), columns=["center_lon", "center_lat"], partitioning=None
        )
        centres = GeoSeries(shapely.points(table["center_lon"], table["center_lat"]))
        if len(table):
            distances.append(centres.hilbert_distance(total_bounds=bounds).to_numpy())
    return np.concatenate([np.zeros(0, np.uint32), *distances]).astype(np.uint32)


def _bounds(scenes: Sequence[SceneTable]) -> list[float] | None:
    bounds = np.array([scene.bounds for scene in scenes if scene.bounds is not None])
    if len(bounds) == 0:
        return None
    return [*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist()]
