"""Publish a scene: merge its parts, and write its files atomically.

`pipeline.storage.paths` says where the files lie. The manifest is deleted first. The table is
renamed after all other files. The manifest is written last: if it exists, all files are complete
and from one publication.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from shapely import Geometry

from scenesweep.pipeline.detection.detect import Candidates, ShardDetections
from scenesweep.pipeline.detection.merge import merge
from scenesweep.pipeline.errors import SceneError, UnreadableOutput
from scenesweep.pipeline.geometry.georef import corners, on_earth
from scenesweep.pipeline.planning.area import is_narrower
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.files import (
    SceneFiles,
    all_files_of,
    files_for,
    may_be_skipped,
    skipped_formats,
)
from scenesweep.pipeline.publish.formats import FORMATS, Layer, SceneImage
from scenesweep.pipeline.publish.formats.qml import write_style
from scenesweep.pipeline.publish.manifest import (
    Damage,
    Manifest,
    read_manifest,
    write_manifest,
)
from scenesweep.pipeline.publish.provenance import Provenance, provenance_of, read_footer
from scenesweep.pipeline.publish.quicklook import draw_quicklook
from scenesweep.pipeline.publish.stac.item import PublishedFile, scene_item, source_name
from scenesweep.pipeline.publish.table import Origin, detection_table, with_metadata
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.storage.commit import atomic_write_group, remove
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output
from scenesweep.pipeline.versions import versions

ROWS_PER_GROUP = 100_000


def published_files(plan: Plan, job: Job) -> SceneFiles | None:
    """Return the scene's files that the manifest lists.

    None when nothing is published for the same source, model and settings.
    """
    manifest = _current_manifest(plan, job)
    return None if manifest is None else _files_listed(manifest, plan, job)


def left_out(plan: Plan, job: Job, *, rows: int) -> tuple[str, ...]:
    """Return the reasons why some of the requested formats are not written for a scene."""
    return tuple(skipped_formats(plan, job, rows=rows).values())


def is_published(plan: Plan, job: Job) -> bool:
    """Say whether the scene's files exist, complete, for the same source, model and settings."""
    return published_damage(plan, job) == {}


def published_damage(plan: Plan, job: Job) -> dict[str, Damage] | None:
    """Return which of the scene's published files are missing or differ from the manifest.

    None when nothing is published for the same source, model and settings. Reads all files once.
    """
    manifest = _current_manifest(plan, job)
    return None if manifest is None else manifest.changed(job.out)


def check_replaceable(plan: Plan, job: Job) -> None:
    """Check that a run on an area of interest does not replace results of more ground.

    It does so where some of the published area of the scene lies outside the new one. A table
    without a recorded area covers the whole scene. A run without an area of interest loses
    nothing, and neither does a run that repairs its own files.

    Raises:
        SceneError: when it would, unless `job.replace_wider`.
    """
    if job.area is None or job.replace_wider or _current_manifest(plan, job) is not None:
        return
    for table in Output(job.out).tables(plan.scene.id):
        before, rows = _published_area(table)
        before = before or footprint(plan.scene)
        if before is None or is_narrower(job.area, before):
            raise SceneError(
                f"{plan.scene.href}: the published results of {plan.scene.id} cover ground outside "
                f"the area of interest, and would be replaced ({rows:,} detections): use "
                "--replace, another --out, or another id (`id:` in @scenes.yaml)"
            )


