"""Delete old run reports and part files under OUT. Published files are never deleted here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

from pydantic import Field

from scenesweep.model.architecture import Frozen
from scenesweep.pipeline.errors import OutputError
from scenesweep.pipeline.runs.claims import claim, release
from scenesweep.pipeline.storage.commit import remove, remove_folder
from scenesweep.pipeline.storage.location import Location, list_matching
from scenesweep.pipeline.storage.objects import ObjectLocation
from scenesweep.pipeline.storage.paths import Output

_REPORT = re.compile(r"(\d{8}T\d{6})-[0-9a-f]{6}\.json")
_WORK = re.compile(r"(.+)-[0-9a-f]{16}")


class Retention(Frozen):
    """Days after which a run deletes its own old files. Empty: never."""

    runs_days: int | None = Field(None, ge=1)
    """Age of run reports to delete, by the time in their names. The newest report stays."""
    work_days: int | None = Field(None, ge=1)
    """Age of part files to delete, by their last change, of scenes that are not in the run."""


def expired(
    out: Location, retention: Retention, *, scene_ids: Collection[str], now: datetime
) -> list[Location]:
    """Return the run reports and folders of part files that are too old, in order.

    Links are not followed. A folder that contains anything but plain files is kept, and so are
    the part files of `scene_ids`, the scenes of this run.
    """
    old: list[Location] = []
    if retention.runs_days is not None:
        old += _old_reports(Output(out).reports, now - timedelta(days=retention.runs_days))
    if retention.work_days is not None:
        before = now - timedelta(days=retention.work_days)
        old += _old_parts(Output(out).work, before, scene_ids)
    return old


def discard(paths: Collection[Location], out: Location, writer: str = "") -> list[Location]:
    """Delete what `expired` returned, and return what was deleted, or is gone.

    The parts of a scene stay if another run than `writer` works on it.
    """
    return [path for path in paths if _discard_claimed(path, out, writer)]


def _discard_claimed(path: Location, out: Location, writer: str) -> bool:
    match = _WORK.fullmatch(path.name)
    if match is None:
        return _discard(path)
    if claim(out, match[1], writer):
        return False
    done = _discard(path)
    release(out, match[1], writer)
    return done


def _discard(path: Location) -> bool:
    """Delete a file or a folder; say whether it is gone."""
    try:
        if isinstance(path, ObjectLocation):
            _discard_objects(path)
        elif path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    except (OSError, OutputError):
        return False
    return True


def _discard_objects(path: ObjectLocation) -> None:
    if _REPORT.fullmatch(path.name):
        remove(path)
    else:
        remove_folder(path)


def _old_reports(folder: Location, before: datetime) -> Iterator[Location]:
    reports = [path for path in _inside(folder) if _REPORT.fullmatch(path.name) and _is_file(path)]
    for path in reports[:-1]:  # names sort by time
        time = datetime.strptime(path.name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        if time < before:
            yield path


def _old_parts(
    folder: Location, before: datetime, scene_ids: Collection[str]
) -> Iterator[Location]:
    for path in _inside(folder):
        match = _WORK.fullmatch(path.name)
        if match is None or not _is_folder(path):
            continue
        if match[1] not in scene_ids and _is_older(path, before):
            yield path


def _inside(folder: Location) -> list[Location]:
    return list_matching(folder, "*") if _is_folder(folder) else []


def _is_folder(path: Location) -> bool:
    return path.is_dir() and (isinstance(path, ObjectLocation) or not path.is_symlink())


def _is_file(path: Location) -> bool:
    return isinstance(path, ObjectLocation) or (path.is_file() and not path.is_symlink())


def _is_older(folder: Location, before: datetime) -> bool:
    """Say whether a folder has only plain files and all are older; False if in doubt."""
    if isinstance(folder, ObjectLocation):
        files = list(folder.objects())
        if not files:  # another process emptied it since it was listed
            return False
        changed = max(facts.st_mtime for _, facts in files)
        flat = all(path.parent == folder for path, _ in files)
        return flat and datetime.fromtimestamp(changed, UTC) < before
    inside = _inside(folder)
    try:
        changed = max(path.stat().st_mtime for path in (folder, *inside))
    except OSError:  # another process is changing it
        return False
    return all(map(_is_file, inside)) and datetime.fromtimestamp(changed, UTC) < before
