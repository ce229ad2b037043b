"""The location of output: a folder, or a prefix of a bucket in a cloud.

Both have the same few methods, so the modules that read and list output work with either.
Only `pipeline.storage.commit` writes or deletes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import BinaryIO, TypeVar

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.storage.network import without_secrets
from scenesweep.pipeline.storage.objects import ObjectLocation, ObjectStat, fetch

Location = Path | ObjectLocation
T = TypeVar("T")
R = TypeVar("R")

_OBJECT = re.compile(r"(s3|gs|az)://([A-Za-z0-9][\w.-]*)(/.*)?", re.IGNORECASE)
_EXPECTED = "expected a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
_THREADS = 8


def location_of(out: str) -> Location:
    """Return the folder or the prefix in a cloud that a user names.

    Raises:
        UsageError: when it is neither.
    """
    if "://" not in out:
        return Path(out)
    match = _OBJECT.fullmatch(out)
    if match is None or ".." in out.split("/"):
        raise UsageError(f"{without_secrets(out)}: {_EXPECTED}")
    return ObjectLocation(
        match[1].lower(), PurePosixPath("/", match[2], (match[3] or "").strip("/"))
    )


def list_matching(folder: Location, pattern: str) -> list[Location]:
    """Return the paths in a folder that match a pattern, sorted; none when there is no folder."""
    paths: list[Location] = [*folder.glob(pattern)]
    return sorted(paths)


def name_in(out: Location, path: Location) -> str:
    """Return the path of a file relative to a folder above it, with slashes."""
    if isinstance(out, ObjectLocation) and isinstance(path, ObjectLocation):
        return path.path.relative_to(out.path).as_posix()
    return Path(str(path)).relative_to(str(out)).as_posix()


def sizes_under(folder: Location) -> Iterator[tuple[Location, int]]:
    """Yield all files below a folder, at any depth, and their sizes in bytes."""
    return ((path, stat.st_size) for path, stat in _stats_under(folder))


def versions_under(folder: Location) -> dict[Location, str]:
    """Return all files below a folder, at any depth, and their versions: see `version_in`."""
    return {path: version_of(stat) for path, stat in _stats_under(folder)}


def _stats_under(folder: Location) -> Iterator[tuple[Location, ObjectStat | os.stat_result]]:
    if isinstance(folder, ObjectLocation):
        return folder.objects()
    return ((path, path.stat()) for path in folder.rglob("*") if path.is_file())


def version_in(path: Location) -> str:
    """Return what changes when a file changes: size and modification time, or an object's ETag.

    Empty when the file does not exist.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ""
    return version_of(stat)


def version_of(stat: ObjectStat | os.stat_result) -> str:
    """Return the same as `version_in`, for a file whose status is known."""
    changed = stat.tag if isinstance(stat, ObjectStat) else stat.st_mtime_ns
    return f"{stat.st_size} {changed}"


def parquet(path: Location) -> Path | BinaryIO:
    """Return a file in a form that pyarrow reads; of an object, only the needed bytes are read.

    Raises:
        FileNotFoundError: when an object does not exist.
    """
    return path if isinstance(path, Path) else path.open("rb")


@contextmanager
def local_copies(paths: Sequence[Location], out: Location) -> Iterator[list[Path]]:
    """Give files of an output as files on disk; objects are copied for the time of the block."""
    if isinstance(out, Path):
        yield [path for path in paths if isinstance(path, Path)]
        return
    with TemporaryDirectory(prefix="scenesweep-") as folder:
        yield _copy([path for path in paths if isinstance(path, ObjectLocation)], out, Path(folder))


@contextmanager
def output_here(out: Location, patterns: Sequence[str]) -> Iterator[Path]:
    """Give an output as a folder; of a prefix, the matching objects are copied for the block."""
    if isinstance(out, Path):
        yield out
        return
    with TemporaryDirectory(prefix="scenesweep-") as folder:
        _copy([path for pattern in patterns for path in out.glob(pattern)], out, Path(folder))
        yield Path(folder)


def map_at_once(act: Callable[[T], R], many: Iterable[T], *, where: Location) -> list[R]:
    """Return the result of `act` for each value, in order; in a cloud, several run in parallel."""
    if isinstance(where, Path):
        return [act(value) for value in many]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(act, many))


def _copy(paths: Sequence[ObjectLocation], out: ObjectLocation, folder: Path) -> list[Path]:
    def copied(path: ObjectLocation) -> Path:
        fetch(path, folder / name_in(out, path))
        return folder / name_in(out, path)

    return map_at_once(copied, paths, where=out)
