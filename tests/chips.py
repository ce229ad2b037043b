"""Rasters of noise, and what readers make of a whole scene."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenesweep.pipeline.planning.plan import Plan
from scenesweep.pipeline.raster.chips import (
    read_shard,
)


def noise(bands: int, height: int, width: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(0).integers(1, 250, (bands, height, width)).astype(dtype)


def mosaic(plan: Plan) -> NDArray[np.uint8]:
    """Put the cores of all chips together again, over the whole grid."""
    grid = plan.layout.grid
    whole = np.zeros((len(plan.source.bands), grid.height, grid.width), np.uint8)
    for number in plan.layout.numbers:
        chips = read_shard(plan.source, plan.layout.shard(number))
        for tile, chip in zip(chips.shard.tiles, chips.stack(), strict=True):
            core, window = tile.core, tile.window
            top, left = core.row_off - window.row_off, core.col_off - window.col_off
            part = chip[:, top : top + core.height, left : left + core.width]
            whole[:, core.row_off : core.bottom, core.col_off : core.right] = part
    return whole
