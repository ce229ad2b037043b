"""The tables of objects, of sightings and of observed ground in OUT/tracks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from scenesweep import __version__
from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.provenance import read_footer
from scenesweep.pipeline.publish.table import file_metadata, geo_metadata
from scenesweep.pipeline.results.tracks.objects import STATES, Linking, Objects
from scenesweep.pipeline.results.zones import Polygons
from scenesweep.pipeline.storage.location import Location, parquet

TRACKS_VERSION = 1
"""Increase it when the same tables give other bytes than before."""
ROWS_PER_GROUP = 100_000
_WHOLE_NUMBERS = (
    *("first_seen", "last_seen"),
    *("times_seen", "times_observed", "observed_before", "missed"),
)

OBJECTS = pa.schema(
    [
        ("object_id", pa.string()),
        ("class_name", pa.string()),
        ("state", pa.string()),
        ("first_seen", pa.date32()),
        ("last_seen", pa.date32()),
        ("times_seen", pa.int32()),
        ("times_observed", pa.int32()),
        ("observed_before", pa.int32()),
        ("missed", pa.int32()),
        ("confirmed", pa.bool_()),
        ("center_lon", pa.float64()),
        ("center_lat", pa.float64()),
        ("geometry", pa.binary()),
    ]
)
SIGHTINGS = pa.schema(
    [
        ("detection_id", pa.string()),
        ("object_id", pa.string()),
        ("scene_id", pa.string()),
        ("class_name", pa.string()),
        ("score", pa.float32()),
        ("distance_m", pa.float64()),
        ("center_lon", pa.float64()),
        ("center_lat", pa.float64()),
        ("geometry", pa.binary()),
    ]
)
GROUND = pa.schema([("date", pa.string()), ("geometry", pa.binary())])

OBJECT_COLUMNS = {
    "object_id": "The `detection_id` of its first sighting.",
    "class_name": "Class of the object.",
    "state": "On the last date: `new` (first seen on it), `again` (known before and not gone), "
    "`gone` (not seen at its last observations), `unobserved` (its place was not observed).",
    "first_seen": "Date of the first sighting.",
    "last_seen": "Date of the last sighting.",
    "times_seen": "Number of dates with a sighting.",
    "times_observed": "Number of dates from `first_seen` on that observed its place.",
    "observed_before": "Number of dates before `first_seen` that observed its place. If it is 0, "
    "nobody knows how long the object had been there.",
    "missed": "Number of last observations in a row without a sighting.",
    "confirmed": "True if one of its sightings has a score clearly above the threshold.",
    "center_lon": "Longitude of the mean position in degrees.",
    "center_lat": "Latitude of the mean position in degrees.",
    "geometry": "WKB point of the mean position in OGC:CRS84.",
}
"""What each column of `OBJECTS` holds; docs/reference/tracks.md shows it."""
SIGHTING_COLUMNS = {
    "detection_id": "Id of the detection, as in the table of detections.",
    "object_id": "Id of its object.",
    "scene_id": "Id of the scene.",
    "class_name": "Class of the detection.",
    "score": "Score of the detection.",
    "distance_m": "Distance to the position of the object before this date. Null for the first "
    "sighting.",
    "center_lon": "Longitude of the detection's centre in degrees.",
    "center_lat": "Latitude of the detection's centre in degrees.",
    "geometry": "WKB point of the detection's centre in OGC:CRS84.",
}
"""What each column of `SIGHTINGS` holds."""
GROUND_COLUMNS = {
    "date": "Date of acquisition.",
    "geometry": "WKB polygon of ground that was observed on this date, in OGC:CRS84.",
}
"""What each column of `GROUND` holds. The polygons of one date do not overlap."""


@dataclass(frozen=True, slots=True)
class TracksRecord:
    """What the tables were made from: for each date, the fingerprints of its scenes by id.

    `outlines` is the number of scenes without a coverage file, which counted with their outline.
    """

    linking: Linking
    made_from: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    outlines: int = 0

    def to_json(self) -> dict[str, object]:
        return {
            "version": TRACKS_VERSION,
            "linking": self.linking.to_json(),
            "made_from": {date: dict(scenes) for date, scenes in self.made_from.items()},
            "outlines": self.outlines,
            "versions": {"scenesweep": __version__, "pyarrow": version("pyarrow")},
        }


def read_tracks(path: Location) -> TracksRecord | None:
    """Return the record of OUT/tracks; None if it does not exist, or is of another version."""
    with suppress(UnreadableOutput, KeyError, TypeError, ValueError, AttributeError):
        record = read_footer(path).record
        if record["version"] == TRACKS_VERSION:
            made_from = {date: dict(scenes) for date, scenes in record["made_from"].items()}
            linking = Linking.from_json(record["linking"])
            return TracksRecord(linking, made_from, int(record["outlines"]))
    return None


def objects_table(objects: Objects, classes: list[str]) -> pa.Table:
    """Return objects as rows of `OBJECTS`, in their order."""
    columns = {
        "object_id": objects.object_id,
        "class_name": _names(objects.kind, classes),
        "state": _names(objects.state, STATES),
        "first_seen": _dates(objects.first_seen),
        "last_seen": _dates(objects.last_seen),
        "times_seen": objects.times_seen,
        "times_observed": objects.times_observed,
        "observed_before": objects.observed_before,
        "missed": objects.missed,
        "confirmed": objects.confirmed,
        **_points(objects.lon, objects.lat),
    }
    return _table(columns, OBJECTS)


def read_objects(path: Location) -> tuple[Objects, list[str]]:
    """Read what `objects_table` returned: the objects, and their classes in order of number.

    Raises:
        UnreadableOutput: when the file cannot be read.
    """
    try:
        table = pq.read_table(parquet(path), columns=OBJECTS.names[:-1], partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise UnreadableOutput(f"{path}: cannot be read: {error}; delete it") from error
    names = table["class_name"].combine_chunks().dictionary_encode()
    numbers = {
        name: table[name].cast(pa.int32()).to_numpy().astype(np.int64) for name in _WHOLE_NUMBERS
    }
    state = pc.index_in(table["state"], pa.array(STATES)).to_numpy()
    objects = Objects(
        object_id=table["object_id"].combine_chunks(),
        kind=names.indices.to_numpy().astype(np.int64),
        lon=table["center_lon"].to_numpy(),
        lat=table["center_lat"].to_numpy(),
        state=state.astype(np.int64),
        confirmed=table["confirmed"].to_numpy(),
        **numbers,
    )
    return objects, names.dictionary.to_pylist()


def sightings_table(
    rows: pa.Table, object_id: pa.Array, distance_m: NDArray[np.float64]
) -> pa.Table:
    """Return the detections of a date, with their objects, as rows of `SIGHTINGS`."""
    lon, lat = (rows[name].to_numpy() for name in ("center_lon", "center_lat"))
    columns = {name: rows[name] for name in ("detection_id", "scene_id", "class_name", "score")}
    own = {"object_id": object_id, "distance_m": pa.array(distance_m, from_pandas=True)}
    return _table(columns | own | _points(lon, lat), SIGHTINGS)


def ground_table(grounds: Mapping[str, Polygons]) -> pa.Table:
    """Return the observed ground of each date as rows of `GROUND`."""
    dates = [date for date, parts in grounds.items() for _ in parts]
    parts = np.concatenate([np.zeros(0, object), *grounds.values()])
    return pa.table([pa.array(dates, pa.string()), _wkb(parts)], schema=GROUND)


def read_ground(path: Location) -> dict[str, Polygons]:
    """Read what `ground_table` returned: the polygons of each date.

    Raises:
        UnreadableOutput: when the file cannot be read.
    """
    try:
        table = pq.read_table(parquet(path), partitioning=None)
        dates = np.array(table["date"].to_pylist(), object)
        parts = shapely.from_wkb(np.array(table["geometry"].to_pylist(), object))
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise UnreadableOutput(f"{path}: cannot be read: {error}; delete it") from error
    return {date: parts[dates == date] for date in dict.fromkeys(dates.tolist())}


def write(table: pa.Table, path: Path, kind: str, record: Mapping[str, object]) -> None:
    """Write a table as GeoParquet; `kind` is the type of its geometries."""
    bounds = None
    if len(table):
        geometry = shapely.from_wkb(np.array(table["geometry"].to_pylist(), object))
        bounds = shapely.total_bounds(geometry).tolist()
    geo = geo_metadata(bounds, georeferenced=True)
    column: dict[str, object] = dict(geo["columns"]["geometry"])  # type: ignore[index]
    column.pop("covering")
    column["geometry_types"] = [kind] if bounds else []
    geo["columns"] = {"geometry": column}
    table = table.replace_schema_metadata(file_metadata(geo, record))
    pq.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP)


def _table(columns: Mapping[str, object], schema: pa.Schema) -> pa.Table:
    arrays = [
        column.cast(f.type)
        if isinstance(column := columns[f.name], pa.Array | pa.ChunkedArray)
        else pa.array(column, f.type)
        for f in schema
    ]
    return pa.table(arrays, schema=schema)


def _points(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> dict[str, object]:
    return {
        "center_lon": lon,
        "center_lat": lat,
        "geometry": _wkb(np.asarray(shapely.points(lon, lat))),
    }


def _wkb(geometries: NDArray[np.object_]) -> pa.Array:
    return pa.array(shapely.to_wkb(geometries), pa.binary())


def _names(numbers: NDArray[np.int64], names: list[str] | tuple[str, ...]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(numbers))


def _dates(days: NDArray[np.int64]) -> pa.Array:
    return pa.array(days.astype(np.int32)).cast(pa.date32())
