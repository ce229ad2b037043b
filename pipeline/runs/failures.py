"""Scenes that fail: how many a run may have, and which are not tried again until they change."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import shapely

from scenesweep.pipeline.errors import SceneError, UsageError
from scenesweep.pipeline.planning.plan import PUBLISH_VERSION, STAGE_VERSION, Job
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import Run, SceneResult
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import fingerprint
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.network import is_remote, version_of, without_secrets
from scenesweep.pipeline.storage.paths import Output
from scenesweep.pipeline.versions import versions

_ALLOWED = re.compile(r"(\d+)|(\d+(?:\.\d+)?)\s*%")
_WORKER_LOST = "given up: a worker was lost"  # how `pipeline.engine.loop` begins such a reason


@dataclass(frozen=True, slots=True)
class Failure:
    """How often in a row a scene failed for one reason, and the fingerprint it had then."""

    href: str
    fingerprint: str
    reason: str
    times: int


def failures_allowed(asked: int | str, scenes: int) -> int:
    """Return how many of so many scenes may fail: `5`, or a share of them such as `5%`.

    Raises:
        UsageError: when it is neither.
    """
    match = _ALLOWED.fullmatch(str(asked).strip())
    if match is None or (match[2] and float(match[2]) > 100):
        raise UsageError(
            f"--allow-failed {asked}: expected a number of scenes, or a share such as 5%"
        )
    return int(match[1]) if match[1] else int(scenes * float(match[2]) / 100)


def quarantine_file(out: Location) -> Location:
    """Return the file that names the scenes that failed; it may be deleted at any time."""
    return Output(out).failures


def read_failures(out: Location) -> dict[str, Failure]:
    """Return the failures of earlier runs by scene id; none when the file cannot be read."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        listed = json.loads(quarantine_file(out).read_text(encoding="utf-8"))
        return {scene_id: Failure(**facts) for scene_id, facts in listed.items()}
    return {}


def quarantined(order: Order, known: Mapping[str, Failure], after: int) -> list[SceneResult]:
    """Return a result for each scene that failed `after` times in a row and is still the same."""
    return [
        SceneResult(
            source.href,
            source.scene_id,
            "quarantined",
            reason=f"{source.href}: not tried: failed {failure.times} times and has not changed "
            f"since ({_bare(failure)}); --retry-failed tries it again",
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
    """Return the failures after a run.

    One counts when it is the scene's own: a worker that was lost, a bug of ours or a file that
    is not there says nothing about the scene. Nothing counts where all scenes failed: then the
    storage or the model is wrong.
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
        before = failures.get(result.scene_id)
        same = before is not None and (before.fingerprint, before.reason) == (
            version,
            result.reason,
        )
        times = before.times + 1 if before is not None and same else 1
        failures[result.scene_id] = Failure(result.href, version, result.reason, times)
    return failures


def write_failures(failures: Mapping[str, Failure], out: Location) -> None:
    """Write the failures for the next run.

    Raises:
        OutputError: when they cannot be written.
    """
    text = json.dumps({key: asdict(failure) for key, failure in failures.items()}, indent=2)
    with atomic_write(quarantine_file(out), Output(out).aside) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def own_fault(result: SceneResult) -> bool:
    """Say whether a scene failed for a reason of its own."""
    return not result.bug and not result.reason.startswith(_WORKER_LOST)


def failure_fingerprint(source: SceneRef, job: Job) -> str | None:
    """Hash what a failure depends on: the scene's files, the job and the program's version.

    None when a file is not there or its server does not answer.
    """
    try:
        files = [_version(file.href) for file in source.files]
    except (OSError, SceneError):
        return None
    settings = job.settings.model_dump(exclude={"engine", "publish"})
    area = None if job.area is None else shapely.to_wkb(job.area, hex=True)
    program = (versions(), STAGE_VERSION, PUBLISH_VERSION)
    return fingerprint(files, source.join, job.model_sha256, settings, area, program)


def _version(href: str) -> tuple[str, ...]:
    """Return what changes with a file, or with a file beside it that may repair it."""
    if is_remote(href):
        version = version_of(href)
        return (without_secrets(href), version.tag, str(version.size))
    path = Path(href)
    path.stat()  # raises where it is missing
    beside = path.parent.glob(f"{glob.escape(path.stem)}.*")
    facts = [(file.name, file.stat()) for file in sorted({path, *beside})]
    return tuple(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts)


def _bare(failure: Failure) -> str:
    return failure.reason.removeprefix(failure.href).removeprefix(": ")
