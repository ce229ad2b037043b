"""Link the detections of all dates of an output to objects.

    OUT/tracks/date=YYYY-MM-DD/sightings.parquet     detections of a date with their objects
    OUT/tracks/observed.parquet                      ground that was observed on each date
    OUT/tracks/objects.parquet                       the objects; written last, with the record

Dates are linked from the first to the last. If only later dates were added since the last time,
only these are linked. If an older date was added, changed or removed, all dates are linked again.
So the files depend on what is published, and not on when it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date as Date
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.provenance import read_footer
from scenesweep.pipeline.publish.table import SCHEMA
from scenesweep.pipeline.results.observed import observed_ground
from scenesweep.pipeline.results.query import Query, table_files
from scenesweep.pipeline.results.tables import SceneTable
from scenesweep.pipeline.results.tracks.objects import (
    Linking,
    Objects,
    Sightings,
    step,
    with_history,
)
from scenesweep.pipeline.results.tracks.tables import (
    TracksRecord,
    ground_table,
    objects_table,
    read_ground,
    read_objects,
    read_tracks,
    sightings_table,
    write,
)
from scenesweep.pipeline.results.unique import DateScenes, by_date, open_date, unique_rows
from scenesweep.pipeline.results.zones import Numbers, Polygons, Zones
from scenesweep.pipeline.storage.commit import atomic_write, remove
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output, date_of, is_day

_COLUMNS = ("detection_id", "scene_id", "class_name", "score", "center_lon", "center_lat")
_TWO_DATES = 2
_FIRST_DAY = Date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Tracked:
    """The result of one date, for the user: its sightings, and its objects by state."""

    date: str
    status: Literal["done", "up-to-date"]
    sightings: int = 0
    objects: int = 0
    new: int = 0
    gone: int = 0
    unobserved: int = 0
    outlines: int = 0


@dataclass(slots=True)
class _History:
    """What is known after some dates; `classes` are in order of their number."""

    objects: Objects
    classes: list[str]
    grounds: dict[str, Polygons]
    record: TracksRecord


def track(out: Location, linking: Linking, *, rebuild: bool = False) -> Iterator[Tracked]:
    """Link all dates that are not linked yet; the tables of objects are written at the end.

    Raises:
        UnreadableOutput: when OUT has no tables of a known date, or one cannot be read.
        OutputError: when a file cannot be written.
    """
    dates = tracked_dates(out)
    output = Output(out)
    done = None if rebuild else _unchanged(out, linking, dates)
    if done is not None and len(done.made_from) == len(dates):
        yield Tracked(max(dates), "up-to-date", outlines=done.outlines)
        return
    history = _read(out, done) if done is not None else _History(*_nothing(), TracksRecord(linking))
    if done is None:
        remove(output.tracked_objects)  # the sightings that follow are not its own
    for date in sorted(dates.keys() - history.record.made_from.keys()):
        yield _link(history, open_date(date, dates[date]), out)
    for path in output.sightings_tables():
        if date_of(path) not in dates:
            remove(path)
    record = history.record.to_json()
    with atomic_write(output.tracked_ground, output.aside) as path:
        write(ground_table(history.grounds), path, "Polygon", {})
    with atomic_write(output.tracked_objects, output.aside) as path:
        write(objects_table(history.objects, history.classes), path, "Point", record)


def tracked_dates(out: Location) -> dict[str, list[Location]]:
    """Return the tables of each date; scenes without a date are not tracked.

    Raises:
        UnreadableOutput: when no scene has a date.
    """
    dates = {day: paths for day, paths in by_date(table_files(out, Query())).items() if is_day(day)}
    if not dates:
        raise UnreadableOutput(
            f"{out}: expected scenes with a date of acquisition, found none; sweep them with "
            "--set scenes.acquired_at=2026-11-20"
        )
    return dates


def untracked_dates(out: Location) -> list[str]:
    """Return the dates that are not tracked, or changed since; none if OUT was never tracked."""
    record = read_tracks(Output(out).tracked_objects)
    if record is None:
        return []
    dates = tracked_dates(out)
    changed = {day for day in record.made_from if not _is_same(out, record, day, dates.get(day))}
    return sorted(changed | (dates.keys() - record.made_from.keys()))


def usual_looks(out: Location) -> int:
    """Return how many dates must have observed a place before an object there counts as new.

    A detector that misses one object in ten misses it on two dates in one of a hundred cases, so
    two dates are asked for if at least three are tracked.
    """
    record = read_tracks(Output(out).tracked_objects)
    return 2 if record is not None and len(record.made_from) > _TWO_DATES else 1


def _nothing() -> tuple[Objects, list[str], dict[str, Polygons]]:
    return Objects.none(), [], {}


def _unchanged(
    out: Location, linking: Linking, dates: Mapping[str, Sequence[Location]]
) -> TracksRecord | None:
    """Return the record of the tables if all that they were made from is still so."""
    record = read_tracks(Output(out).tracked_objects)
    if record is None or record.linking != linking or not record.made_from:
        return None
    later = dates.keys() - record.made_from.keys()
    if later and min(later) < max(record.made_from):
        return None
    same = all(_is_same(out, record, date, dates.get(date)) for date in record.made_from)
    return record if same else None


def _is_same(
    out: Location, record: TracksRecord, date: str, paths: Sequence[Location] | None
) -> bool:
    """Return whether the scenes of a date are those of the record.

    Only tables that were written after the tracks are opened.
    """
    made_from = record.made_from[date]
    if {path.stem for path in paths or ()} != made_from.keys():
        return False
    written = Output(out).tracked_objects.stat().st_mtime_ns
    newer = [path for path in paths or () if path.stat().st_mtime_ns >= written]
    try:
        now = {path.stem: read_footer(path).record.get("fingerprint") for path in newer}
    except UnreadableOutput:
        return False
    return all(fingerprint == made_from[name] for name, fingerprint in now.items())


def _read(out: Location, record: TracksRecord) -> _History:
    objects, classes = read_objects(Output(out).tracked_objects)
    return _History(objects, classes, read_ground(Output(out).tracked_ground), record)


def _link(history: _History, night: DateScenes, out: Location) -> Tracked:
    """Link the sightings of the next date, write them, and add them to the history."""
    linking, output = history.record.linking, Output(out)
    rows = _rows(night, out, linking)
    day = (Date.fromisoformat(night.date) - _FIRST_DAY).days
    ground = observed_ground(night, out, estimate=True)
    sightings = _sightings(rows, night, history.classes, linking)
    result = step(history.objects, sightings, Zones.of(ground.parts), day, linking)
    history.objects = with_history(result.objects, day, *_earlier(history.grounds))
    object_id = history.objects.object_id.take(pa.array(result.object_of))
    with atomic_write(output.sightings(night.date), output.aside) as path:
        write(sightings_table(rows, object_id, result.distance_m), path, "Point", {})
    history.grounds[night.date] = ground.parts
    history.record = _with_date(history.record, night, ground.without)
    return _summary(history.objects, night.date, len(rows), ground.without)


def _with_date(record: TracksRecord, night: DateScenes, outlines: int) -> TracksRecord:
    made_from = {**record.made_from, night.date: night.made_from}
    return replace(record, made_from=made_from, outlines=record.outlines + outlines)


def _summary(objects: Objects, date: str, sightings: int, outlines: int) -> Tracked:
    new, _, gone, unobserved = np.bincount(objects.state, minlength=4).tolist()
    return Tracked(date, "done", sightings, len(objects), new, gone, unobserved, outlines)


def _rows(night: DateScenes, out: Location, linking: Linking) -> pa.Table:
    """Return the detections of a date in the order of its tables, without duplicates."""
    least = pa.scalar(linking.min_score, pa.float32())
    batches = [
        rows.filter(pc.field("score") >= least) if linking.min_score else rows
        for rows in unique_rows(night, out, _COLUMNS)
    ]
    schema = pa.schema([SCHEMA.field(name) for name in _COLUMNS])
    return pa.concat_tables([schema.empty_table(), *batches])


def _sightings(
    rows: pa.Table, night: DateScenes, classes: list[str], linking: Linking
) -> Sightings:
    """Return rows as sightings; new classes get the next numbers, in the order of the rows."""
    names = rows["class_name"].combine_chunks().dictionary_encode()
    for name in names.dictionary.to_pylist():
        if name not in classes:
            classes.append(name)
    number = np.array([classes.index(name) for name in names.dictionary.to_pylist()], np.int64)
    thresholds = {scene.image.scene_id: _score_threshold(scene) for scene in night.scenes}
    scenes = rows["scene_id"].combine_chunks().dictionary_encode()
    least = np.array([thresholds[name] for name in scenes.dictionary.to_pylist()])
    least = np.minimum(least + linking.confirm_above, 1.0)
    score = rows["score"].to_numpy()
    return Sightings(
        rows["detection_id"].combine_chunks(),
        number[names.indices.to_numpy()],
        rows["center_lon"].to_numpy(),
        rows["center_lat"].to_numpy(),
        score >= least[scenes.indices.to_numpy()],
    )


def _score_threshold(scene: SceneTable) -> float:
    """Return the lowest score that detect kept in a scene."""
    return float(scene.provenance.settings.get("detect", {}).get("score_threshold") or 0.0)


def _earlier(grounds: Mapping[str, Polygons]) -> tuple[Zones, Numbers]:
    """Return the ground of all dates, and the number of the date of each polygon."""
    parts = np.concatenate([np.zeros(0, object), *grounds.values()])
    return Zones.of(parts), np.repeat(np.arange(len(grounds)), [len(p) for p in grounds.values()])