def merged(parts: list[ShardDetections], plan: Plan, job: Job) -> Candidates:
    """Merge the parts of a scene, and drop detections with a centre outside the area of interest.

    Candidates with a score below `merge.min_scores` of their class are dropped before the merge,
    so that a detection that is not published never suppresses a published one.
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
    """Drop boxes with a corner off the Earth: such a corner has no longitude and latitude."""
    if not scene.off_earth or scene.crs is None or scene.transform is None:
        return detections
    is_on_earth = on_earth(corners(detections.xyxy), scene.crs, scene.transform)
    return detections.take(np.logical_and.reduce(is_on_earth, axis=1))


def publish(detections: Candidates, plan: Plan, job: Job) -> SceneFiles:
    """Write the scene's files and return them.

    The manifest is deleted first and written last; if it exists, all files are complete and from
    one publication.
    """
    output = Output(job.out)
    files = files_for(plan, job).without(skipped_formats(plan, job, rows=len(detections)))
    origin = Origin(plan.scene, job.card, job.model_sha256, plan.fingerprint)
    table = detection_table(detections, origin)
    remove(output.manifest(plan.scene.id))
    _remove_outdated(plan.scene.id, output, keep=set(files.paths()))
    with atomic_write_group(files.paths(), output.aside) as temporary:
        _write_table(table, plan, job, temporary[files.table])
        _write_formats(table, plan, job, files, temporary)
        if files.quicklook is not None:
            px = job.settings.publish.quicklook_px
            draw_quicklook(plan.source, temporary[files.quicklook], longest_px=px)
        if files.item is not None:  # after all files that it describes
            _write_item(table, plan, job, files, temporary)
    write_manifest(output.root, plan.scene.id, plan.fingerprint, files.paths())
    return files


def _published_area(table: Location) -> tuple[Geometry | None, int]:
    """Return the area that a published table covers, None for a whole scene, and its rows."""
    try:
        footer = read_footer(table)
        area = Provenance.from_json(footer.record, table).area
    except UnreadableOutput:  # as if it covered the whole scene
        return None, 0
    return None if area is None else area.geometry, footer.parquet.num_rows


def _current_manifest(plan: Plan, job: Job) -> Manifest | None:
    """Return the scene's manifest if it lists what this job would publish, else None."""
    manifest = read_manifest(Output(job.out).manifest(plan.scene.id))
    if manifest is None or manifest.fingerprint != plan.fingerprint:
        return None
    files = _files_listed(manifest, plan, job)
    return manifest if files.names_in(job.out) == manifest.digests.keys() else None


def _files_listed(manifest: Manifest, plan: Plan, job: Job) -> SceneFiles:
    """Return the files that this job publishes, given which formats the manifest skipped."""
    files, out = files_for(plan, job), job.out
    skipped = {
        name
        for name, path in files.formats.items()
        if may_be_skipped(name) and not manifest.lists(path, out)
    }
    return files.without(skipped)


def _write_table(table: pa.Table, plan: Plan, job: Job, path: Path) -> None:
    georeferenced = plan.scene.crs is not None
    record = provenance_of(plan, job, versions()).to_json()
    table = with_metadata(table, record, georeferenced=georeferenced)
    pq.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP)


def _write_formats(
    table: pa.Table, plan: Plan, job: Job, files: SceneFiles, temporary: Mapping[Location, Path]
) -> None:
    scene, classes = plan.scene, job.card.classes
    image = SceneImage(scene.id, source_name(scene, job.settings), scene.width, scene.height)
    layer = Layer(scene.id, table, classes, (image,))
    for name, path in files.formats.items():
        FORMATS[name].write(layer, temporary[path])
    for path in files.styles.values():
        write_style(classes, temporary[path])


def _write_item(
    table: pa.Table, plan: Plan, job: Job, files: SceneFiles, temporary: Mapping[Location, Path]
) -> None:
    assets = {
        kind: PublishedFile(path, temporary[path])
        for kind, path in files.by_kind().items()
        if path != files.item
    }
    item = scene_item(plan, job, table, assets, versions())
    assert files.item is not None
    temporary[files.item].write_text(json.dumps(item, indent=2) + "\n", encoding="utf-8")


def _remove_outdated(scene_id: str, output: Output[Location], *, keep: set[Location]) -> None:
    """Remove the scene's older files: of another date, or of formats no longer requested."""
    for path in all_files_of(scene_id, output):
        if path not in keep:
            remove(path)
