"""GDAL kept to the formats and the reach that were asked for.

A raster names other files: masks and overviews beside it, overviews in its metadata. GDAL opens
these with any driver it has, and some drivers read, write or fetch what a file tells them to.
So in this process it has no others: `keep_to` takes them away, which `driver=` on opening does
not, and rasterio's own GDAL alone is meant, not that of other packages.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache

import rasterio

from scenesweep.pipeline.raster.private_rasterio import gdal_library

DRIVERS = ("GTiff", "COG", "JP2OpenJPEG", "PNG", "JPEG")
"""Formats that are opened unless others are named. VRT can read any other file, so it is not
among them."""

CACHE_BYTES = 128 * 2**20
"""Decoded blocks that GDAL keeps: by default a twentieth of the machine's memory."""

_LOCAL = {
    "GDAL_PAM_ENABLED": "NO",  # else .aux.xml files are read, and written beside inputs
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",  # else a truncated JPEG is grey where it ends
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
}

_lock = threading.Lock()
_ALWAYS = frozenset({*DRIVERS, "MEM"})  # rasterio resamples with MEM; no file has this format
_kept = set(_ALWAYS)
_count = -1
_before: frozenset[str] = frozenset()  # what the first block of `drivers_restored` found
_users = 0


def options(*, remote: bool) -> dict[str, str]:
    """Return the GDAL options under which a raster is opened and read.

    Only a scene that was itself named as remote may be read over the network.
    """
    if remote:
        return {k: v for k, v in _LOCAL.items() if k != "CPL_VSIL_CURL_ALLOWED_EXTENSIONS"}
    return dict(_LOCAL)


def keep_to(drivers: Collection[str]) -> None:
    """Take every driver but these and `DRIVERS` away from GDAL, for the whole process.

    What an earlier call asked for stays: a process has the formats of all its calls.
    """
    global _count
    library = _library()
    with _lock:
        if _kept.issuperset(drivers) and library.GDALGetDriverCount() == _count:
            return
        _kept.update(drivers)
        _register(_kept)
        _count = library.GDALGetDriverCount()


@contextmanager
def drivers_restored() -> Iterator[None]:
    """Give GDAL the drivers back at the end of the block that it had at its beginning.

    Where several threads are in such blocks, the last one to leave does it: until then a scene
    may be opened that must not meet the other drivers.
    """
    global _before, _count, _users
    with _lock:
        if not _users:
            _before = frozenset(drivers())
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _register(_before)
                _kept.clear()
                _kept.update(_ALWAYS)
                _count = -1


def _register(names: Collection[str]) -> None:
    """Have exactly these drivers, as far as GDAL knows them."""
    library = _library()
    with rasterio.Env() as env:
        library.GDALAllRegister()
        for name in env.drivers():
            if name not in names:
                library.GDALDeregisterDriver(library.GDALGetDriverByName(name.encode()))


def drivers() -> list[str]:
    """Return the names of the drivers that GDAL has in this process."""
    with rasterio.Env() as env:
        return sorted(env.drivers())


@cache
def _library() -> ctypes.CDLL:
    """Return rasterio's GDAL, with the size of its cache set."""
    library = gdal_library()
    library.GDALSetCacheMax64(CACHE_BYTES)
    return library
