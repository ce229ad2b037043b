"""The published table: its schema, and the conversion of detections to its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyproj import CRS

from scenesweep.model.card import ModelCard
from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.geometry.georef import LONLAT, corners, ground_size, to_lonlat, to_map
from scenesweep.pipeline.geometry.layers import Layers, join
from scenesweep.pipeline.publish.hilbert import hilbert_codes
from scenesweep.pipeline.raster.inspect import crs_name
from scenesweep.pipeline.raster.quality import Quality, masked_shares
from scenesweep.pipeline.scene import Scene

BBOX = ("xmin", "ymin", "xmax", "ymax")
_ROWS_AT_ONCE = 100_000  # so that intermediate arrays stay small
_WKB_POLYGON = np.dtype(
    [
        ("little_endian", "u1"),
        ("type", "<u4"),
        ("rings", "<u4"),
        ("points", "<u4"),
        ("ring", "<f8", (5, 2)),
    ]
)

SCHEMA = pa.schema(
    [
        ("detection_id", pa.string()),
        ("scene_id", pa.string()),
        ("class_name", pa.string()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
        ("geometry", pa.binary()),
        ("bbox", pa.struct([(name, pa.float64()) for name in BBOX])),
        ("x_min", pa.float64()),
        ("y_min", pa.float64()),
        ("x_max", pa.float64()),
        ("y_max", pa.float64()),
        ("center_lon", pa.float64()),
        ("center_lat", pa.float64()),
        ("width_m", pa.float64()),
        ("height_m", pa.float64()),
        ("area_m2", pa.float64()),
        ("truncated", pa.bool_()),
        ("masked", pa.float32()),
        ("excluded", pa.bool_()),
        ("near_id", pa.string()),
        ("near_m", pa.float64()),
        ("acquired_at", pa.timestamp("us", tz="UTC")),
        ("crs", pa.string()),
        ("model_id", pa.string()),
        ("model_sha256", pa.string()),
        ("fingerprint", pa.string()),
    ]
)
"""The one schema. `x_min` to `y_max` are scene pixels; `geometry` (WKB) and `bbox` are OGC:CRS84,
or scene pixels for a scene without georeference, whose geographic columns are null."""

REPEATED_COLUMNS = [
    *("scene_id", "class_name", "truncated", "acquired_at"),
    *("crs", "model_id", "model_sha256", "fingerprint"),
]
"""The columns for which a Parquet dictionary pays. For columns whose values differ from row to row
it takes most of the time of writing, and makes files larger."""

COLUMNS = {
    "detection_id": "Hash of the scene's id, the class and the box: the same in every run.",
    "scene_id": "Id of the scene: its file name, unless `scenes.ids` or `@scenes.yaml` says else.",
    "class_name": "Class of the object, one of the model card's `classes`.",
    "score": "Score between 0 and 1. It is not a probability.",
    "probability": "Calibrated probability that the detection is correct. Null if the model card "
    "has no `calibration` of the class, or it was measured in other views than `detect.views`.",
    "geometry": "WKB polygon in OGC:CRS84: the four corners of the box through the scene's "
    "transform. In scene pixels where the scene has no georeference.",
    "bbox": "Bounds of `geometry`. Filters on it skip row groups.",
    "x_min": "Left edge of the box in scene pixels; whole numbers are pixel edges.",
    "y_min": "Top edge of the box in scene pixels.",
    "x_max": "Right edge of the box in scene pixels.",
    "y_max": "Bottom edge of the box in scene pixels.",
    "center_lon": "Longitude of the box's centre in degrees. Null without georeference.",
    "center_lat": "Latitude of the box's centre in degrees. Null without georeference.",
    "width_m": "Geodesic length of the box along the scene's rows, in metres: east-west in a "
    "north-up scene. Null without georeference.",
    "height_m": "Geodesic length of the box along the scene's columns, in metres. It is not the "
    "height of the object. Null without georeference.",
    "area_m2": "`width_m` times `height_m`. Null without georeference.",
    "truncated": "True if the object is larger than the margin, so that a window edge cut it. "
    "`merge.stitch=true` joins such pieces.",
    "masked": "Share of the box, 0 to 1, that clouds, shadows or snow hide by the scene's mask "
    "(`mask.*`). Null without a mask, and where the mask does not reach.",
    "excluded": "True if the centre lies in a polygon of `layers.exclude`. Null without such a "
    "layer or without georeference.",
    "near_id": "Id of the nearest object of `layers.near`. Null if there is none within "
    "`layers.near_m`.",
    "near_m": "Distance of the centre from that object in metres; 0 inside a polygon.",
    "acquired_at": "Acquisition time of the scene in UTC. Null if the scene has none.",
    "crs": "Coordinate reference system of the scene.",
    "model_id": "Name and version of the model, as NAME@VERSION.",
    "model_sha256": "SHA-256 of the model file.",
    "fingerprint": "Hash of the source, the model and the settings that made the row.",
}
"""What each column of `SCHEMA` holds; docs/reference/table.md shows it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The values that are the same in every row of a scene, its mask and the user's layers."""

    scene: Scene
    card: ModelCard
    model_sha256: str
    fingerprint: str
    quality: Quality | None = None
    layers: Layers | None = None


