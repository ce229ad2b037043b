"""Publish a scene: merge its parts and write its files, each whole or not at all.

OUT/detections/date=YYYY-MM-DD/<scene_id>.parquet     renamed last: the other files are in place
OUT/geojson/date=YYYY-MM-DD/<scene_id>.geojson
OUT/quicklooks/<scene_id>.png
OUT/checksums/<scene_id>.sha256                       written last: it says the scene is done
"""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from model import __version__
from pipeline.commit import refuse_more, remove, written_together
from pipeline.detect import Candidates, ShardFound
from pipeline.georef import LONLAT
from pipeline.manifest import Manifest, manifest_path, read_manifest, write_manifest
from pipeline.merge import merge
from pipeline.plan import Job, Plan
from pipeline.quicklook import draw_quicklook
from pipeline.remote import shown
from pipeline.scene import Scene
from pipeline.table import Origin, detection_table, with_metadata

ROWS_PER_GROUP = 100_000
_NO_DATE = "unknown"  # Hive's own word for null keeps GeoPandas from reading the folder
_GEOJSON_DECIMALS = 8  # a millimetre


def published_files(plan: Plan, job: Job) -> dict[str, Path]:
    """Return where the files of a scene go, by kind; the table is the last one."""
    scene, out, wanted = plan.scene, Path(job.out), job.settings.publish
    date = f"date={scene.acquired_at.date().isoformat() if scene.acquired_at else _NO_DATE}"
    files: dict[str, Path] = {}
    if wanted.geojson and scene.crs is not None:
        files["geojson"] = out / "geojson" / date / f"{scene.id}.geojson"
    if wanted.quicklook:
        files["quicklook"] = out / "quicklooks" / f"{scene.id}.png"
    files["detections"] = out / "detections" / date / f"{scene.id}.parquet"
    return files


def is_published(plan: Plan, job: Job) -> bool:
    """Say whether the scene's files are there, whole, for the same source, model and settings."""
    listed = _listed(plan, job)
    return listed is not None and not listed.damage(Path(job.out))


def damaged_files(plan: Plan, job: Job) -> list[str]:
    """Return the published files that are no longer what was written; missing ones are not."""
    listed = _listed(plan, job)
    damage = listed.damage(Path(job.out)) if listed else {}
    return [name for name, what in damage.items() if what == "damaged"]


def merged(parts: list[ShardFound], plan: Plan, job: Job) -> Candidates:
    """Merge the parts of a scene, and drop what has its centre outside the area of interest.

    Candidates under their class's `merge.min_scores` are left out before the merge: the result
    is that of a model with such thresholds, and nothing that is not published suppresses what is.
    """
    candidates = Candidates.join(Candidates.none(), *(part.candidates for part in parts))
    least = job.settings.merge.min_scores
    of_class = np.array([least.get(name, 0.0) for name in job.card.classes], np.float32)
    candidates = candidates.take(candidates.score >= of_class[candidates.label])
    detections = merge(candidates, job.settings.merge)
    if plan.area_px is None:
        return detections
    x, y = ((detections.xyxy[:, :2] + detections.xyxy[:, 2:]) / 2).T
    shapely.prepare(plan.area_px)
    return detections.take(shapely.intersects_xy(plan.area_px, x, y))


def publish(detections: Candidates, plan: Plan, job: Job) -> dict[str, Path]:
    """Write the scene's files and return them by kind.

    The list of their checksums goes first and comes back last: while it is there, they are
    whole and belong together.
    """
    out, files = Path(job.out), published_files(plan, job)
    origin = Origin(plan.scene, job.card, job.model_sha256, plan.fingerprint)
    table = with_metadata(detection_table(detections, origin), plan.scene, _provenance(plan, job))
    remove(manifest_path(out, plan.scene.id))
    _withdraw(plan.scene.id, job.out, keep=set(files.values()))
    with written_together(files, out / ".work" / "aside") as to:
        pq.write_table(table, to["detections"], compression="zstd", row_group_size=ROWS_PER_GROUP)
        if "geojson" in to:
            write_geojson(table, plan.scene, to["geojson"])
        if "quicklook" in to:
            px = job.settings.publish.quicklook_px
            draw_quicklook(plan.source, to["quicklook"], longest_px=px)
    write_manifest(out, plan.scene.id, plan.fingerprint, files.values())
    return files


def write_geojson(table: pa.Table, scene: Scene, path: Path) -> None:
    """Write a table as RFC 7946 GeoJSON, valid and complete also when it has no rows."""
    properties = table.drop_columns(["geometry", "bbox"]).to_pandas()
    properties["acquired_at"] = [
        None if scene.acquired_at is None else scene.acquired_at.isoformat()
    ] * len(table)
    geometry = shapely.from_wkb(np.array(table["geometry"], dtype=object))
    frame = gpd.GeoDataFrame(properties, geometry=geometry, crs=LONLAT)
    try:
        frame.to_file(
            path,
            driver="GeoJSON",
            engine="pyogrio",
            layer=scene.id,
            geometry_type="Polygon",
            RFC7946="YES",
            COORDINATE_PRECISION=str(_GEOJSON_DECIMALS),
        )
        with path.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            whole = file.read() == b"}\n"
    except (DataSourceError, DataLayerError):
        whole = False
    if not whole:  # GDAL does not say why, nor at all when it fails to write the last bytes
        refuse_more(path)


def _listed(plan: Plan, job: Job) -> Manifest | None:
    """Return the list of what is published, where it is what this job would publish."""
    out = Path(job.out)
    listed = read_manifest(manifest_path(out, plan.scene.id))
    if listed is None or listed.fingerprint != plan.fingerprint:
        return None
    names = {path.relative_to(out).as_posix() for path in published_files(plan, job).values()}
    return listed if names == listed.digests.keys() else None


def _provenance(plan: Plan, job: Job) -> dict[str, object]:
    """Say what the table was made from: no clock, host or run, so equal inputs give equal bytes."""
    return {
        "fingerprint": plan.fingerprint,
        "source": _source(plan),
        "grid": {"scale": plan.source.scale, "size": plan.layout.grid.size},
        "stretch": plan.source.stretch and plan.source.stretch.ranges,
        "model": {
            "id": job.card.name,
            "version": job.card.version,
            "sha256": job.model_sha256,
            "classes": list(job.card.classes),
        },
        "settings": job.settings.model_dump(mode="json", exclude={"engine"}),
        "versions": versions(),
    }


def _source(plan: Plan) -> dict[str, object]:
    """Say what the scene was made of, and what a catalog said of it."""
    scene, hints = plan.scene, asdict(plan.hints)
    said: dict[str, object] = {"name": Path(scene.href).name, "fingerprint": scene.fingerprint}
    if len(scene.parts) > 1:
        said["files"] = [Path(shown(part.href)).name for part in scene.parts]
        said["join"] = scene.join
    known = {name: value for name, value in hints.items() if value not in (None, "")}
    return said | ({"catalog": known} if known else {})


def versions() -> dict[str, str]:
    """Return the versions of what decides the bytes of a table."""
    names = ("torch", "torchvision", "rasterio", "shapely", "pyproj", "pyarrow")
    return {"scenesweep": __version__} | {name: version(name) for name in names}


def _withdraw(scene_id: str, out: str, *, keep: set[Path]) -> None:
    """Remove the scene's files that went elsewhere before: another date, or no longer wanted."""
    for pattern in (
        f"detections/date=*/{scene_id}.parquet",
        f"geojson/date=*/{scene_id}.geojson",
        f"quicklooks/{scene_id}.png",
    ):
        for path in Path(out).glob(pattern):
            if path not in keep:
                remove(path)
