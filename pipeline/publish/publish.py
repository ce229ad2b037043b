"""Publish a scene: merge its parts and write its files, each whole or not at all.

OUT/detections/date=YYYY-MM-DD/<scene_id>.parquet     renamed last: the other files are in place
OUT/geojson/date=YYYY-MM-DD/<scene_id>.geojson, .qml  and so on for each of `publish.formats`
OUT/quicklooks/<scene_id>.png
OUT/items/<scene_id>.json
OUT/checksums/<scene_id>.sha256                       written last: it says the scene is done
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from shapely import Geometry
from shapely.geometry import shape

from scenesweep.pipeline.detection.detect import Candidates, ShardDetections
from scenesweep.pipeline.detection.merge import merge
from scenesweep.pipeline.errors import SceneError
from scenesweep.pipeline.geometry.georef import corners, on_earth
from scenesweep.pipeline.planning.area import is_narrower, looked_at
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.formats import FORMATS, Layer, Picture
from scenesweep.pipeline.publish.formats.qml import write_style
from scenesweep.pipeline.publish.manifest import (
    Damage,
    Manifest,
    manifest_path,
    read_manifest,
    write_manifest,
)
from scenesweep.pipeline.publish.quicklook import draw_quicklook
from scenesweep.pipeline.publish.stac.item import PublishedFile, scene_item, source_name
from scenesweep.pipeline.publish.table import Origin, detection_table, with_metadata
from scenesweep.pipeline.raster.inspect import crs_name
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.storage.commit import atomic_write_group, remove
from scenesweep.pipeline.storage.location import (
    Location,
    list_matching,
    name_in,
    parquet,
)
from scenesweep.pipeline.storage.network import without_secrets
from scenesweep.pipeline.versions import versions

ROWS_PER_GROUP = 100_000
_NO_DATE = "unknown"  # Hive's own word for null keeps GeoPandas from reading the folder
_STYLE = "-style"


def published_files(plan: Plan, job: Job, *, rows: int = 0) -> dict[str, Location]:
    """Return where the files of a scene with so many detections go, by kind; the table is last."""
    scene, out, wanted = plan.scene, job.out, job.settings.publish
    date = f"date={scene.acquired_at.date().isoformat() if scene.acquired_at else _NO_DATE}"
    files: dict[str, Location] = {}
    for name in _formats(plan, job, rows)[0]:
        files[name] = out / name / date / f"{scene.id}{FORMATS[name].suffix}"
        if FORMATS[name].styled:
            files[f"{name}{_STYLE}"] = files[name].with_name(f"{scene.id}.qml")
    if wanted.quicklook:
        files["quicklook"] = out / "quicklooks" / f"{scene.id}.png"
    if wanted.stac:
        files["item"] = out / "items" / f"{scene.id}.json"
    files["detections"] = out / "detections" / date / f"{scene.id}.parquet"
    return files


def left_out(plan: Plan, job: Job, *, rows: int) -> tuple[str, ...]:
    """Say which of the formats asked for are not written for a scene, and why."""
    return _formats(plan, job, rows)[1]


def is_published(plan: Plan, job: Job) -> bool:
    """Say whether the scene's files are there, whole, for the same source, model and settings."""
    return published_damage(plan, job) == {}


def published_damage(plan: Plan, job: Job) -> dict[str, Damage] | None:
    """Return which of the scene's published files are missing or no longer what was written.

    None when nothing is published for the same source, model and settings. Reads all files once.
    """
    listed = _listed(plan, job)
    return None if listed is None else listed.changed(job.out)


def check_replaceable(plan: Plan, job: Job) -> None:
    """Check that a run on an area of interest does not replace results of more ground.

    It does where some of the area that is published for the scene, the whole scene if none is
    recorded, lies outside the new one. A run without an area loses nothing, and neither does one
    that mends what it published itself.

    Raises:
        SceneError: when it would, unless `job.replace_wider`.
    """
    if job.area is None or job.replace_wider or _listed(plan, job) is not None:
        return
    for table in list_matching(job.out, f"detections/date=*/{plan.scene.id}.parquet"):
        before, rows = _published_area(table)
        before = before or footprint(plan.scene)
        if before is None or is_narrower(job.area, before):
            raise SceneError(
                f"{plan.scene.href}: the published results of {plan.scene.id} cover ground outside "
                f"the area of interest, and would be replaced ({rows:,} detections): use "
                "--replace, another --out, or another id (`id:` in @scenes.yaml)"
            )


def merged(parts: list[ShardDetections], plan: Plan, job: Job) -> Candidates:
    """Merge the parts of a scene, and drop what has its centre outside the area of interest.

    Candidates under their class's `merge.min_scores` are left out before the merge: the result
    is that of a model with such thresholds, and nothing that is not published suppresses what is.
    """
    candidates = Candidates.join(Candidates.none(), *(part.candidates for part in parts))
    least = job.settings.merge.min_scores
    of_class = np.array([least.get(name, 0.0) for name in job.card.classes], np.float32)
    candidates = candidates.take(candidates.score >= of_class[candidates.label])
    detections = _on_earth(merge(candidates, job.settings.merge), plan.scene)
    if plan.area_px is None:
        return detections
    x, y = ((detections.xyxy[:, :2] + detections.xyxy[:, 2:]) / 2).T
    shapely.prepare(plan.area_px)
    return detections.take(shapely.intersects_xy(plan.area_px, x, y))


def _on_earth(detections: Candidates, scene: Scene) -> Candidates:
    """Drop boxes with a corner off the Earth: they have no place in degrees."""
    if not scene.off_earth or scene.crs is None or scene.transform is None:
        return detections
    placed = on_earth(corners(detections.xyxy), scene.crs, scene.transform)
    return detections.take(np.logical_and.reduce(placed, axis=1))


