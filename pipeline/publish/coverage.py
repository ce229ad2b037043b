"""The coverage file of a scene: which ground was observed, and how.

`scenesweep count` and `scenesweep track` read these files (`pipeline.results.observed`). They need
only the column `geometry`, so other programs may write such files too, with any number of rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.planning.area import looked_at
from scenesweep.pipeline.planning.coverage import Coverage, coverage_of
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.table import BBOX, geo_metadata
from scenesweep.pipeline.storage.location import Location, parquet

SCHEMA = pa.schema(
    [
        ("scene_id", pa.string()),
        ("geometry", pa.binary()),
        ("bbox", pa.struct([(name, pa.float64()) for name in BBOX])),
        ("observed_km2", pa.float64()),
        ("masked_km2", pa.float64()),
        ("exact", pa.bool_()),
        ("windows", pa.int64()),
        ("thresholds", pa.map_(pa.string(), pa.float64())),
        ("acquired_at", pa.timestamp("us", tz="UTC")),
        ("model_id", pa.string()),
        ("fingerprint", pa.string()),
    ]
)
"""The schema of the coverage files that `detect` writes: one row for the scene."""

COLUMNS = {
    "scene_id": "Id of the scene, as in the table of detections.",
    "geometry": "WKB polygon or multipolygon in OGC:CRS84: the ground with valid pixels inside the "
    "area of interest that no mask hides. Null if nothing was observed.",
    "bbox": "Bounds of `geometry`. Null if nothing was observed.",
    "observed_km2": "Area of `geometry` on the WGS 84 ellipsoid.",
    "masked_km2": "Area that has valid pixels in the area of interest, but is hidden by the mask "
    "(`mask.*`). It is not in `geometry`. Null without a mask.",
    "exact": "False if the scene has no overviews and is so large that planning did not look at "
    "all of its pixels: `geometry` may then contain ground without valid pixels.",
    "windows": "Number of windows that the detector looked at.",
    "thresholds": "Lowest score of a published detection, for each class of the model.",
    "acquired_at": "Acquisition time of the scene in UTC. Null if the scene has none.",
    "model_id": "Name and version of the model, as NAME@VERSION.",
    "fingerprint": "Hash of the source, the model and the settings, as in the table of detections.",
}
"""What each column of `SCHEMA` holds; docs/reference/results.md shows it."""


def scene_coverage(plan: Plan, job: Job) -> Coverage | None:
    """Return the ground of a scene that is observed; None if that is not known."""
    scene = plan.scene
    area = looked_at(scene, job.area, plan.area_px)
    if area is None:
        return coverage_of(scene, footprint(scene), plan.quality)
    return coverage_of(scene, area.geometry, plan.quality)


def coverage_table(coverage: Coverage, plan: Plan, job: Job, *, windows: int) -> pa.Table:
    """Return the table of a scene, of whose windows so many were looked at."""
    ground = None if coverage.ground.is_empty else coverage.ground
    bounds = None if ground is None else list(ground.bounds)
    row = {
        "scene_id": plan.scene.id,
        "geometry": None if ground is None else shapely.to_wkb(ground),
        "bbox": None if bounds is None else dict(zip(BBOX, bounds, strict=True)),
        "observed_km2": coverage.observed_km2,
        "masked_km2": coverage.masked_km2,
        "exact": coverage.exact,
        "windows": windows,
        "thresholds": list(thresholds_of(job).items()),
        "acquired_at": plan.scene.acquired_at,
        "model_id": f"{job.card.name}@{job.card.version}",
        "fingerprint": plan.fingerprint,
    }
    geo = geo_metadata(bounds, georeferenced=True, kind=coverage.ground.geom_type)
    metadata = {"geo": json.dumps(geo)}
    return pa.Table.from_pylist([row], schema=SCHEMA.with_metadata(metadata))


def thresholds_of(job: Job) -> dict[str, float]:
    """Return the lowest score that a published detection of each class can have."""
    detected, least = job.settings.detect.score_threshold, job.settings.merge.min_scores
    return {name: max(detected, least.get(name, 0.0)) for name in job.card.classes}


def write_coverage(table: pa.Table, path: Path) -> None:
    """Write the coverage file of a scene."""
    pq.write_table(table, path, compression="zstd")


def read_ground(path: Location) -> NDArray[np.object_]:
    """Read the polygons of a coverage file, made valid; none where its rows have no geometry.

    Raises:
        UnreadableOutput: when it cannot be read.
    """
    try:
        column = pq.read_table(parquet(path), columns=["geometry"], partitioning=None)["geometry"]
        polygons = shapely.from_wkb(np.array(column.to_pylist(), object))
    except (OSError, pa.ArrowInvalid, KeyError, shapely.GEOSException) as error:
        reason = str(error).splitlines()[0]
        raise UnreadableOutput(f"{path}: expected polygons of observed ground: {reason}") from error
    return shapely.make_valid(polygons[~shapely.is_missing(polygons)])