def detection_table(detections: Candidates, origin: Origin) -> pa.Table:
    """Return merged detections as rows of `SCHEMA`, in Hilbert order of their boxes."""
    ordered = in_row_order(detections, origin.scene)
    return pa.concat_tables([SCHEMA.empty_table(), *row_tables(ordered, origin)]).combine_chunks()


def row_tables(detections: Candidates, origin: Origin) -> Iterator[pa.Table]:
    """Yield detections as rows of `SCHEMA`, in their order, in tables that need little memory."""
    for start in range(0, len(detections), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(detections))
        yield detection_rows(detections.take(np.arange(start, stop)), origin)


def in_row_order(detections: Candidates, scene: Scene) -> Candidates:
    """Return detections in the order of their rows: along a Hilbert curve over the scene.

    Detections of one cell of the curve keep their order.
    """
    codes = hilbert_codes(detections.xyxy, (scene.width, scene.height))
    return detections.take(np.argsort(codes, kind="stable"))


def detection_rows(detections: Candidates, origin: Origin) -> pa.Table:
    """Return detections as rows of `SCHEMA`, in their order."""
    scene = origin.scene
    quads, geographic = _geometry(detections.xyxy, scene)
    lows, highs = quads.min(axis=1), quads.max(axis=1)
    bounds = [np.ascontiguousarray(edge) for edge in (*lows.T, *highs.T)]
    probability = origin.card.probability(detections.score, detections.label)
    columns: dict[str, object] = {
        "detection_id": _ids(scene.id, origin.card.classes, detections),
        "class_name": pa.DictionaryArray.from_arrays(
            pa.array(detections.label), pa.array(origin.card.classes, pa.string())
        ).cast(pa.string()),
        "score": detections.score,
        "probability": pa.array(probability, pa.float32(), from_pandas=True),
        "geometry": _polygons(_counter_clockwise(quads)),
        "bbox": pa.StructArray.from_arrays([pa.array(b) for b in bounds], names=list(BBOX)),
        **dict(zip(("x_min", "y_min", "x_max", "y_max"), detections.xyxy.T, strict=True)),
        **geographic,
        "truncated": detections.cut,
        **_masked(detections.xyxy, origin),
        **_of_layers(geographic, origin.layers),
    }
    constant = {
        "scene_id": scene.id,
        "acquired_at": scene.acquired_at,
        "crs": crs_name(scene),
        "model_id": f"{origin.card.name}@{origin.card.version}",
        "model_sha256": origin.model_sha256,
        "fingerprint": origin.fingerprint,
    }
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.repeat(pa.scalar(constant.get(field.name), field.type), len(detections))
        for field in SCHEMA
    ]
    return pa.table(arrays, schema=SCHEMA)


def with_all_columns(rows: pa.Table) -> pa.Table:
    """Return rows with all columns of `SCHEMA`; those that an older table lacks are null."""
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in SCHEMA
    ]
    return pa.table(columns, schema=SCHEMA)


def geo_metadata(
    bounds: Sequence[float] | None, *, georeferenced: bool, kind: str = "Polygon"
) -> dict[str, object]:
    """Return the `geo` file metadata of GeoParquet 1.1 (sections "File metadata", "covering").

    `bounds` are west, south, east, north of all rows, None when there are no rows, and `kind` is
    the type of their geometries. The CRS is PROJJSON; for pixel coordinates it is null, which
    means unknown.
    """
    column: dict[str, object] = {
        "encoding": "WKB",
        "geometry_types": [kind] if bounds else [],
        "crs": CRS.from_user_input(LONLAT).to_json_dict() if georeferenced else None,
        "orientation": "counterclockwise",
        "covering": {"bbox": {name: ["bbox", name] for name in BBOX}},
    }
    if bounds:
        column["bbox"] = list(bounds)
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def bounds_of(table: pa.Table) -> list[float] | None:
    """Return west, south, east, north of all rows; None when there are no rows."""
    if len(table) == 0:
        return None
    bounds = np.array([table["bbox"].combine_chunks().field(name) for name in BBOX])
    return [*bounds[:2].min(axis=1).tolist(), *bounds[2:].max(axis=1).tolist()]


