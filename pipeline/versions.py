"""The versions of what decides the bytes of published files."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

from scenesweep import __version__


def versions() -> dict[str, str]:
    """Return the versions of what decides the bytes of a table."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    # Looked up once: each look reads a package's whole description, 13 ms for all.
    names = ("torch", "torchvision", "rasterio", "shapely", "pyproj", "pyarrow")
    return {"scenesweep": __version__} | {name: version(name) for name in names}
