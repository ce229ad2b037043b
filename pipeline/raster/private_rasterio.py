"""Private parts of rasterio: its GDAL library, and GDAL's own errors.

A release of rasterio may change them without notice. `tests/test_private_apis.py` tries each one
and says what to do when it is gone.
"""

from __future__ import annotations

import ctypes
from functools import cache

from rasterio import _env as extension
from rasterio._err import CPLE_BaseError as GdalError

__all__ = ["GdalError", "gdal_library"]


@cache
def gdal_library() -> ctypes.CDLL:
    """Return the GDAL library that rasterio is linked with, to call its C functions.

    rasterio cannot take drivers away or set the cache size, so GDAL is called directly. The
    library is found through rasterio's own extension module: a process may hold several copies of
    GDAL (pyogrio brings one), and only rasterio's opens our rasters.
    """
    library = ctypes.CDLL(extension.__file__)
    library.GDALGetDriverByName.argtypes = [ctypes.c_char_p]
    library.GDALGetDriverByName.restype = ctypes.c_void_p
    library.GDALDeregisterDriver.argtypes = [ctypes.c_void_p]
    library.GDALSetCacheMax64.argtypes = [ctypes.c_int64]
    library.VSISetPathSpecificOption.argtypes = [ctypes.c_char_p] * 3
    library.VSISetPathSpecificOption.restype = None
    return library
