"""Read the block index of a TIFF, to find blocks that were never written, cut off or lost.

GDAL reads a block without bytes as nodata, or as zeros if there is no nodata. Sparse files have
such blocks, and so do files with a damaged index. Such blocks are not ground.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Interleaving, MaskFlags
from rasterio.io import DatasetReader

from scenesweep.pipeline.errors import UnreadableScene
from scenesweep.pipeline.geometry.grid import Window

_TYPES = {3: "u2", 4: "u4", 16: "u8"}  # SHORT, LONG, LONG8
_HEIGHT, _WIDTH, _STRIP_ROWS, _TILE_WIDTH, _TILE_ROWS = 257, 256, 278, 322, 323
_STRIP_OFFSETS, _STRIP_LENGTHS, _TILE_OFFSETS, _TILE_LENGTHS = 273, 279, 324, 325
_SAMPLES, _PLANES = 277, 284
_APART = 2  # value of _PLANES: each band has its own blocks
_MOST_ASKED = 100_000
"""Largest number of blocks of a remote file that are looked up through GDAL: 0.1 s in all."""

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_TAIL_BYTES = 2**16  # some tools append to a PNG

MAX_BLOCKS = 2**27
"""Largest number of blocks of a raster. A file of a few hundred bytes can claim more."""

Tags = dict[int, NDArray[np.uint64]]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of an image of `width` x `height` pixels: (N,) offsets and lengths in its file.

    `shape` is rows and columns of pixels in a block. If bands have their own blocks, there are
    several `planes`, one after the other. The index may be too short: the blocks that it does not
    list were never written.
    """

    offset: NDArray[np.uint64]
    length: NDArray[np.uint64]
    shape: tuple[int, int]
    width: int
    height: int
    planes: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks in one plane."""
        return -(-self.height // self.shape[0]), -(-self.width // self.shape[1])

    @property
    def lost(self) -> NDArray[np.bool_]:
        """Whether each block of each plane, (planes * rows * columns,), has no bytes."""
        rows, columns = self.grid
        lost = np.ones(self.planes * rows * columns, np.bool_)
        known = min(len(lost), len(self.length))
        lost[:known] = self.length[:known] == 0
        return lost

    @property
    def written(self) -> NDArray[np.bool_]:
        """Which blocks (rows, columns) have bytes in some plane."""
        return np.logical_or.reduce(~self.lost.reshape(self.planes, *self.grid))

    def window(self, index: int) -> Window:
        """Return the pixels of a block."""
        rows, columns = self.shape
        down, across = self.grid
        row, column = divmod(index % (across * down), across)
        x, y = column * columns, row * rows
        return Window(x, y, min(columns, self.width - x), min(rows, self.height - y))


def check_blocks(href: str, dataset: DatasetReader) -> tuple[bool, list[str]]:
    """Return whether a raster is sparse, and warnings.

    It is sparse when the blocks of some pixels were never written. The warnings count blocks
    without bytes in a raster that has neither nodata nor a mask to explain them.

    Raises:
        UnreadableScene: when the index places blocks where they cannot be.
    """
    path = Path(href)
    if dataset.driver == "PNG" and path.is_file():
        _check_end(href, path)
    if dataset.driver != "GTiff":
        return False, []
    if not path.is_file():
        if _explained(dataset):  # GDAL masks such blocks already, so save the requests
            return False, []
        written = written_blocks(href, dataset)
        sparse = written is not None and not written.all()
        return sparse, [] if written is None else _warnings(~written.ravel(), "", sparse, dataset)
    blocks = read_blocks(path)
    if blocks is None:
        return False, []
    _check_places(href, blocks, path.stat().st_size)
    lost = blocks.lost
    first = _at(blocks.window(int(lost.argmax())))
    sparse = not blocks.written.all()
    return sparse, _warnings(lost, first, sparse, dataset)


def written_blocks(href: str, dataset: DatasetReader) -> NDArray[np.bool_] | None:
    """Return which blocks (rows, columns) of a TIFF have bytes in some band; None if unknown.

    It reads the index of a file on disk. For a remote file it asks GDAL for each block, up to
    100,000 blocks.
    """
    path = Path(href)
    if path.is_file():
        status = path.stat()
        return _written_on_disk(str(path), status.st_size, status.st_mtime_ns)
    rows, columns = dataset.block_shapes[0]
    down, across = -(-dataset.height // rows), -(-dataset.width // columns)
    bands = dataset.indexes if dataset.interleaving is Interleaving.band else (1,)
    if down * across * len(bands) > _MOST_ASKED:
        return None
    written = np.zeros((down, across), np.bool_)
    for row, column in np.ndindex(down, across):
        name = f"BLOCK_OFFSET_{column}_{row}"
        written[row, column] = any(
            dataset.get_tag_item(name, "TIFF", bidx=band) is not None for band in bands
        )
    return written


@lru_cache(maxsize=8)
def _written_on_disk(path: str, size: int, mtime_ns: int) -> NDArray[np.bool_] | None:
    """Return the written blocks of a file; size and time identify its version in the cache."""
    blocks = read_blocks(Path(path))
    return None if blocks is None else blocks.written


def _check_places(href: str, blocks: Blocks, size: int) -> None:
    """Refuse blocks with bytes that lie beyond the end of their file or in its header."""
    with_bytes = blocks.length > 0
    end = np.uint64(size)
    beyond = with_bytes & ((blocks.offset >= end) | (blocks.length > end - blocks.offset))
    for wrong, where in (
        (beyond, "beyond the end of the file"),
        (with_bytes & (blocks.offset < 8), "said to lie where the file's header is"),
    ):
        if wrong.any():
            first = _at(blocks.window(int(wrong.argmax())))
            raise UnreadableScene(f"{href}: {_count(wrong, first)} {where}")


def _warnings(
    lost: NDArray[np.bool_], first: str, sparse: bool, dataset: DatasetReader
) -> list[str]:
    """Return a warning about blocks without bytes, unless nodata or a mask explains them."""
    if not lost.any() or _explained(dataset):
        return []
    result = "nothing is looked at there" if sparse else "they are read as zeros"
    return [f"{_count(lost, first)} not in the file: {result}"]


def _check_end(href: str, path: Path) -> None:
    """Refuse a PNG without its last chunk: GDAL reads the missing pixels as zeros."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _PNG_TAIL_BYTES))
        if _PNG_END not in file.read():
            raise UnreadableScene(f"{href}: cannot be read: it is cut off, a PNG ends with IEND")


