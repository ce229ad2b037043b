"""Files, folders, globs and lists of them, as the user names them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.errors import UnreadableScene, UsageError
from pipeline.raster.remote import list_bucket

_SUFFIXES = {
    "GTiff": (".tif", ".tiff"),
    "COG": (".tif", ".tiff"),
    "JP2OpenJPEG": (".jp2", ".j2k"),
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "VRT": (".vrt",),
}


def expand(named: Sequence[str], drivers: Sequence[str]) -> list[str]:
    """Return the scenes that files, folders, globs, URLs and `@list.txt` stand for, in order.

    A folder, or an `s3://bucket/prefix/` that ends in a slash, stands for all rasters under it
    whose suffix goes with one of `drivers`; a list
    has one scene, folder or glob a line, `#` starts a comment. What is named twice counts once.
    A file that does not exist is kept: it fails alone, as a scene.

    Raises:
        UsageError: when a folder or glob holds no raster, or a list cannot be read.
    """
    found: dict[str, None] = {}
    for name in named:
        found |= dict.fromkeys(_expand_one(name, drivers))
    return list(found)


def _expand_one(name: str, drivers: Sequence[str]) -> list[str]:
    if name.startswith("@"):
        return expand(_read_list(Path(name[1:])), drivers)
    suffixes = {s for d in drivers for s in _SUFFIXES.get(d, (f".{d.lower()}",))}
    if name.startswith("s3://") and name.endswith("/"):
        return _in_bucket(name, suffixes)
    if "://" in name or name.startswith("/vsi"):
        return [name]
    path = Path(name)
    if path.is_dir():
        inside = [
            str(p)
            for p in sorted(path.rglob("*"))
            if p.suffix.lower() in suffixes and p.is_file() and not p.name.startswith(".")
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


def _in_bucket(prefix: str, suffixes: set[str]) -> list[str]:
    try:
        inside = [href for href in list_bucket(prefix) if PurePosixPath(href).suffix in suffixes]
    except UnreadableScene as error:
        raise UsageError(str(error)) from error
    if not inside:
        raise UsageError(f"{prefix}: expected rasters ({', '.join(sorted(suffixes))}), found none")
    return inside


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"@{path}: expected a text file with one scene a line: {error}") from error
    names = [line.strip() for line in lines]
    return [name for name in names if name and not name.startswith("#")]