def publish(detections: Candidates, plan: Plan, job: Job) -> dict[str, Location]:
    """Write the scene's files and return them by kind.

    The list of their checksums goes first and comes back last: while it is there, they are
    whole and belong together.
    """
    out, files = job.out, published_files(plan, job, rows=len(detections))
    origin = Origin(plan.scene, job.card, job.model_sha256, plan.fingerprint)
    table = detection_table(detections, origin)
    remove(manifest_path(out, plan.scene.id))
    _withdraw(plan.scene.id, out, keep=set(files.values()))
    with atomic_write_group(files, out / ".work" / "aside") as to:
        _write_table(table, plan, job, to["detections"])
        _write_formats(table, plan, job, to)
        if "quicklook" in to:
            px = job.settings.publish.quicklook_px
            draw_quicklook(plan.source, to["quicklook"], longest_px=px)
        if "item" in to:  # after all that it describes
            described = {k: PublishedFile(files[k], to[k]) for k in files if k != "item"}
            text = json.dumps(scene_item(plan, job, table, described, versions()), indent=2)
            to["item"].write_text(text + "\n", encoding="utf-8")
    write_manifest(out, plan.scene.id, plan.fingerprint, files.values())
    return files


def _published_area(table: Location) -> tuple[Geometry | None, int]:
    """Return the area that a published table is of, None for a whole scene, and its rows."""
    try:
        footer = pq.read_metadata(parquet(table))
        area = json.loads((footer.metadata or {}).get(b"scenesweep", b"{}")).get("area")
        geometry = area and area["geometry"]
        return (shape(geometry) if geometry else None), footer.num_rows
    except (pa.ArrowInvalid, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, 0  # not readable: as if it were whole


def _listed(plan: Plan, job: Job) -> Manifest | None:
    """Return the list of what is published, where it is what this job would publish.

    Whether a format was left out for its number of rows, the list knows.
    """
    out = job.out
    listed = read_manifest(manifest_path(out, plan.scene.id))
    if listed is None or listed.fingerprint != plan.fingerprint:
        return None
    for rows in (0, sys.maxsize):
        files = published_files(plan, job, rows=rows).values()
        if {name_in(out, path) for path in files} == listed.digests.keys():
            return listed
    return None


def _write_table(table: pa.Table, plan: Plan, job: Job, path: Path) -> None:
    georeferenced = plan.scene.crs is not None
    table = with_metadata(table, _provenance(plan, job), georeferenced=georeferenced)
    pq.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP)


def _write_formats(table: pa.Table, plan: Plan, job: Job, to: Mapping[str, Path]) -> None:
    scene, classes = plan.scene, job.card.classes
    picture = Picture(scene.id, source_name(scene, job.settings), scene.width, scene.height)
    layer = Layer(scene.id, table, classes, (picture,))
    for name, written in FORMATS.items():
        if name in to:
            written.write(layer, to[name])
        if f"{name}{_STYLE}" in to:
            write_style(classes, to[f"{name}{_STYLE}"])


def _formats(plan: Plan, job: Job, rows: int) -> tuple[list[str], tuple[str, ...]]:
    """Return the formats that a scene is written in, and why not the others."""
    wanted = job.settings.publish
    names: list[str] = []
    reasons = []
    for name in sorted(set(wanted.formats)):
        if FORMATS[name].geographic and plan.scene.crs is None:
            reasons.append(f"no {name}: the scene has no georeference")
        elif name == "geojson" and rows > wanted.geojson_max_rows:
            reasons.append(
                f"no geojson: {rows:,} detections are more than publish.geojson_max_rows "
                f"({wanted.geojson_max_rows:,}); publish.formats has others"
            )
        else:
            names.append(name)
    return names, tuple(reasons)


def _provenance(plan: Plan, job: Job) -> dict[str, object]:
    """Say what the table was made from: no clock, host or run, so equal inputs give equal bytes."""
    area = looked_at(plan.scene, job.area, plan.area_px)
    return {
        "fingerprint": plan.fingerprint,
        "source": _source(plan, job),
        "area": area and area.to_json(),
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


def _source(plan: Plan, job: Job) -> dict[str, object]:
    """Say what the scene was made of, and what a catalog said of it."""
    scene, hints = plan.scene, asdict(plan.hints)
    said: dict[str, object] = {
        "name": source_name(scene, job.settings),
        "size": [scene.width, scene.height],
        "fingerprint": scene.fingerprint,
    }
    if scene.transform is not None and scene.crs is not None:
        said["transform"], said["crs"] = list(scene.transform[:6]), crs_name(scene)
    if len(scene.parts) > 1:
        said["files"] = [Path(without_secrets(part.href)).name for part in scene.parts]
        said["join"] = scene.join
    known = {name: value for name, value in hints.items() if value not in (None, "")}
    return said | ({"catalog": known} if known else {})


def _withdraw(scene_id: str, out: Location, *, keep: set[Location]) -> None:
    """Remove the scene's files that went elsewhere before: another date, or no longer wanted."""
    endings = {n: (f.suffix, ".qml") if f.styled else (f.suffix,) for n, f in FORMATS.items()}
    for name, ours in {"detections": (".parquet",), **endings}.items():
        for path in list_matching(out, f"{name}/date=*/{scene_id}.*"):
            if path.name[len(scene_id) :] in ours and path not in keep:
                remove(path)
    for name in (f"quicklooks/{scene_id}.png", f"items/{scene_id}.json"):
        if out / name not in keep:
            remove(out / name)
