"""Files, folders, globs and lists of them, as the user names them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

from scenesweep.pipeline.errors import UnreadableScene, UsageError
from scenesweep.pipeline.raster.kinds import NOT_IMAGERY, VECTORS
from scenesweep.pipeline.storage.network import list_bucket, unsupported, without_secrets

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
    whose suffix goes with one of `drivers`, but files whose name begins with a dot; a list
    has one scene, folder or glob a line, `#` starts a comment. What is named twice counts once.
    A file that does not exist is kept: it fails alone, as a scene.

    Raises:
        UsageError: when a folder or glob holds no raster, a list cannot be read or names itself,
            or an address or a vector file is named.
    """
    return _expand(named, drivers, ())


def check_address(name: str) -> None:
    """Refuse an address of a kind that is not read.

    Raises:
        UsageError: saying which it is.
    """
    why = unsupported(name)
    if why:
        raise UsageError(why)


def _expand(named: Sequence[str], drivers: Sequence[str], within: tuple[str, ...]) -> list[str]:
    """Expand names in a list that is `within` other lists, the outermost first."""
    found: dict[str, None] = {}
    for name in named:
        found |= dict.fromkeys(_expand_one(name, drivers, within))
    return list(found)


def _expand_one(name: str, drivers: Sequence[str], within: tuple[str, ...]) -> list[str]:
    if name.startswith("@"):
        return _expand_list(name, drivers, within)
    check_address(name)
    suffixes = {s for d in drivers for s in _SUFFIXES.get(d, (f".{d.lower()}",))}
    if PurePosixPath(without_secrets(name)).suffix.lower() in {*VECTORS} - suffixes:
        raise UsageError(f"{without_secrets(name)}: expected imagery, found {NOT_IMAGERY}")
    if name.startswith("s3://") and name.endswith("/"):
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
    path = Path(name[1:])
    place = str(path.resolve())
    if place in within:
        raise UsageError(f"{name}: the list names itself")
    if within and path.suffix.lower() in (".yaml", ".yml"):
        raise UsageError(f"{name}: a list in YAML cannot stand in another list; name it by itself")
    return _expand(_read_list(path), drivers, (*within, place))


def _is_raster_name(path: PurePath, suffixes: set[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def _in_bucket(prefix: str, suffixes: set[str]) -> list[str]:
    try:
        found = list_bucket(prefix)
    except UnreadableScene as error:
        raise UsageError(str(error)) from error
    inside = [href for href in found if _is_raster_name(PurePosixPath(href), suffixes)]
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
