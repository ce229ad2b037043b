"""The versions of what decides the bytes of published files."""

from __future__ import annotations

from importlib.metadata import version

from model import __version__


def versions() -> dict[str, str]:
    """Return the versions of what decides the bytes of a table."""
    names = ("torch", "torchvision", "rasterio", "shapely", "pyproj", "pyarrow")
    return {"scenesweep": __version__} | {name: version(name) for name in names}
