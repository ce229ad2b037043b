"""How long our own files are kept under OUT. What is published is never deleted here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field

from model.architecture import Frozen

_REPORT = re.compile(r"(\d{8}T\d{6})-[0-9a-f]{6}\.json")
_WORK = re.compile(r"(.+)-[0-9a-f]{16}")


class Retention(Frozen):
    """Days after which files that only serve the runs themselves go. Empty: never."""

    runs_days: int | None = Field(None, ge=1)
    """Of run reports, by the time in their name; the newest one stays."""
    work_days: int | None = Field(None, ge=1)
    """Of the parts of scenes that are no longer among a run's, by their last change."""


def expired(
    out: Path, retention: Retention, *, scene_ids: Collection[str], now: datetime
) -> list[Path]:
    """Return the run reports and folders of parts that have had their time, in order.

    Nothing else is looked at, links are not followed, and a folder that holds anything but
    plain files stays. The parts of `scene_ids`, the scenes of this run, stay too.
    """
    found: list[Path] = []
    if retention.runs_days is not None:
        found += _old_reports(out / "runs", now - timedelta(days=retention.runs_days))
    if retention.work_days is not None:
        before = now - timedelta(days=retention.work_days)
        found += _old_parts(out / ".work", before, scene_ids)
    return found


def discard(paths: Collection[Path]) -> None:
    """Delete what `expired` returned; what has changed since, or is gone, is left."""
    for path in paths:
        with suppress(OSError):
            if path.is_dir():
                for file in path.iterdir():
                    file.unlink()
                path.rmdir()
            else:
                path.unlink()


def _old_reports(folder: Path, before: datetime) -> Iterator[Path]:
    reports = [path for path in _inside(folder) if _REPORT.fullmatch(path.name) and _plain(path)]
    for path in reports[:-1]:  # names sort by time
        time = datetime.strptime(path.name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        if time < before:
            yield path


def _old_parts(folder: Path, before: datetime, scene_ids: Collection[str]) -> Iterator[Path]:
    for path in _inside(folder):
        match = _WORK.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        # The id of a scene that failed lacks the hash of `scenes.ids: path`: hence the prefix.
        ours = any(f"{match[1]}-".startswith(f"{scene_id}-") for scene_id in scene_ids)
        if not ours and _untouched(path, before):
            yield path


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _untouched(folder: Path, before: datetime) -> bool:
    """Say whether a folder holds plain files alone and all is older; in doubt it is not."""
    files = _inside(folder)
    try:
        changed = max(path.stat().st_mtime for path in (folder, *files))
    except OSError:  # somebody is at work there
        return False
    return all(map(_plain, files)) and datetime.fromtimestamp(changed, UTC) < before
