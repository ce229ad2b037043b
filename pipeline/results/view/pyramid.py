"""The picture under the detections: levels, each of half the size, cut into tiles."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE_PX = 512
_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Level:
    """One level: its size, and its tiles row by row as WebP files; edge tiles are smaller."""

    width: int
    height: int
    tiles: tuple[bytes, ...]

    @property
    def bytes(self) -> int:
        return sum(map(len, self.tiles))

    def packed(self) -> dict[str, object]:
        """Return JSON-able values: width, height and the tiles in base64."""
        tiles = [b64encode(tile).decode() for tile in self.tiles]
        return {"width": self.width, "height": self.height, "tiles": tiles}


def cut_pyramid(picture: NDArray[np.uint8], *, most_bytes: int) -> tuple[Level, ...]:
    """Return the levels of a picture (H, W, 3 or 4), coarse to fine.

    The coarsest level fits one tile and is always included. Finer levels are included as long as
    the total stays within `most_bytes`.
    """
    levels: list[Level] = []
    for image in reversed(list(_halved(Image.fromarray(picture)))):
        levels.append(Level(image.width, image.height, tuple(_tiles(image))))
        if len(levels) > 1 and sum(level.bytes for level in levels) > most_bytes:
            return tuple(levels[:-1])
    return tuple(levels)


def _halved(image: Image.Image) -> Iterator[Image.Image]:
    """Yield an image and its halves until one fits a tile; colours are weighted by alpha."""
    kind = image.mode
    while True:
        yield image
        if max(image.size) <= TILE_PX:
            return
        image = image.convert("RGBa").reduce(2).convert(kind) if kind == "RGBA" else image.reduce(2)


def _tiles(image: Image.Image) -> Iterator[bytes]:
    for top in range(0, image.height, TILE_PX):
        for left in range(0, image.width, TILE_PX):
            right, bottom = min(left + TILE_PX, image.width), min(top + TILE_PX, image.height)
            file = io.BytesIO()
            tile = image.crop((left, top, right, bottom))
            tile.save(file, format="WEBP", quality=_QUALITY, method=3)
            yield file.getvalue()
