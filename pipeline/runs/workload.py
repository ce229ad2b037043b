"""The amount of work in a scene: windows, pixels and bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from scenesweep.pipeline.planning.plan import Plan

_ITEM_BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float64": 8}


@dataclass(frozen=True, slots=True)
class Workload:
    """An amount of work.

    `chip_px` counts the pixels of all windows on the model's grid, so overlaps count twice.
    `core_px` counts each pixel once. `read_bytes` is the size of the decoded pixels.
    """

    windows: int = 0
    shards: int = 0
    chip_px: int = 0
    core_px: int = 0
    read_bytes: int = 0
    scenes: int = 0

    def __add__(self, other: Self) -> Workload:
        return Workload(
            self.windows + other.windows,
            self.shards + other.shards,
            self.chip_px + other.chip_px,
            self.core_px + other.core_px,
            self.read_bytes + other.read_bytes,
            self.scenes + other.scenes,
        )


NOTHING = Workload()


def workload_of(plan: Plan, numbers: Iterable[int] | None = None) -> Workload:
    """Return the work of a scene's shards: of all, or only of those with the given numbers."""
    sx, sy = plan.source.scale
    width, height = plan.scene.width, plan.scene.height
    pixel_bytes = len(plan.source.present) * _ITEM_BYTES.get(plan.scene.dtype, 4)
    windows = shards = chip_px = core_px = 0
    read_px = 0.0
    for number in plan.layout.numbers if numbers is None else numbers:
        shard = plan.layout.shard(number)
        box = shard.bounds
        across = min(box.right * sx, width) - box.col_off * sx
        read_px += across * (min(box.bottom * sy, height) - box.row_off * sy)
        shards += 1
        windows += len(shard.tiles)
        chip_px += sum(tile.window.width * tile.window.height for tile in shard.tiles)
        core_px += sum(tile.core.width * tile.core.height for tile in shard.tiles)
    return Workload(windows, shards, chip_px, core_px, round(read_px * pixel_bytes), 1)
