"""Scenes that fail: how many a run may have, and which ones runs skip until they change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import shapely

from scenesweep.pipeline.errors import SceneError, UsageError
from scenesweep.pipeline.planning.plan import PUBLISH_VERSION, STAGE_VERSION, Job
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import Run, SceneResult
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import fingerprint
from scenesweep.pipeline.sources.changes import file_versions
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output
from scenesweep.pipeline.versions import versions

_ALLOWED = re.compile(r"(\d+)|(\d+(?:\.\d+)?)\s*%")
_WORKER_LOST = "given up: "  # a worker or its node was lost: `engine.retries`


@dataclass(frozen=True, slots=True)
class Failure:
    """How often in a row a scene failed for the same reason, and its fingerprint at that time."""

    href: str
    fingerprint: str
    reason: str
    times: int


def failures_allowed(limit: int | str, scenes: int) -> int:
    """Return how many of `scenes` may fail, for a `limit` such as `5` or `5%`.

    Raises:
        UsageError: if the limit is neither.
    """
    match = _ALLOWED.fullmatch(str(limit).strip())
    if match is None or (match[2] and float(match[2]) > 100):
        raise UsageError(
            f"--allow-failed {limit}: expected a number of scenes, or a share such as 5%"
        )
    return int(match[1]) if match[1] else int(scenes * float(match[2]) / 100)


def quarantine_file(out: Location) -> Location:
    """Return the path of the file with the failed scenes. Users may delete it at any time."""
    return Output(out).failures


def read_failures(out: Location) -> dict[str, Failure]:
    """Return the failures of earlier runs by scene id; none if the file cannot be read."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        listed = json.loads(quarantine_file(out).read_text(encoding="utf-8"))
        return {scene_id: Failure(**facts) for scene_id, facts in listed.items()}
    return {}


def quarantined(order: Order, known: Mapping[str, Failure], after: int) -> list[SceneResult]:
    """Return a result for each scene that failed `after` times in a row and has not changed."""
    return [
        SceneResult(
            source.href,
            source.scene_id,
            "quarantined",
            reason=f"{source.href}: skipped: failed {failure.times} times in a row and has not "
            f"changed since ({_without_name(failure)}); to retry it, use --retry-failed",
        )
        for source in order.sources
        if (failure := known.get(source.scene_id)) is not None
        and failure.times >= after
        and failure.fingerprint == failure_fingerprint(source, order.job)
    ]


def without(order: Order, results: Iterable[SceneResult]) -> Order:
    """Return the order without the scenes that have these results."""
    ids = {result.scene_id for result in results}
    return replace(order, sources=tuple(s for s in order.sources if s.scene_id not in ids))


def noted(run: Run, order: Order, known: Mapping[str, Failure]) -> dict[str, Failure]:
    """Return the failures after a run, given those that were known before.

    Only failures count that are the scene's own fault: a lost worker, a bug in scenesweep or a
    missing file says nothing about the scene. If all scenes failed, nothing counts, because the
    storage or the model must be wrong.
    """
    sources = {source.scene_id: source for source in order.sources}
    failures = dict(known)
    for result in run.results:
        if result.status in ("done", "up-to-date"):
            failures.pop(result.scene_id, None)
    if run.all_failed:
        return failures
    for result in run.results:
        source = sources.get(result.scene_id)
        if result.status != "failed" or source is None or not own_fault(result):
            continue
        version = failure_fingerprint(source, order.job)
        if version is None:
            continue
        before, times = failures.get(result.scene_id), 1
        if before is not None and (before.fingerprint, before.reason) == (version, result.reason):
            times += before.times
        failures[result.scene_id] = Failure(result.href, version, result.reason, times)
    return failures


def write_failures(failures: Mapping[str, Failure], out: Location) -> None:
    """Write the failures for the next run.

    Raises:
        OutputError: if the file cannot be written.
    """
    text = json.dumps({key: asdict(failure) for key, failure in failures.items()}, indent=2)
    with atomic_write(quarantine_file(out), Output(out).aside) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def own_fault(result: SceneResult) -> bool:
    """Say whether the failure is the scene's own fault."""
    return not result.bug and not result.reason.startswith(_WORKER_LOST)


def failure_fingerprint(source: SceneRef, job: Job) -> str | None:
    """Hash what a failure depends on: the scene's files, the job and scenesweep's version.

    Return None if a file is missing or its server does not answer.
    """
    try:
        files = file_versions(source)
    except (OSError, SceneError):
        return None
    settings = job.settings.model_dump(exclude={"engine", "publish"})
    area = None if job.area is None else shapely.to_wkb(job.area, hex=True)
    program = (versions(), STAGE_VERSION, PUBLISH_VERSION)
    return fingerprint(files, source.join, job.model_sha256, settings, area, program)


def _without_name(failure: Failure) -> str:
    return failure.reason.removeprefix(failure.href).removeprefix(": ")
