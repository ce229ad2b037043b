"""Keep GDAL to the allowed formats and off the network.

A raster can refer to other files: sidecar masks and overviews, and overviews in its metadata. GDAL
opens these with any driver that it has, and some drivers read, write or fetch what a file tells
them to. The `driver=` argument does not prevent that, so `keep_to` removes all other drivers from
rasterio's GDAL in this process. The GDAL of other packages, such as pyogrio, is not affected.
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
"""Formats that are opened by default. VRT is not one, because it can read any other file."""

CACHE_BYTES = 128 * 2**20
"""Size of GDAL's block cache. GDAL's own default is a twentieth of the machine's memory."""

_LOCAL = {
    "GDAL_PAM_ENABLED": "NO",  # otherwise GDAL reads .aux.xml files, and writes them beside inputs
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",  # otherwise a truncated JPEG is grey where it ends
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
}

_lock = threading.Lock()
_ALWAYS = frozenset({*DRIVERS, "MEM"})  # rasterio's own arrays; no file has this format
_kept = set(_ALWAYS)
_count = -1
_before: frozenset[str] = frozenset()  # the drivers before the first block of `drivers_restored`
_users = 0


def options(*, remote: bool) -> dict[str, str]:
    """Return the GDAL options for opening and reading a raster.

    Only a scene that the user names by an address may be read over the network.
    """
    if remote:
        return {k: v for k, v in _LOCAL.items() if k != "CPL_VSIL_CURL_ALLOWED_EXTENSIONS"}
    return dict(_LOCAL)


def set_headers(prefix: str, headers: str) -> None:
    """Send headers with GDAL's requests for paths that begin with `prefix`, and with no others."""
    value = headers.encode() if headers else None
    _library().VSISetPathSpecificOption(prefix.encode(), b"GDAL_HTTP_HEADERS", value)


def keep_to(drivers: Collection[str]) -> None:
    """Remove every driver except these and `DRIVERS` from GDAL, for the whole process.

    Drivers of earlier calls stay: a process has the formats of all its calls.
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
    """Restore GDAL's drivers at the end of the block.

    When several threads are in such blocks, the last one restores them: until then a thread may
    open a scene, which must not reach the other drivers.
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
    """Register exactly these drivers, if GDAL knows them."""
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