def read_blocks(path: Path) -> Blocks | None:
    """Read the block index of the first image of a TIFF; None if it cannot be read."""
    tags = _read_tags(path)
    tiled = _TILE_OFFSETS in tags
    offset = tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS)
    length = tags.get(_TILE_LENGTHS if tiled else _STRIP_LENGTHS)
    if offset is None or length is None or len(offset) != len(length):
        return None
    width, height = _first(tags, _WIDTH, 0), _first(tags, _HEIGHT, 0)
    columns = _first(tags, _TILE_WIDTH, 0) if tiled else width
    rows = _first(tags, _TILE_ROWS, 0) if tiled else min(_first(tags, _STRIP_ROWS, height), height)
    planes = _first(tags, _SAMPLES, 1) if _first(tags, _PLANES, 1) == _APART else 1
    if not (width and height and columns and rows and planes):
        return None
    blocks = Blocks(offset, length, (rows, columns), width, height, planes)
    return blocks if planes * math.prod(blocks.grid) <= MAX_BLOCKS else None


def _read_tags(path: Path) -> Tags:
    """Read the whole numbers of the first directory of a TIFF or BigTIFF.

    Numbers outside the file are left out: GDAL refuses such a file with its own message.
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
        if many == 0:  # libtiff writes the index last, and GDAL may never have done so
            kind = kind or "u2"
        if kind is None:
            continue
        start = at + 4 + np.dtype(word).itemsize
        if many * np.dtype(kind).itemsize > inline:
            start = _number(file, start, order + word)
        tags[_number(file, at, order + "u2")] = _numbers(file, start, many, order + kind)
    return tags


def _numbers(file: NDArray[np.uint8], start: int, count: int, kind: str) -> NDArray[np.uint64]:
    """Read `count` numbers from an offset in the file, or fewer if the file ends."""
    size = np.dtype(kind).itemsize
    raw = bytes(file[start : start + count * size])
    return np.frombuffer(raw, kind, len(raw) // size).astype(np.uint64)


def _number(file: NDArray[np.uint8], start: int, kind: str) -> int:
    """Read one number; 0 if the file ends."""
    return int(sum(_numbers(file, start, 1, kind)))


def _explained(dataset: DatasetReader) -> bool:
    """Return whether nodata or a mask shows which pixels of a raster are invalid."""
    return any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums)


def _count(which: NDArray[np.bool_], first: str) -> str:
    return f"{np.count_nonzero(which):,} of {which.size:,} blocks{first} are"


def _at(first: Window) -> str:
    return (
        f" (the first at columns {first.col_off}-{first.right}, rows "
        f"{first.row_off}-{first.bottom})"
    )


def _first(tags: Tags, tag: int, default: int) -> int:
    numbers = tags.get(tag)
    return default if numbers is None or not len(numbers) else int(numbers[0])
