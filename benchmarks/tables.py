"""Tables of simulated detections, as `scenesweep detect` publishes them, for benchmarks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from scenesweep.pipeline.publish.provenance import ModelRecord, Provenance, SourceRecord
from scenesweep.pipeline.publish.table import SCHEMA, with_metadata
from scenesweep.pipeline.storage.paths import Output

_HALF_DEG = 5e-5  # half a box: some 10 m
_ROWS_PER_GROUP = 100_000
_PX = 1e-5  # degrees
Floats = NDArray[np.float64]


def write_scene(
    out: Path, name: str, date: str, lon: Floats, lat: Floats, score: Floats, bounds: Floats
) -> Path:
    """Write boxes of one class around points as the table of a scene with these bounds."""
    west, north = bounds[0], bounds[3]
    n = len(lon)
    edges = [lon - _HALF_DEG, lat - _HALF_DEG, lon + _HALF_DEG, lat + _HALF_DEG]
    pixels = [(edges[0] - west), (north - edges[3]), (edges[2] - west), (north - edges[1])]
    scene_hash = hashlib.blake2b(f"{name} {date}".encode(), digest_size=5).hexdigest()
    columns: dict[str, object] = {
        "detection_id": [f"{scene_hash}{number:06x}" for number in range(n)],
        "class_name": ["ship"] * n,
        "score": score,
        "geometry": shapely.to_wkb(shapely.box(edges[0], edges[1], edges[2], edges[3])),
        "bbox": pa.StructArray.from_arrays(
            [pa.array(edge) for edge in edges], names=["xmin", "ymin", "xmax", "ymax"]
        ),
        **{
            name: edge / _PX
            for name, edge in zip(("x_min", "y_min", "x_max", "y_max"), pixels, strict=True)
        },
        "center_lon": lon,
        "center_lat": lat,
        "width_m": np.full(n, 10.0),
        "height_m": np.full(n, 10.0),
        "area_m2": np.full(n, 100.0),
        "truncated": np.zeros(n, np.bool_),
    }
    constant = {"scene_id": name, "crs": "OGC:CRS84", "model_id": "ships@1", "fingerprint": name}
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.array([constant.get(field.name)] * n, field.type)
        for field in SCHEMA
    ]
    table = pa.table(arrays, schema=SCHEMA)
    path = Output(out).table(name, date)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = _provenance(name, date, bounds).to_json()
    pq.write_table(
        with_metadata(table, record, georeferenced=True), path, row_group_size=_ROWS_PER_GROUP
    )
    return path


def _provenance(name: str, date: str, bounds: Floats) -> Provenance:
    west, south, east, north = bounds.tolist()
    size = (round((east - west) / _PX), round((north - south) / _PX))
    source = SourceRecord(
        f"{name}.tif", size, name, (_PX, 0.0, west, 0.0, -_PX, north), crs="OGC:CRS84"
    )
    model = ModelRecord("ships", "1", "0" * 64, ("ship",))
    settings = {"detect": {"score_threshold": 0.3}}
    return Provenance(f"{name} {date}", source, None, (1.0, 1.0), size, None, model, settings, {})


def write_coverage(out: Path, name: str, date: str, ground: shapely.Geometry) -> None:
    """Write the ground that was observed in a scene."""
    path = Output(out).coverage(name, date)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"geometry": [shapely.to_wkb(ground)]}), path)
