"""Read pixels together with which of them are valid, without reading a band twice.

GDAL's mask of a raster with nodata reads every band again. The same mask follows from comparing
the pixels that were just read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rasterio import windows
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader

from scenesweep.pipeline.raster.pixels import Pixels
from scenesweep.pipeline.raster.stretch import has_table

Valid = NDArray[np.bool_] | None
"""Which pixels (H, W) are valid; None if all are."""


def read_with_validity(
    dataset: Pixels, bands: list[int], window: windows.Window, *, masked: bool
) -> tuple[NDArray[np.generic], Valid]:
    """Read (bands, H, W) pixels of 1-based `bands`, and which of them are valid.

    `masked` says whether some pixels of the scene may be invalid. A pixel is valid where the
    dataset's mask says so and, for floating point, where all of the read bands are finite.
    """
    pixels = dataset.read(bands, window=window)
    if not masked:
        return pixels, None
    if isinstance(dataset, DatasetReader):
        nodata = _only_nodata(dataset)
        if nodata is not None:
            known = dict(zip(bands, pixels, strict=True))
            return pixels, _differs(dataset, window, nodata, known)
    valid = dataset.dataset_mask(window=window) > 0
    if pixels.dtype.kind == "f":
        valid &= np.isfinite(pixels).all(axis=0)
    return pixels, none_if_all(valid)


def read_decimated(
    dataset: Pixels, bands: list[int], shape: tuple[int, int]
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Read the whole scene, decimated to `shape`: (bands, H, W) pixels, and which are valid.

    GDAL decodes each block once, if the mask follows from nodata, and else twice.
    """
    nodata = _only_nodata(dataset) if isinstance(dataset, DatasetReader) else None
    if nodata is None or not isinstance(dataset, DatasetReader):
        pixels = dataset.read(bands, out_shape=(len(bands), *shape))
        return pixels, dataset.dataset_mask(out_shape=shape) > 0
    every: NDArray[np.generic] = dataset.read(out_shape=(dataset.count, *shape))
    return every[np.array(bands) - 1], (every != nodata).any(axis=0)


def none_if_all(valid: NDArray[np.bool_]) -> Valid:
    """Return None if all pixels are valid, else the mask."""
    return None if valid.all() else valid


def _only_nodata(dataset: DatasetReader) -> int | None:
    """Return nodata, if the mask of a raster is just "some band differs from nodata".

    That holds when all bands have one nodata and no mask or alpha band replaces it. Only whole
    numbers that the type holds are compared here; GDAL has rules of its own for others.
    """
    dtype, nodata = np.dtype(dataset.dtypes[0]), dataset.nodata
    flags, values = dataset.mask_flag_enums, set(dataset.nodatavals)
    if nodata is None or len(values) != 1 or any(f != [MaskFlags.nodata] for f in flags):
        return None
    if not has_table(dtype) or not float(nodata).is_integer():
        return None
    limits = np.iinfo(dtype)
    return int(nodata) if limits.min <= nodata <= limits.max else None


def _differs(
    dataset: DatasetReader,
    window: windows.Window,
    nodata: int,
    known: dict[int, NDArray[np.generic]],
) -> Valid:
    """Return where some band of a raster differs from nodata; `known` are bands already read.

    The other bands are read only where they can matter: if a pixel has nodata in all known ones.
    """
    valid: NDArray[np.bool_] | None = None
    others = [band for band in range(1, dataset.count + 1) if band not in known]
    for band in [*known, *others]:
        values = known[band] if band in known else dataset.read([band], window=window)[0]
        differs = values != nodata
        valid = differs if valid is None else valid | differs
        if valid.all():
            return None
    return valid
