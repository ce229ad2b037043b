"""Decide whether a scene is up to date: what is published for it, and may it be replaced?"""

from __future__ import annotations

from shapely import Geometry

from scenesweep.pipeline.errors import SceneError, UnreadableOutput
from scenesweep.pipeline.planning.area import is_narrower
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.files import (
    SceneFiles,
    files_for,
    may_be_skipped,
)
from scenesweep.pipeline.publish.manifest import (
    Damage,
    Manifest,
    read_manifest,
)
from scenesweep.pipeline.publish.provenance import Provenance, read_footer
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output


def published_files(plan: Plan, job: Job) -> SceneFiles | None:
    """Return the scene's files that the manifest lists.

    None when nothing is published for the same source, model and settings.
    """
    manifest = _current_manifest(plan, job)
    return None if manifest is None else _files_listed(manifest, plan, job)


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
