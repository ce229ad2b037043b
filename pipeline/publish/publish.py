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

from scenesweep.pipeline.detection.detect import Candidates, ShardDetections
from scenesweep.pipeline.detection.merge import merge
from scenesweep.pipeline.geometry.georef import corners, on_earth
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.files import (
    SceneFiles,
    all_files_of,
    files_for,
    skipped_formats,
)
from scenesweep.pipeline.publish.formats import FORMATS, Layer, SceneImage
from scenesweep.pipeline.publish.formats.qml import write_style
from scenesweep.pipeline.publish.manifest import (
    write_manifest,
)
from scenesweep.pipeline.publish.provenance import provenance_of
from scenesweep.pipeline.publish.quicklook import draw_quicklook
from scenesweep.pipeline.publish.stac.item import PublishedFile, scene_item, source_name
from scenesweep.pipeline.publish.table import Origin, detection_table, with_metadata
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.storage.commit import atomic_write_group, remove
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output
from scenesweep.pipeline.versions import versions

ROWS_PER_GROUP = 100_000


def left_out(plan: Plan, job: Job, *, rows: int) -> tuple[str, ...]:
    """Return the reasons why some of the requested formats are not written for a scene."""
    return tuple(skipped_formats(plan, job, rows=rows).values())


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