def with_metadata(
    table: pa.Table, provenance: Mapping[str, object], *, georeferenced: bool
) -> pa.Table:
    """Add the `geo` and the `scenesweep` file metadata."""
    geo = geo_metadata(bounds_of(table), georeferenced=georeferenced)
    return table.replace_schema_metadata(file_metadata(geo, provenance))


def file_metadata(geo: Mapping[str, object], provenance: Mapping[str, object]) -> dict[str, str]:
    """Return the metadata of a table's file: the `geo` and the `scenesweep` record as JSON."""
    return {
        "geo": json.dumps(geo),
        "scenesweep": json.dumps(provenance, sort_keys=True, default=str),
    }


def _geometry(
    xyxy: NDArray[np.float64], scene: Scene
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Return the boxes' corners (N, 4, 2) in the frame of `geometry`, and geographic columns."""
    quads = corners(xyxy)
    if scene.crs is None or scene.transform is None:
        return quads, {}
    quads = to_lonlat(to_map(quads, scene.transform), scene.crs)
    centres_px = (xyxy[:, :2] + xyxy[:, 2:])[:, None] / 2
    centres = to_lonlat(to_map(centres_px, scene.transform), scene.crs)[:, 0]
    centres[:, 0] -= 360 * np.round(centres[:, 0] / 360)
    # Corners beyond the antimeridian stay next to the centre of their box.
    quads[..., 0] -= 360 * np.round((quads[..., 0] - centres[:, None, 0]) / 360)
    width, height = ground_size(quads).T
    geographic = {
        "center_lon": centres[:, 0],
        "center_lat": centres[:, 1],
        "width_m": width,
        "height_m": height,
        "area_m2": width * height,
    }
    return quads, geographic


def _masked(xyxy: NDArray[np.float64], origin: Origin) -> dict[str, pa.Array]:
    """Return the column of the scene's mask, if there is one."""
    if origin.quality is None:
        return {}
    shares = masked_shares(origin.quality, xyxy, origin.scene)
    return {"masked": pa.array(shares.astype(np.float32), from_pandas=True)}  # NaN is null


def _of_layers(
    geographic: Mapping[str, NDArray[np.float64]], layers: Layers | None
) -> dict[str, pa.Array]:
    """Return the columns of the user's layers, for centres in degrees."""
    if layers is None or not geographic:
        return {}
    joined = join(layers, np.stack([geographic["center_lon"], geographic["center_lat"]], axis=1))
    columns = {"excluded": pa.array(joined.excluded)} if layers.exclude else {}
    if layers.near is not None:
        far = np.isnan(joined.near_m)
        columns["near_id"] = pa.array(joined.near_id, pa.string(), mask=far)
        columns["near_m"] = pa.array(joined.near_m, mask=far)
    return columns


def _counter_clockwise(quads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reverse the rings that run clockwise, as RFC 7946 (section 3.1.6) asks."""
    after = np.roll(quads, -1, axis=1)
    twice_area = (quads[..., 0] * after[..., 1] - after[..., 0] * quads[..., 1]).sum(axis=1)
    turned: NDArray[np.float64] = np.where((twice_area < 0)[:, None, None], quads[:, ::-1], quads)
    return turned


def _polygons(quads: NDArray[np.float64]) -> pa.Array:
    """Return rings of four corners (N, 4, 2) as polygons in WKB (OGC 06-103r4, section 8)."""
    polygons = np.empty(len(quads), _WKB_POLYGON)
    polygons["little_endian"], polygons["type"] = 1, 3
    polygons["rings"], polygons["points"] = 1, 5
    polygons["ring"][:, :4], polygons["ring"][:, 4] = quads, quads[:, 0]
    offsets = np.arange(len(quads) + 1, dtype=np.int32) * np.int32(_WKB_POLYGON.itemsize)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(polygons)]
    return pa.Array.from_buffers(pa.binary(), len(quads), buffers)


def _ids(scene_id: str, classes: Sequence[str], detections: Candidates) -> list[str]:
    """Hash scene, class and box (to 0.01 px) to 16 hex digits: stable between runs."""
    boxes = np.rint(detections.xyxy * 100).astype(np.int64).tolist()
    names = [f"{scene_id} {name}".encode() for name in classes]
    return [
        hashlib.blake2b(b"%s [%d, %d, %d, %d]" % (names[label], *box), digest_size=8).hexdigest()
        for label, box in zip(detections.label.tolist(), boxes, strict=True)
    ]
