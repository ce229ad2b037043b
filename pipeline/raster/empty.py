"""Drop the windows of a shard that have no valid pixels, once its pixels are read.

Planning drops most of them before, but it sees only samples of the mask, and not all of those for a
large scene without overviews.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import numpy as np

from scenesweep.pipeline.geometry.grid import Tile
from scenesweep.pipeline.raster.source_chips import ShardChips

_ROWS_AT_ONCE = 64
_C = TypeVar("_C", bound=ShardChips)


def without_empty_windows(chips: _C, *, slack: float) -> _C:
    """Return the chips of the windows that can report a box.

    A window reports boxes that are centred on a valid pixel in its core, grown by the slack (in
    grid pixels). So one without such a pixel reports none, whatever its detector sees. Without any
    window left, no pixels are left either.
    """
    if chips.valid is None:
        return chips
    tiles = tuple(tile for tile in chips.shard.tiles if _has_pixels(chips, tile, slack))
    if len(tiles) == len(chips.shard.tiles):
        return chips
    shard = replace(chips.shard, tiles=tiles)
    if tiles:
        return replace(chips, shard=shard)
    nothing = np.zeros((len(chips.pixels), 0, 0), chips.pixels.dtype)
    return replace(chips, shard=shard, pixels=nothing, valid=np.zeros((0, 0), np.bool_))


def _has_pixels(chips: ShardChips, tile: Tile, slack: float) -> bool:
    """Return whether a valid pixel of the window lies in its core grown by the slack."""
    window, core = tile.window, tile.core
    left = max(window.col_off, math.floor(core.col_off - slack)) - chips.bounds.col_off
    top = max(window.row_off, math.floor(core.row_off - slack)) - chips.bounds.row_off
    right = min(window.right, math.ceil(core.right + slack)) - chips.bounds.col_off
    bottom = min(window.bottom, math.ceil(core.bottom + slack)) - chips.bounds.row_off
    for first in range(top, bottom, _ROWS_AT_ONCE):  # mostly, the first rows have one
        y, x = np.mgrid[first : min(first + _ROWS_AT_ONCE, bottom), left:right]
        if chips.are_valid(y.ravel(), x.ravel()).any():
            return True
    return False
