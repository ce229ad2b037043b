"""Where the blocks of a TIFF lie in its file: blocks cut off or lost are found before reading.

GDAL reads a block of no bytes as empty, which is how sparse files are made, and how a zeroed
index looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from pipeline.errors import UnreadableScene
from pipeline.grid import Window

_TYPES = {3: "u2", 4: "u4", 16: "u8"}  # SHORT, LONG, LONG8
_HEIGHT, _WIDTH, _STRIP_ROWS, _TILE_WIDTH, _TILE_ROWS = 257, 256, 278, 322, 323
_STRIP_OFFSETS, _STRIP_LENGTHS, _TILE_OFFSETS, _TILE_LENGTHS = 273, 279, 324, 325

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_TAIL_BYTES = 2**16  # some tools append to a PNG

Tags = dict[int, NDArray[np.uint64]]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of an image of `width` x `height` pixels: (N,) places and lengths in its file.

    `shape` is rows and columns of pixels in a block. Where bands lie apart, the blocks of one
    follow those of the other.
    """

    offset: NDArray[np.uint64]
    length: NDArray[np.uint64]
    shape: tuple[int, int]
    width: int
    height: int

    def window(self, index: int) -> Window:
        """Return the pixels that a block holds."""
        rows, columns = self.shape
        across, down = -(-self.width // columns), -(-self.height // rows)
        row, column = divmod(index % (across * down), across)
        x, y = column * columns, row * rows
        return Window(x, y, min(columns, self.width - x), min(rows, self.height - y))


def check_blocks(href: str, dataset: DatasetReader, *, masked: bool) -> list[str]:
    """Return warnings about blocks of a raster that its file does not have.

    A block that is not there reads as nodata, or as zeros where the raster has no nodata: only
    the latter are told, for nobody would notice them.

    Raises:
        UnreadableScene: when blocks cannot lie where they are said to.
    """
    path = Path(href)
    if dataset.driver not in ("GTiff", "PNG") or not path.is_file():
        return []
    if dataset.driver == "PNG":
        _check_end(href, path)
        return []
    blocks = read_blocks(path)
    if blocks is None:
        return []
    size = np.uint64(path.stat().st_size)
    lost = blocks.length == 0
    beyond = ~lost & ((blocks.offset >= size) | (blocks.length > size - blocks.offset))
    for wrong, where in (
        (beyond, "beyond the end of the file"),
        (~lost & (blocks.offset < 8), "said to lie where the file's header is"),
    ):
        if wrong.any():
            raise UnreadableScene(f"{href}: {_told(wrong, blocks)} {where}")
    if masked or not lost.any():
        return []
    return [f"{_told(lost, blocks)} not in the file and read as zeros"]


def _check_end(href: str, path: Path) -> None:
    """Refuse a PNG without its last chunk: GDAL reads what is missing as zeros."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _PNG_TAIL_BYTES))
        if _PNG_END not in file.read():
            raise UnreadableScene(f"{href}: cannot be read: it is cut off, a PNG ends with IEND")


def read_blocks(path: Path) -> Blocks | None:
    """Read the block index of the first image of a TIFF; None where it cannot be made out."""
    tags = _read_tags(path)
    tiled = _TILE_OFFSETS in tags
    offset = tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS)
    length = tags.get(_TILE_LENGTHS if tiled else _STRIP_LENGTHS)
    if offset is None or length is None or len(offset) != len(length):
        return None
    width, height = _one(tags, _WIDTH, 0), _one(tags, _HEIGHT, 0)
    columns = _one(tags, _TILE_WIDTH, 0) if tiled else width
    rows = _one(tags, _TILE_ROWS, 0) if tiled else min(_one(tags, _STRIP_ROWS, height), height)
    if not (width and height and columns and rows):
        return None
    return Blocks(offset, length, (rows, columns), width, height)


def _read_tags(path: Path) -> Tags:
    """Read the whole numbers of the first directory of a TIFF or BigTIFF.

    What lies outside the file is left out: GDAL refuses such a file in words of its own.
    """
    file = np.memmap(path, np.uint8, "r")
    order = "<" if bytes(file[:2]) == b"II" else ">"
    big = _number(file, 2, order + "u2") == 43
    entry, inline, word, short = (20, 8, "u8", "u8") if big else (12, 4, "u4", "u2")
    start = _number(file, 8 if big else 4, order + word)
    count = _number(file, start, order + short)
    tags: Tags = {}
    for at in range(start + np.dtype(short).itemsize, len(file), entry)[:count]:
        kind = _TYPES.get(_number(file, at + 2, order + "u2"))
        many = _number(file, at + 4, order + word)
        if kind is None:
            continue
        place = at + 4 + np.dtype(word).itemsize
        if many * np.dtype(kind).itemsize > inline:
            place = _number(file, place, order + word)
        tags[_number(file, at, order + "u2")] = _numbers(file, place, many, order + kind)
    return tags


def _numbers(file: NDArray[np.uint8], start: int, count: int, kind: str) -> NDArray[np.uint64]:
    """Read numbers from a place in the file; fewer than `count` where it ends."""
    size = np.dtype(kind).itemsize
    raw = bytes(file[start : start + count * size])
    return np.frombuffer(raw, kind, len(raw) // size).astype(np.uint64)


def _number(file: NDArray[np.uint8], start: int, kind: str) -> int:
    """Read one number; 0 where the file ends."""
    return int(sum(_numbers(file, start, 1, kind)))


def _told(which: NDArray[np.bool_], blocks: Blocks) -> str:
    first = blocks.window(int(np.flatnonzero(which)[0]))
    return (
        f"{np.count_nonzero(which):,} of {len(which):,} blocks (the first at columns "
        f"{first.col_off}-{first.right}, rows {first.row_off}-{first.bottom}) are"
    )


def _one(tags: Tags, tag: int, default: int) -> int:
    found = tags.get(tag)
    return default if found is None or not len(found) else int(found[0])
