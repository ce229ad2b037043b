"""Find the raster that an image name in a label file refers to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from scenesweep.pipeline.errors import LabelError


def index_names(hrefs: Sequence[str]) -> dict[str, int]:
    """Map the file name of each raster, with and without its suffix, to its index.

    Raises:
        LabelError: when two rasters have the same name.
    """
    index: dict[str, int] = {}
    for number, href in enumerate(hrefs):
        for name in {file_name(href), bare_name(href)}:
            if index.setdefault(name, number) != number:
                raise LabelError(
                    f"{hrefs[index[name]]} and {href}: expected rasters with different file names, "
                    "because labels and lists name them so: rename one"
                )
    return index


def find_name(index: Mapping[str, int], name: str) -> int:
    """Return the index of the raster called `name`, or -1. Folders in the name are ignored."""
    return index.get(file_name(name), index.get(bare_name(name), -1))


def read_names(path: Path) -> tuple[str, ...]:
    """Read image names, one per line.

    Raises:
        LabelError: when there are none, or the file cannot be read.
    """
    names = tuple(dict.fromkeys(line.strip() for line in read_text(path).splitlines()))
    names = tuple(name for name in names if name)
    if not names:
        raise LabelError(f"{path}: expected one image name per line, found none")
    return names


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        LabelError: when it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: cannot be read: {error}") from error


def file_name(href: str) -> str:
    """Return the last part of a path or URL."""
    return re.split(r"[/\\]", href.strip().rstrip("/\\"))[-1]


def bare_name(href: str) -> str:
    """Return the file name without its last suffix."""
    name = file_name(href)
    return name.rsplit(".", 1)[0] if "." in name[1:] else name
