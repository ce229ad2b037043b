"""The georeference in a raster's sidecar file `<raster>.aux.xml`, which GDAL's tools write.

GDAL itself does not read these files here, because they can refer to other files. This module
reads a CRS and six numbers from them, and nothing else.
"""

from __future__ import annotations

from pathlib import Path

import rasterio
from affine import Affine
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as Xml
from rasterio.crs import CRS
from rasterio.errors import CRSError

from scenesweep.pipeline.raster.opening import is_regular
from scenesweep.pipeline.storage.network import is_remote

_MOST_BYTES = 2**22

Georeference = tuple[CRS | None, Affine | None]


def auxiliary_file(href: str) -> Path | None:
    """Return the `.aux.xml` sidecar of a raster on disk, None where there is none."""
    path = Path(f"{href}.aux.xml")
    return None if is_remote(href) or not is_regular(path) else path


def georeference_beside(href: str) -> Georeference:
    """Return the CRS and the transform of a raster's `.aux.xml`; None for a missing one."""
    path = auxiliary_file(href)
    if path is None or path.stat().st_size > _MOST_BYTES:
        return None, None
    try:
        root = Xml.parse(path).getroot()
    except (OSError, SyntaxError, DefusedXmlException):  # XML's own error is a SyntaxError
        return None, None
    if root is None:
        return None, None
    return _crs(root.findtext("SRS", "")), _transform(root.findtext("GeoTransform", ""))


def _crs(wkt: str) -> CRS | None:
    try:
        with rasterio.Env():
            return CRS.from_wkt(wkt) if wkt.strip() else None
    except CRSError:
        return None


def _transform(text: str) -> Affine | None:
    """Read GDAL's six numbers: x, its change along columns and rows, then those of y."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        return None
    return Affine.from_gdal(*numbers) if len(numbers) == 6 else None
