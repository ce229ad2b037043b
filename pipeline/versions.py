"""The versions of the packages that decide the bytes of published files."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

from scenesweep import __version__


def versions() -> dict[str, str]:
    """Return the version of each package that decides the bytes of a table."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    # Cached: each lookup parses a package's whole metadata, 13 ms for all of them.
    names = ("torch", "torchvision", "rasterio", "shapely", "pyproj", "pyarrow")
    return {"scenesweep": __version__} | {name: version(name) for name in names}
