"""Map source values to 0..255, with one linear map for a whole scene.

Integers of up to 16 bits have at most 65,536 values, so the map of each band is a table. It holds
what the arithmetic gives for each value: both ways give the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NO_RANGE = (0.0, 1.0)
"""The range of a band without known values."""

_CHUNK_VALUES = 262_144
"""Values that are mapped at a time: 1 MB of float32, which stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A linear map of source values to 0..255, with a (low, high) for each band."""

    ranges: tuple[tuple[float, float], ...]


def has_table(dtype: np.dtype[np.generic] | str) -> bool:
    """Return whether values of a type are mapped by a table, and not by arithmetic."""
    kind = np.dtype(dtype)
    return kind.kind in "ui" and kind.itemsize <= 2


def to_uint8(pixels: NDArray[np.generic], stretch: Stretch | None) -> NDArray[np.uint8]:
    """Map source values (bands, H, W) to 0..255, clipped and rounded; NaN becomes 0."""
    if stretch is None and pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    ranges = [None] * len(pixels) if stretch is None else stretch.ranges
    mapped = np.empty(pixels.shape, np.uint8)
    for band, of_band, limits in zip(pixels, mapped, ranges, strict=True):
        if has_table(pixels.dtype):
            table = stretch_table(pixels.dtype.name, limits)
            # "clip" alone needs no buffer for the result; no index is out of the table.
            np.take(table, band.view(f"u{band.dtype.itemsize}"), out=of_band, mode="clip")
        else:
            _map_in_chunks(band, limits, of_band)
    return mapped


@lru_cache(maxsize=64)
def stretch_table(dtype: str, limits: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Return the 0..255 of each value of an integer type, read-only.

    Its index is the value's bits as an unsigned integer: that of -1 is the last one.
    """
    bits = 8 * np.dtype(dtype).itemsize
    values = np.arange(2**bits, dtype=f"u{bits // 8}").view(dtype)
    table = _mapped(values, limits)
    table.flags.writeable = False
    return table


def _map_in_chunks(
    band: NDArray[np.generic], limits: tuple[float, float] | None, into: NDArray[np.uint8]
) -> None:
    rows = max(1, _CHUNK_VALUES // max(1, band.shape[1]))
    for top in range(0, len(band), rows):
        into[top : top + rows] = _mapped(band[top : top + rows], limits)


def _mapped(values: NDArray[np.generic], limits: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Map values by arithmetic in float32, which defines the map."""
    mapped = values.astype(np.float32)
    if limits is not None:
        low, high = np.float32(limits[0]), np.float32(limits[1])
        with np.errstate(over="ignore", invalid="ignore"):  # high == low: all become 0 or 255
            mapped -= low
            mapped *= np.float32(255) / np.maximum(high - low, np.finfo(np.float32).tiny)
    np.clip(mapped, 0, 255, out=mapped)
    np.nan_to_num(mapped, copy=False, nan=0.0)
    return np.rint(mapped, out=mapped).astype(np.uint8)
