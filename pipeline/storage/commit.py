"""Write files atomically: write a temporary file, sync it, rename it, sync its folder.

After a crash or a power cut, a reader sees the old file or the complete new one, never a part.
Each step is a function of its own: `tests/faults` kills a run at every one of them. A file for an
object store is first written to this machine's own disk, then uploaded as one object.

Published files are written and deleted only here.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from scenesweep.pipeline.errors import OutputError
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.objects import ObjectLocation, delete, fetch, put

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # some network file systems
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.\w+)?")


@contextmanager
def atomic_write(path: Location, folder: Location, *, lasting: bool = True) -> Iterator[Path]:
    """Give a temporary path in `folder`; rename it to `path` when the block succeeds.

    `folder` must be on the file system of `path`. Published files use a folder under OUT/.work,
    so no partial file ever lies among them. With `lasting` false the folder of `path` is not
    synced: after a power cut the file may be missing, but it is never partial. For an object
    store, the temporary path is in a folder of this machine.

    Raises:
        OutputError: when the disk is full, or writing is not permitted.
    """
    with atomic_write_group([path], folder, lasting=lasting) as temporary:
        yield temporary[path]


@contextmanager
def atomic_write_group(
    files: Sequence[Location], folder: Location, *, lasting: bool = True
) -> Iterator[dict[Location, Path]]:
    """Give a temporary path for each file; rename them, in order, when the block succeeds.

    The last file is renamed after the others are safe in their folders: if the last one exists,
    all of them exist.

    Raises:
        OutputError: as `atomic_write`.
    """
    temporary: dict[Location, Path] = {}
    own = TemporaryDirectory(prefix="scenesweep-") if isinstance(folder, ObjectLocation) else None
    local = Path(own.name if own else str(folder))
    try:
        for parent in dict.fromkeys([folder, *(path.parent for path in files)]):
            make_folder(parent)
        temporary = {path: _temporary_path(path, local) for path in files}
        yield temporary
        for written in temporary.values():
            _sync_file(written)
        for group in (files[:-1], files[-1:]):
            for path in group:
                _rename(temporary[path], path)
            for parent in {path.parent: None for path in group if lasting}:
                _sync_folder(parent)
    except OSError as error:
        raise unwritable(local if own else files[0].parent, error) from error
    finally:
        for written in temporary.values():
            with suppress(OSError):
                written.unlink(missing_ok=True)
        if own:
            own.cleanup()


def make_folder(folder: Location) -> None:
    """Make a folder and its parents, and sync them; an object store has no folders."""
    if isinstance(folder, ObjectLocation):
        return
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def copy_ready(ready: Location, path: Path) -> None:
    """Give a complete file of our own a second name, so that `ready` stays; copy it if need be."""
    if isinstance(ready, ObjectLocation):
        fetch(ready, path)
        return
    try:
        path.hardlink_to(ready)
    except OSError:  # some file systems have no links
        shutil.copyfile(ready, path)


def remove(path: Location) -> None:
    """Remove a file if it exists, and sync its folder.

    Raises:
        OutputError: when the file cannot be removed.
    """
    if isinstance(path, ObjectLocation):
        delete([path])
        return
    try:
        path.unlink()
        _sync_folder(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unwritable(path, error) from error


def remove_folder(folder: Location) -> None:
    """Remove a folder of ours and its content; what cannot be removed stays."""
    if isinstance(folder, ObjectLocation):
        delete([path for path, _ in folder.objects()])
    else:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_more(path: Path) -> NoReturn:
    """Write more bytes to a file that a library could not complete, to learn the system's error.

    Libraries such as GDAL and SQLite report a failed write without its cause. One more write
    fails with the cause, for example a full disk.

    Raises:
        OSError: always.
    """
    with path.open("ab") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    raise OSError(f"{path.name} was not written completely")


def drop_leftovers(folder: Location) -> None:
    """Remove the temporary files of killed runs from a folder that no other run writes to.

    An object store has no temporary files.
    """
    if isinstance(folder, ObjectLocation):
        return
    with suppress(OSError):
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def unwritable(path: Location, error: OSError) -> OutputError:
    """Return the error for a full disk, an exceeded quota or a missing permission."""
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    return OutputError(f"{path}: cannot be written: {reason}. Fix this and rerun the same command.")


def _temporary_path(path: Location, folder: Path) -> Path:
    # The suffix stays last: libraries choose the format by it.
    return folder / f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}"


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _rename(temporary: Path, path: Location) -> None:
    if isinstance(path, ObjectLocation):
        put(temporary, path)
    else:
        temporary.replace(path)


def _sync_folder(folder: Location) -> None:
    if isinstance(folder, ObjectLocation):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
