"""A claim on a scene: of the runs that write one output, only one works on a scene at a time.

    OUT/.work/claims/<scene_id>     contains the key of the run: `pipeline.runs.writers`

The worker that plans a scene creates the claim, and only if there is none: with an exclusive open
in a folder, with a conditional put in a cloud. It removes the claim when the scene has its result.
A claim holds while its run is alive, so that a run needs one heartbeat for all its claims, and a
killed run keeps no scene. Before a scene is published its claim is looked at again: a run that was
suspended may have lost it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from scenesweep.pipeline.runs.lock import WAIT_S, age_of, output_lock
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.runs.writers import writer_of
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.storage.clients import Outdated
from scenesweep.pipeline.storage.commit import make_folder, remove, unwritable
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.objects import ObjectLocation, Version, put_over, read_version
from scenesweep.pipeline.storage.paths import Output

JUST_STARTED = "a run that has just started"
_ATTEMPTS = 5
_WRITING_S = 10.0
"""Writing a claim takes less time. An older empty one is left over from a process that died."""


def claim(out: Location, scene_id: str, writer: str) -> str:
    """Claim a scene for a run. Return the other run that has it, as text; empty if it is ours.

    It is ours too if this run claimed it before, or if there is no `writer`: then nobody else may
    write to the output.

    Raises:
        OutputError: if the claim cannot be written.
    """
    if not writer:
        return ""
    path = Output(out).claim(scene_id)
    if isinstance(path, ObjectLocation):
        return _claim_object(out, path, writer)
    return _claim_file(out, path, writer)


def keeps(out: Location, scene_id: str, writer: str) -> str:
    """Check that a scene is still claimed by a run, and claim it again if it is free.

    Return the other run that has it by now; empty if it is ours.
    """
    if not writer or _owner(Output(out).claim(scene_id)) == writer:
        return ""
    return claim(out, scene_id, writer)


def release(out: Location, scene_id: str, writer: str) -> None:
    """Remove the claim of a run on a scene, if it has one."""
    path = Output(out).claim(scene_id)
    if writer and _owner(path) == writer:
        remove(path)


def _owner(path: Location) -> str:
    """Return the key in a claim; empty if there is no claim, or it was not written completely."""
    with suppress(FileNotFoundError):
        return path.read_bytes().decode("ascii", errors="replace")
    return ""


def _claim_object(out: Location, path: ObjectLocation, writer: str) -> str:
    before: Version | None = None
    for _ in range(_ATTEMPTS):
        try:
            put_over(path, writer.encode(), before)
            return ""
        except Outdated:
            before = read_version(path)
        owner = before.content.decode("ascii", errors="replace") if before else ""
        if owner == writer:
            return ""
        if owner and (holder := writer_of(out, owner)):
            return str(holder)
    return JUST_STARTED


def _claim_file(out: Location, path: Path, writer: str) -> str:
    for _ in range(_ATTEMPTS):
        if _created(path, writer):
            return ""
        owner = _owner(path)
        if owner == writer:
            return ""
        if owner and (holder := writer_of(out, owner)):
            return str(holder)
        if not owner and _is_young(path):
            return JUST_STARTED
        _remove_dead(out, path, owner)
    return JUST_STARTED


def _created(path: Path, writer: str) -> bool:
    """Create a claim if there is none, and say whether that was so."""
    try:
        make_folder(path.parent)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    except OSError as error:
        raise unwritable(path.parent, error) from error
    try:
        os.write(descriptor, writer.encode())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise unwritable(path.parent, error) from error
    finally:
        os.close(descriptor)
    return True


def _is_young(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return age_of(path) < _WRITING_S
    return False


def _remove_dead(out: Location, path: Path, owner: str) -> None:
    """Remove the claim of a dead run. The lock keeps two runs from removing each other's."""
    with output_lock(out, wait_s=WAIT_S):
        if _owner(path) == owner:
            remove(path)


def in_use_result(ref: SceneRef, run: str) -> SceneResult:
    """Return the result of a scene that is left to another run."""
    why = f"another run is writing it: {run}; rerun the same command when it has ended"
    return SceneResult(ref.href, ref.scene_id, "in-use", reason=f"{ref.href}: {why}")
