"""Compact a night: the tables of its scenes as one, for queries from afar.

OUT/compact/date=YYYY-MM-DD/detections.parquet

Row for row what OUT/detections has, in Hilbert order over all scenes, so that a small bbox meets
few row groups; `duplicate_of` names the better detection of the same object in another scene, and
is null where there is none. Nothing is left out, and the scenes' own tables stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from scenesweep import __version__
from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.table import SCHEMA, file_metadata, geo_metadata
from scenesweep.pipeline.results.duplicates import Duplicates, find_duplicates
from scenesweep.pipeline.results.tables import SceneTable, open_scene_table, read_footer
from scenesweep.pipeline.settings import fingerprint
from scenesweep.pipeline.storage.commit import atomic_write, remove
from scenesweep.pipeline.storage.location import Location, list_matching, local_copies, parquet
from scenesweep.pipeline.storage.paths import COMPACT, PLAIN, date_of, is_day

COMPACT_SCHEMA = SCHEMA.append(pa.field("duplicate_of", pa.string()))
COMPACT_VERSION = 2
"""Raised when the same tables give another file than before."""
ROWS_PER_GROUP = 100_000
_ROWS_IN_MEMORY = 5 * ROWS_PER_GROUP


@dataclass(frozen=True, slots=True)
class CompactedDate:
    """What became of one date. `pixel_scenes` have no georeference, and are not in the file."""

    date: str
    status: Literal["done", "up-to-date", "removed"]
    scenes: int = 0
    rows: int = 0
    duplicates: int = 0
    pixel_scenes: int = 0


def compact(out: Location, *, iou: float) -> Iterator[CompactedDate]:
    """Compact every date in OUT whose scenes changed; give the dates one after the other.

    Two detections of one class, from two scenes of one day, count as one object when their IoU
    exceeds `iou`, or when a scene's edge cut one of them and most of it lies in the other
    (`pipeline.results.duplicates` has the definition). Scenes without a date are compacted, but
    nobody knows whether they are of one night: nothing is marked in them.

    Raises:
        UnreadableOutput: when there is nothing published, or a table cannot be read.
    """
    dates: dict[str, list[Location]] = {}
    for path in list_matching(out, PLAIN):
        dates.setdefault(date_of(path), []).append(path)
    old = {date_of(path): path for path in list_matching(out, COMPACT)}
    if not dates and not old:
        raise UnreadableOutput(f"{out}: expected tables in {PLAIN}, found none")
    for date in sorted(old.keys() - dates.keys()):
        remove(old[date])
        yield CompactedDate(date, "removed")
    for date, paths in sorted(dates.items()):
        yield _compact_date(out, date, [open_scene_table(path) for path in paths], iou)


def _compact_date(
    out: Location, date: str, tables: Sequence[SceneTable], iou: float
) -> CompactedDate:
    scenes = [table for table in tables if table.georeferenced]
    target = out / "compact" / f"date={date}" / "detections.parquet"
    before, provenance = _provenance_of(target), _provenance(tables, iou)
    night = CompactedDate(
        date,
        "up-to-date",
        len(scenes),
        sum(scene.rows for scene in scenes),
        before.get("duplicates", 0),
        len(tables) - len(scenes),
    )
    if before.get("fingerprint") == provenance["fingerprint"]:
        return night
    with local_copies([scene.path for scene in scenes], out) as paths:
        scenes = [replace(scene, path=path) for scene, path in zip(scenes, paths, strict=True)]
        duplicates = find_duplicates(scenes, iou) if is_day(date) else Duplicates.none()
        provenance |= {"duplicates": len(duplicates)}
        with atomic_write(target, out / ".work" / "aside") as path:
            _write(path, scenes, duplicates, provenance)
    return replace(night, status="done", duplicates=len(duplicates))


def _write(
    path: Path,
    scenes: Sequence[SceneTable],
    duplicates: Duplicates,
    provenance: Mapping[str, object],
) -> None:
    geo = geo_metadata(_bounds(scenes), georeferenced=True)
    schema = COMPACT_SCHEMA.with_metadata(file_metadata(geo, provenance))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(scenes, duplicates):
            writer.write_table(batch.cast(schema), row_group_size=ROWS_PER_GROUP)


def compacted_scenes(target: Location) -> dict[str, str]:
    """Return the scenes that a compacted file was made of: ids with their fingerprints.

    Those without georeference, which have no row in it, are among them. Empty when the file is
    not there, cannot be read, or is of an older version.
    """
    made: dict[str, str] = _provenance_of(target).get("made_from", {})
    return made


def _provenance(tables: Sequence[SceneTable], iou: float) -> dict[str, Any]:
    """Say what a file is made from, and give what its readers need of the scenes."""
    made_from = {table.picture.scene_id: table.fingerprint for table in tables}
    inputs = sorted(made_from.items())
    scenes = [table for table in tables if table.georeferenced]
    return {
        "fingerprint": fingerprint(COMPACT_VERSION, iou, inputs),
        "made_from": made_from,
        "iou": iou,
        "classes": sorted({name for scene in scenes for name in scene.classes}),
        "scenes": {
            scene.picture.scene_id: {
                "fingerprint": scene.fingerprint,
                "name": scene.picture.file_name,
                "size": [scene.picture.width, scene.picture.height],
            }
            for scene in scenes
        },
        "versions": {"scenesweep": __version__, "pyarrow": version("pyarrow")},
    }


def _provenance_of(target: Location) -> dict[str, Any]:
    """Return what a compacted file says of itself; nothing when it is not there or broken."""
    with suppress(UnreadableOutput):
        return read_footer(target)[2]
    return {}


def _batches(scenes: Sequence[SceneTable], duplicates: Duplicates) -> Iterator[pa.Table]:
    """Give all rows in Hilbert order; row groups of scenes are read when their turn comes."""
    blocks = [(scene, group) for scene in scenes for group in range(len(scene.groups))]
    starts = np.cumsum([0, *(scene.groups[group] for scene, group in blocks)])
    order = _hilbert_order(scenes)
    for begin in range(0, len(order), _ROWS_IN_MEMORY):
        wanted = order[begin : begin + _ROWS_IN_MEMORY]
        block = np.searchsorted(starts, wanted, side="right") - 1
        parts, places = [], []
        for number in np.unique(block).tolist():
            here = np.flatnonzero(block == number)
            scene, group = blocks[number]
            parts.append(_read_group(scene, group).take(wanted[here] - starts[number]))
            places.append(here)
        table = pa.concat_tables(parts).take(np.argsort(np.concatenate(places)))
        marks = np.full(len(wanted), None, object)
        _, mine, theirs = np.intersect1d(wanted, duplicates.rows, return_indices=True)
        marks[mine] = np.array(duplicates.of, object)[theirs]
        yield table.append_column(
            COMPACT_SCHEMA.field("duplicate_of"), pa.array(marks, pa.string())
        )


def _read_group(scene: SceneTable, group: int) -> pa.Table:
    """Read rows of a scene's table; it must be the one that was looked at before."""
    with pq.ParquetFile(parquet(scene.path)) as file:
        groups = tuple(
            file.metadata.row_group(number).num_rows
            for number in range(file.metadata.num_row_groups)
        )
        if groups != scene.groups:
            raise UnreadableOutput(f"{scene.path}: changed while it was read; run compact again")
        return file.read_row_group(group, columns=SCHEMA.names).replace_schema_metadata(None)


def _hilbert_order(scenes: Sequence[SceneTable]) -> NDArray[np.int64]:
    """Return the numbers of all rows, ordered along a Hilbert curve through their centres."""
    bounds, distances = _bounds(scenes), []
    for scene in scenes:
        table = pq.read_table(
            parquet(scene.path), columns=["center_lon", "center_lat"], partitioning=None
        )
        centres = gpd.GeoSeries(shapely.points(table["center_lon"], table["center_lat"]))
        if len(table):
            distances.append(centres.hilbert_distance(total_bounds=bounds).to_numpy())
    if not distances:
        return np.zeros(0, np.int64)
    return np.argsort(np.concatenate(distances), kind="stable")


def _bounds(scenes: Sequence[SceneTable]) -> list[float] | None:
    bounds = np.array([scene.bounds for scene in scenes if scene.bounds is not None])
    if len(bounds) == 0:
        return None
    return [*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist()]
