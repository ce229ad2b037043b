"""Publish a scene: merge its parts, and write its files atomically.

`pipeline.storage.paths` says where the files lie. The manifest is deleted first. The table is
renamed after all other files. The manifest is written last: if it exists, all files are complete
and from one publication. `pipeline.publish.pieces` prepares the files of a large scene.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import shapely

from scenesweep.pipeline.detection.detect import Candidates, ShardDetections
from scenesweep.pipeline.detection.merge import merge
from scenesweep.pipeline.geometry.georef import corners, on_earth
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.coverage import coverage_table, scene_coverage, write_coverage
from scenesweep.pipeline.publish.files import (
    STYLE_KIND,
    SceneFiles,
    all_files_of,
    files_for,
    skipped_formats,
)
from scenesweep.pipeline.publish.formats import FORMATS, Layer, SceneImage
from scenesweep.pipeline.publish.formats.qml import write_style
from scenesweep.pipeline.publish.manifest import sha256, write_manifest
from scenesweep.pipeline.publish.provenance import provenance_of
from scenesweep.pipeline.publish.quicklook import draw_quicklook
from scenesweep.pipeline.publish.rows import Rows
from scenesweep.pipeline.publish.stac.item import (
    PublishedFile,
    SceneFacts,
    scene_item,
    source_name,
)
from scenesweep.pipeline.publish.table import (
    REPEATED_COLUMNS,
    SCHEMA,
    Origin,
    detection_table,
    file_metadata,
    geo_metadata,
)
from scenesweep.pipeline.raster.quality import masked_shares
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.storage.commit import atomic_write_group, copy_ready, remove
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import COVERAGE, TABLES, Output
from scenesweep.pipeline.versions import versions

ROWS_PER_GROUP = 100_000


@dataclass(frozen=True, slots=True)
class ReadyFile:
    """A file that an earlier step wrote, and the SHA-256 that it had then."""

    path: Location
    sha256: str


def merged(parts: Sequence[ShardDetections], plan: Plan, job: Job) -> Candidates:
    """Merge the parts of a scene, and drop detections that are not published.

    Candidates with a score below `merge.min_scores` of their class are dropped before the merge,
    so that a detection that is not published never suppresses a published one.
    """
    return to_publish(merge(candidates_of(parts, job), job.settings.merge), plan, job)


def candidates_of(parts: Sequence[ShardDetections], job: Job) -> Candidates:
    """Return the candidates of parts without those under `merge.min_scores`."""
    candidates = Candidates.join(Candidates.none(), *(part.candidates for part in parts))
    least = job.settings.merge.min_scores
    of_class = np.array([least.get(name, 0.0) for name in job.card.classes], np.float32)
    return candidates.take(candidates.score >= of_class[candidates.label])


def to_publish(detections: Candidates, plan: Plan, job: Job) -> Candidates:
    """Drop merged detections that are not published.

    These have a corner off the Earth or a centre outside the area of interest, or are masked and
    the policy is to drop them.
    """
    detections = _on_earth(detections, plan.scene)
    if plan.area_px is not None:
        x, y = ((detections.xyxy[:, :2] + detections.xyxy[:, 2:]) / 2).T
        shapely.prepare(plan.area_px)
        detections = detections.take(shapely.intersects_xy(plan.area_px, x, y))
    if plan.quality is None or job.settings.mask.policy == "flag":
        return detections
    shares = masked_shares(plan.quality, detections.xyxy, plan.scene)
    return detections.take(~(shares > job.settings.mask.drop_above))


def _on_earth(detections: Candidates, scene: Scene) -> Candidates:
    """Drop boxes with a corner off the Earth: such a corner has no longitude and latitude."""
    if not scene.off_earth or scene.crs is None or scene.transform is None:
        return detections
    is_on_earth = on_earth(corners(detections.xyxy), scene.crs, scene.transform)
    return detections.take(np.logical_and.reduce(is_on_earth, axis=1))


def origin_of(plan: Plan, job: Job) -> Origin:
    """Return what is the same in all rows of a scene."""
    card = job.card.calibrated_for(job.settings.detect)
    return Origin(plan.scene, card, job.model_sha256, plan.fingerprint, plan.quality, job.layers)


def publish(
    detections: Candidates, plan: Plan, job: Job, *, windows: int | None = None
) -> SceneFiles:
    """Write the files of a scene, given its merged detections, and return them.

    `windows` is the number of windows that were looked at; without it, that of the plan.
    """
    table = detection_table(detections, origin_of(plan, job))
    windows = plan.layout.windows if windows is None else windows
    return publish_rows(Rows.of(table, job.card.classes), plan, job, windows=windows)


def publish_rows(
    rows: Rows,
    plan: Plan,
    job: Job,
    *,
    windows: int,
    ready: Mapping[str, ReadyFile] | None = None,
) -> SceneFiles:
    """Write the files of a scene and return them. Files that are `ready`, by kind, are copied.
    One that is damaged is written again.

    The manifest is deleted first and written last; if it exists, all files are complete and from
    one publication.
    """
    output, ready = Output(job.out), ready or {}
    files = files_for(plan, job).without(skipped_formats(plan, job, rows=rows.count))
    by_kind = {kind: path for kind, path in files.by_kind().items() if path != files.item}
    coverage = scene_coverage(plan, job)
    digests: dict[Location, str] = {}
    remove(output.manifest(plan.scene.id))
    _remove_outdated(plan.scene.id, output, keep=set(files.paths()))
    with atomic_write_group(files.paths(), output.aside) as temporary:
        for kind, path in by_kind.items():
            if kind in ready and _copied(ready[kind], temporary[path]):
                continue
            if kind == COVERAGE and coverage is not None:
                table = coverage_table(coverage, plan, job, windows=windows)
                write_coverage(table, temporary[path])
            else:
                write_file(kind, rows, plan, job, temporary[path])
        digests |= {path: sha256(temporary[path]) for path in by_kind.values()}
        if files.item is not None:  # after all files that it describes
            assets = {
                kind: PublishedFile(path, temporary[path].stat().st_size, digests[path])
                for kind, path in by_kind.items()
            }
            facts = SceneFacts(rows.counts, coverage, versions())
            item = scene_item(plan, job, facts, assets)
            text = json.dumps(item, indent=2) + "\n"
            temporary[files.item].write_text(text, encoding="utf-8")
            digests[files.item] = sha256(temporary[files.item])
    in_order = {path: digests[path] for path in files.paths()}
    write_manifest(output.root, plan.scene.id, plan.fingerprint, in_order)
    return files


def _copied(ready: ReadyFile, path: Path) -> bool:
    """Copy a file that is ready; return False, and leave none, if it is missing or damaged."""
    try:
        copy_ready(ready.path, path)
        if sha256(path) == ready.sha256:
            return True
    except FileNotFoundError:
        pass
    path.unlink(missing_ok=True)
    return False


def write_file(kind: str, rows: Rows, plan: Plan, job: Job, path: Path) -> None:
    """Write one file of a scene: its table, another format, a style or the quicklook."""
    if kind == TABLES:
        _write_table(rows, plan, job, path)
    elif kind in FORMATS:
        FORMATS[kind].write(_layer(rows, plan, job), path)
    elif kind.endswith(STYLE_KIND):
        write_style(job.card.classes, path)
    else:
        draw_quicklook(plan.source, path, longest_px=job.settings.publish.quicklook_px)


def _write_table(rows: Rows, plan: Plan, job: Job, path: Path) -> None:
    record = provenance_of(plan, job, versions()).to_json()
    geo = geo_metadata(rows.bounds, georeferenced=plan.scene.crs is not None)
    schema = SCHEMA.with_metadata(file_metadata(geo, record))
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=REPEATED_COLUMNS
    ) as writer:
        for group in rows.in_groups(ROWS_PER_GROUP):
            writer.write_table(group.cast(schema), row_group_size=ROWS_PER_GROUP)


def _layer(rows: Rows, plan: Plan, job: Job) -> Layer:
    scene = plan.scene
    image = SceneImage(scene.id, source_name(scene, job.settings), scene.width, scene.height)
    return Layer(scene.id, rows.table(), job.card.classes, (image,))


def _remove_outdated(scene_id: str, output: Output[Location], *, keep: set[Location]) -> None:
    """Remove the scene's older files: of another date, or of formats no longer requested."""
    for path in all_files_of(scene_id, output):
        if path not in keep:
            remove(path)
