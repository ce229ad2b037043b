"""Scenes that an earlier run published: recognised by sizes and times, without opening a file.

    OUT/.work/known/<scene_id>.json

A run writes this record after it published a scene, or found it up to date. It holds a hash of
everything that the results depend on (the versions of the source files, the model, settings, area
of interest), the version of each published file and of the manifest, and the result. A version is
the size and the modification time of a file, or the ETag of an object. If all of them are the same
in a later run, the scene is up to date, and the run neither plans it nor reads any of its files.
If one differs, or there is no record, the run plans the scene and compares digests. `scenesweep
verify` reads all bytes.

The record contains times, so it is not a published file: the same inputs give the same published
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial

import pyarrow.parquet as pq
import shapely
from pydantic import TypeAdapter

from scenesweep.pipeline.errors import SceneError
from scenesweep.pipeline.planning.plan import PUBLISH_VERSION, STAGE_VERSION, Job
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import fingerprint
from scenesweep.pipeline.sources.changes import Folders, file_versions
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location, name_in, parquet, version_in
from scenesweep.pipeline.storage.network import is_remote
from scenesweep.pipeline.storage.objects import ObjectLocation
from scenesweep.pipeline.storage.paths import TABLES, Output
from scenesweep.pipeline.versions import versions

_THREADS = 32
_AND = "-"


@dataclass(frozen=True, slots=True)
class Known:
    """What was published for a scene.

    `inputs` is the hash of `inputs_of`. `files` are the versions of the published files and of the
    manifest by their path under OUT. `result` has its files relative to OUT.
    """

    inputs: str
    files: Mapping[str, str]
    result: SceneResult


_KNOWN = TypeAdapter(Known)


def method_of(job: Job) -> str:
    """Hash what the results of all scenes depend on; empty when a run must read all their bytes."""
    if job.settings.scenes.checksums == "record":
        return ""
    settings = job.settings.model_dump(mode="json", exclude={"engine"})
    area = None if job.area is None else shapely.to_wkb(job.area, hex=True)
    layers = job.layers.hashes() if job.layers else None
    program = (versions()["scenesweep"], STAGE_VERSION, PUBLISH_VERSION)
    card = job.card.model_dump(mode="json")
    return fingerprint(card, job.model_sha256, settings, area, layers, program)


def inputs_of(ref: SceneRef, method: str, folders: Folders | None = None) -> str:
    """Hash everything that the results of a scene depend on, given `method_of` the job.

    The hash of the source files comes first, so that it can be compared alone. It is empty when it
    cannot be known: when `method` is empty, a file is missing, or a remote file has no ETag.
    """
    source = _source_of(ref, folders) if method else ""
    return f"{source}{_AND}{fingerprint(asdict(ref.hints), method)}" if source else ""


def _source_of(ref: SceneRef, folders: Folders | None) -> str:
    """Hash the files of a scene by their sizes and times, or ETags; empty if one is unknown."""
    try:
        files = file_versions(ref, folders)
    except (OSError, SceneError):
        return ""
    if not all(version for file in files for version in file):
        return ""
    names = [(file.names, file.checksum) for file in ref.files]
    return fingerprint(files, names, ref.scene_id, ref.join)


def remember(result: SceneResult, inputs: str, files: Sequence[Location], job: Job) -> None:
    """Write the record of a scene that is published, or was found up to date.

    `result` is that of an up-to-date scene, and `files` are its files in the same order. `inputs`
    must have been taken before the scene was planned: the source may change meanwhile.

    Raises:
        OutputError: when the record cannot be written.
    """
    if not inputs:
        return
    output = Output(job.out)
    paths = [*files, output.manifest(result.scene_id)]
    versions_now = {name_in(job.out, path): version_in(path) for path in paths}
    names = dict(zip(result.files, map(partial(name_in, job.out), files), strict=True))
    known = Known(inputs, versions_now, replace(result, files=names))
    with atomic_write(output.known(result.scene_id), output.aside, lasting=False) as aside:
        aside.write_text(json.dumps(asdict(known)), encoding="utf-8")


def recognised(order: Order) -> list[SceneResult]:
    """Return the result of each scene that is up to date by its record.

    With `order.only_new`, also of each scene that was published in any way, unless its files
    changed since.
    """
    find = partial(_recognise, job=order.job, method=method_of(order.job), folders=Folders())
    if order.only_new:
        output = Output(order.job.out)
        manifests = {path.stem for path in output.manifests()}
        tables = {table.stem: table for table in output.tables() if table.stem in manifests}
        find = partial(_published, out=order.job.out, tables=tables, folders=Folders())
    remote = isinstance(order.job.out, ObjectLocation) or any(
        is_remote(file.href) for source in order.sources for file in source.files
    )
    if remote:  # many requests wait at once
        with ThreadPoolExecutor(_THREADS) as threads:
            results = list(threads.map(find, order.sources))
    else:
        results = list(map(find, order.sources))
    return [result for result in results if result is not None]


def _recognise(ref: SceneRef, *, job: Job, method: str, folders: Folders) -> SceneResult | None:
    known = _read(Output(job.out).known(ref.scene_id))
    if known is None or known.inputs != inputs_of(ref, method, folders):
        return None
    if any(version_in(job.out / name) != version for name, version in known.files.items()):
        return None
    files = {kind: str(job.out / name) for kind, name in known.result.files.items()}
    return replace(known.result, files=files, href=ref.href)


def _published(
    ref: SceneRef, *, out: Location, tables: Mapping[str, Location], folders: Folders
) -> SceneResult | None:
    """Return the result of a scene that has a table, unless its files changed since."""
    table = tables.get(ref.scene_id)
    if table is None:
        return None
    known = _read(Output(out).known(ref.scene_id))
    if known is None:
        try:
            rows = pq.read_metadata(parquet(table)).num_rows
        except (OSError, ValueError):  # damaged: sweep the scene again
            return None
        files = {TABLES: str(table)}
        return SceneResult(ref.href, ref.scene_id, "up-to-date", detections=rows, files=files)
    before, both, _ = known.inputs.partition(_AND)
    now = _source_of(ref, folders)
    if both and now and now != before:
        return None
    files = {kind: str(out / name) for kind, name in known.result.files.items()}
    return replace(known.result, files=files, href=ref.href)


def _read(path: Location) -> Known | None:
    """Read a record; None when there is none, or it is damaged or of another version."""
    with suppress(OSError, ValueError):
        return _KNOWN.validate_json(path.read_bytes())
    return None
