"""Commit files: written aside, synced, renamed into place, and their folders synced.

After a crash or a power cut, a reader sees the old file or the whole new one. Each step is a
function of its own: `tests/faults` kills a run at every one of them. What goes to a store is
written aside on this machine's own disk, and instead of being renamed it is put as one object.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from scenesweep.pipeline.errors import OutputError
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.objects import S3Location, delete, put

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # some network file systems
_ASIDE = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.\w+)?")


@contextmanager
def atomic_write(path: Location, folder: Location, *, lasting: bool = True) -> Iterator[Path]:
    """Give a temporary path in `folder`; rename it to `path` when the block succeeds.

    `folder` must be on the file system of `path`; published files use one under OUT/.work, so
    that nothing half-written ever lies among them. A file that is not `lasting` may be gone
    after a power cut, though never half there: its folder is not synced. On a store, the temporary
    path is in a folder of this machine.

    Raises:
        OutputError: when the block or the commit fails for want of space or permission.
    """
    with atomic_write_group({"": path}, folder, lasting=lasting) as asides:
        yield asides[""]


@contextmanager
def atomic_write_group(
    files: Mapping[str, Location], folder: Location, *, lasting: bool = True
) -> Iterator[dict[str, Path]]:
    """Give temporary paths for some files; rename them, in order, when the block succeeds.

    The last one is renamed when the others are safe in their folders: if it is there, they are.

    Raises:
        OutputError: as `atomic_write`.
    """
    asides: dict[str, Path] = {}
    own = TemporaryDirectory(prefix="scenesweep-") if isinstance(folder, S3Location) else None
    beside = Path(own.name if own else str(folder))
    try:
        for parent in dict.fromkeys([folder, *(path.parent for path in files.values())]):
            make_folder(parent)
        asides = {kind: _aside(path, beside) for kind, path in files.items()}
        yield asides
        for aside in asides.values():
            _sync_file(aside)
        *others, last = files
        for group in (others, [last]):
            for kind in group:
                _rename(asides[kind], files[kind])
            for parent in {files[kind].parent: None for kind in group if lasting}:
                _sync_folder(parent)
    except OSError as error:
        where = beside if own else next(iter(files.values())).parent
        raise unwritable(where, error) from error
    finally:
        for aside in asides.values():
            with suppress(OSError):
                aside.unlink(missing_ok=True)
        if own:
            own.cleanup()


def make_folder(folder: Location) -> None:
    """Make a folder and its parents, so that they outlast a power cut; a store has none."""
    if isinstance(folder, S3Location):
        return
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def remove(path: Location) -> None:
    """Remove a file, if it is there, so that it stays removed after a power cut.

    Raises:
        OutputError: when it may not be removed.
    """
    if isinstance(path, S3Location):
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
    """Remove a folder of ours and all in it, as far as that goes."""
    if isinstance(folder, S3Location):
        delete([path for path, _ in folder.objects()])
    else:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_more(path: Path) -> NoReturn:
    """Raise what the system says to more bytes in a file that a library could not write.

    Raises:
        OSError: always.
    """
    with path.open("ab") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    raise OSError(f"{path.name} was not written whole")


def drop_leftovers(folder: Location) -> None:
    """Remove what killed runs left half-written in a folder that no other run writes to.

    On a store there is nothing half-written.
    """
    if isinstance(folder, S3Location):
        return
    with suppress(OSError):
        for path in folder.iterdir():
            if _ASIDE.fullmatch(path.name):
                path.unlink(missing_ok=True)


def unwritable(path: Location, error: OSError) -> OutputError:
    """Return the one sentence for a full disk, a quota or a missing permission."""
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    return OutputError(f"{path}: cannot be written: {reason}. Fix this and rerun the same command.")


def _aside(path: Location, folder: Path) -> Path:
    # The suffix stays last: writers choose their format by it.
    return folder / f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}"


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _rename(aside: Path, path: Location) -> None:
    if isinstance(path, S3Location):
        put(aside, path)
    else:
        aside.replace(path)


def _sync_folder(folder: Location) -> None:
    if isinstance(folder, S3Location):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
