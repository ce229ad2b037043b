"""What hostile files are made of: a picture of one square, and TIFFs written tag by tag."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from tests.rasters import TRANSFORM, UTM, write_raster

SIDE = 96
TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32}
SQUARE = (40, 20, 64, 44)
"""The one bright square of every picture: x_min, y_min, x_max, y_max."""
SHORT, LONG, RATIONAL, DOUBLE, LONG8 = 3, 4, 5, 12, 16
Tags = dict[int, tuple[int, list[Any]]]
_LETTERS = {SHORT: "H", LONG: "I", DOUBLE: "d", RATIONAL: "I", LONG8: "Q"}


def picture(bands: int = 1, dtype: str = "uint8", low: Any = 1, high: Any = 120) -> NDArray[Any]:
    """Return (bands, 96, 96): `low`, and `high` in the square; uint8 is made bright enough."""
    pixels = np.full((bands, SIDE, SIDE), low, dtype)
    x0, y0, x1, y1 = SQUARE
    pixels[:, y0:y1, x0:x1] = 200 if dtype == "uint8" else high
    return pixels


def noise(seed: int = 0, side: int = SIDE) -> NDArray[np.uint8]:
    """Return a picture whose pixels hardly compress."""
    pixels = np.random.default_rng(seed).integers(1, 100, (1, side, side), np.uint8)
    x0, y0, x1, y1 = SQUARE
    pixels[:, y0:y1, x0:x1] = 200
    return pixels


def write(path: Path, pixels: NDArray[Any] | None = None, **profile: Any) -> Path:
    """Write a georeferenced GeoTIFF of the picture."""
    return write_raster(path, picture() if pixels is None else pixels, **profile)


def write_as(path: Path, driver: str, pixels: NDArray[Any], **profile: Any) -> Path:
    """Write a georeferenced raster in another format."""
    bands, height, width = pixels.shape
    shape = {"width": width, "height": height, "count": bands, "dtype": pixels.dtype}
    with rasterio.open(
        path, "w", driver=driver, crs=UTM, transform=TRANSFORM, **shape, **profile
    ) as dataset:
        dataset.write(pixels)
    return path


def damage(path: Path, start: float, bytes_: bytes) -> None:
    """Overwrite part of a file: from a share of its length where `start` is below 1."""
    content = bytearray(path.read_bytes())
    at = int(start * len(content)) if start < 1 else int(start)
    content[at : at + len(bytes_)] = bytes_
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    """Keep the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def tiff(tags: Tags, data: bytes = b"", *, following: int = 0) -> bytes:
    """Return a little-endian TIFF of one directory: tag -> (type, numbers). Data are at byte 8."""
    start = 8 + len(data) + len(data) % 2
    extra_at = start + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}{_LETTERS[kind]}", *numbers)
        count = len(numbers) // 2 if kind == RATIONAL else len(numbers)
        if len(packed) > 4:
            place = struct.pack("<I", extra_at + len(extra))
            extra += packed
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, count) + place
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    padding = b"\0" * (len(data) % 2)
    return b"II*\0" + struct.pack("<I", start) + data + padding + directory + extra


def plain_tags(width: int = 64, height: int = 64, bands: int = 1, *, compression: int = 1) -> Tags:
    """Return the tags of a grey TIFF in one strip, whose data are at byte 8."""
    return {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8]),
        259: (SHORT, [compression]),
        262: (SHORT, [1]),
        273: (LONG, [8]),
        277: (SHORT, [bands]),
        278: (LONG, [height]),
        279: (LONG, [min(width * height * bands, 2**32 - 1)]),
    }


def georeferenced(
    tags: Tags,
) -> Tags:
    """Add GeoKeys (UTM 11N) to tags; the transform is left to a world file."""
    keys = [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32611]
    return tags | {34735: (SHORT, keys)}


def never_written(path: Path, side: int = 1_000_000) -> Path:
    """Write a GeoTIFF of `side` x `side` pixels whose block index is empty: some 270 bytes."""
    tags = plain_tags(side, side)
    for tag in (273, 278, 279):
        del tags[tag]
    tags |= {322: (SHORT, [512]), 323: (SHORT, [512]), 324: (LONG, []), 325: (LONG, [])}
    tags |= {33550: (DOUBLE, [0.6, 0.6, 0]), 33922: (DOUBLE, [0, 0, 0, 430_000, 3_775_000, 0])}
    path.write_bytes(tiff(georeferenced(tags)))
    return path


ROTATED = Affine.translation(430_000, 3_775_000) @ Affine.rotation(30) @ Affine.scale(0.6, -0.6)
SOUTH_UP = Affine(0.6, 0, 430_000, 0, 0.6, 3_775_000)
