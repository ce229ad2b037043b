"""A hostile or odd file and the one right outcome of sweeping it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["done", "warned", "refused"]
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A file to make, and what a sweep must say of it.

    `make` is called with the path of the raster in a folder of its own. `says` is a regular
    expression that the warning or the cause matches. `squares` is how many are to be found.
    """

    group: str
    about: str
    file: str
    outcome: Outcome
    make: Make
    says: str = ""
    squares: int = 1

    @property
    def folder(self) -> str:
        return self.about.replace(" ", "-").replace("/", "-")


def done(group: str, about: str, make: Make, file: str = "scene.tif", squares: int = 1) -> Case:
    return Case(group, about, file, "done", make, squares=squares)


def warned(
    group: str, about: str, says: str, make: Make, file: str = "scene.tif", squares: int = 1
) -> Case:
    return Case(group, about, file, "warned", make, says, squares)


def refused(group: str, about: str, says: str, make: Make, file: str = "scene.tif") -> Case:
    return Case(group, about, file, "refused", make, says, 0)


def after(write: Callable[..., Path], *steps: Make, **profile: object) -> Make:
    """Return a maker that writes a raster and then does something to it."""

    def make(path: Path) -> None:
        write(path, **profile)
        for step in steps:
            step(path)

    return make


def holding(content: bytes | str) -> Make:
    """Return a maker of a file with this content."""
    return lambda path: path.write_bytes(filled(content, path))


def beside(suffix: str, content: bytes | str) -> Make:
    """Return a step that puts a file beside the raster: its name and a suffix."""
    return lambda path: Path(f"{path}{suffix}").write_bytes(filled(content, path))


def filled(content: bytes | str, path: Path) -> bytes:
    """Put the folder of a raster and the port of the canary in their places in a text."""
    if isinstance(content, bytes):
        return content
    text = content.replace("@FOLDER@", str(path.parent))
    return text.replace("@PORT@", os.environ.get("CANARY_PORT", "9")).encode()
