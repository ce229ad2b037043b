"""Expand files, folders, globs and text lists into files."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

from scenesweep.pipeline.errors import UnreadableScene, UsageError
from scenesweep.pipeline.raster.kinds import NOT_IMAGERY, VECTORS
from scenesweep.pipeline.storage.network import cloud_of, unsupported, without_secrets
from scenesweep.pipeline.storage.remote import list_objects, local_file

_SUFFIXES = {
    "GTiff": (".tif", ".tiff"),
    "COG": (".tif", ".tiff"),
    "JP2OpenJPEG": (".jp2", ".j2k"),
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "VRT": (".vrt",),
}


def expand(named: Sequence[str], drivers: Sequence[str]) -> list[str]:
    """Return the files of files, folders, globs, addresses and `@list.txt`, in order.

    A folder, or a prefix that ends in a slash such as `s3://bucket/night/`, means all rasters under
    it whose suffix belongs to one of `drivers`, except files whose name begins with a dot. A
    list has a file, folder or glob on each line; `#` starts a comment. A file that is named twice
    counts once. A file that does not exist is kept, and fails alone as a scene.

    Raises:
        UsageError: when a folder or glob has no raster, a list cannot be read or names itself, or
            a word is a vector file or an address of a kind that is not read.
    """
    return _expand(named, drivers, ())


def check_address(name: str) -> None:
    """Refuse an address of a kind that is not read.

    Raises:
        UsageError: naming the kind.
    """
    reason = unsupported(name)
    if reason:
        raise UsageError(reason)


def _expand(named: Sequence[str], drivers: Sequence[str], within: tuple[str, ...]) -> list[str]:
    """Expand names; `within` are the lists that contain them, the outermost first."""
    files: dict[str, None] = {}
    for name in named:
        files |= dict.fromkeys(_expand_one(name, drivers, within))
    return list(files)


def _expand_one(name: str, drivers: Sequence[str], within: tuple[str, ...]) -> list[str]:
    if name.startswith("@"):
        return _expand_list(name, drivers, within)
    check_address(name)
    suffixes = {s for d in drivers for s in _SUFFIXES.get(d, (f".{d.lower()}",))}
    if PurePosixPath(without_secrets(name)).suffix.lower() in {*VECTORS} - suffixes:
        raise UsageError(f"{without_secrets(name)}: expected imagery, found {NOT_IMAGERY}")
    if cloud_of(name) and name.endswith("/"):
        return _in_bucket(name, suffixes)
    if "://" in name or name.startswith("/vsi"):
        return [name]
    path = Path(name)
    if path.is_dir():
        inside = [
            str(p) for p in sorted(path.rglob("*")) if _is_raster_name(p, suffixes) and p.is_file()
        ]
        if not inside:
            raise UsageError(
                f"{name}: expected rasters ({', '.join(sorted(suffixes))}), found none"
            )
        return inside
    if path.exists() or not glob.has_magic(name):
        return [name]
    matches = sorted(glob.glob(name, recursive=True))
    if not matches:
        raise UsageError(f"{name}: expected files that match, found none")
    return matches


def _expand_list(name: str, drivers: Sequence[str], within: tuple[str, ...]) -> list[str]:
    path = local_file(name[1:])
    resolved = str(path.resolve())
    if resolved in within:
        raise UsageError(f"{name}: the list names itself")
    if within and path.suffix.lower() in (".yaml", ".yml"):
        raise UsageError(f"{name}: a list in YAML cannot stand in another list; name it by itself")
    return _expand(_read_list(path), drivers, (*within, resolved))


def _is_raster_name(path: PurePath, suffixes: set[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def _in_bucket(prefix: str, suffixes: set[str]) -> list[str]:
    try:
        hrefs = list_objects(prefix)
    except UnreadableScene as error:
        raise UsageError(str(error)) from error
    inside = [href for href in hrefs if _is_raster_name(PurePosixPath(href), suffixes)]
    if not inside:
        raise UsageError(f"{prefix}: expected rasters ({', '.join(sorted(suffixes))}), found none")
    return inside


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"@{path}: expected a text file of scenes: {error}") from error
    names = [line.strip() for line in lines]
    return [name for name in names if name and not name.startswith("#")]
