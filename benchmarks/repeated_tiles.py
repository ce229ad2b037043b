"""BigTIFFs of any size that name a few tiles many times: large scenes from small files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TILE_PX, ACROSS = 512, 4
"""The pixels along a tile, and the tiles along the square that is repeated."""
_OFFSETS, _LENGTHS = 324, 325


def repeat_tiles(path: Path, across: int) -> None:
    """Let the index of a BigTIFF name the tiles of its first 4 x 4 in all other places too."""
    row, column = np.divmod(np.arange(across * across), across)
    source = row % ACROSS * across + column % ACROSS
    file = np.memmap(path, np.uint8, "r+")
    for tag in (_OFFSETS, _LENGTHS):
        values = index_of(file, tag)
        values[:] = values[source]
    file.flush()


def index_of(file: NDArray[np.uint8], tag: int) -> NDArray[np.unsignedinteger]:
    """Return the values of a tag in the first directory of a BigTIFF, as a view of the file."""
    start = int(file[8:16].view("<u8")[0])
    count = int(file[start : start + 8].view("<u8")[0])
    for at in range(start + 8, start + 8 + 20 * count, 20):
        number, kind = file[at : at + 4].view("<u2").tolist()
        if number == tag:
            many, offset = file[at + 4 : at + 20].view("<u8").tolist()
            item = {4: "<u4", 16: "<u8"}[kind]
            return file[offset : offset + many * int(item[2])].view(item)
    raise ValueError(f"expected a directory with the tag {tag}, found none")
