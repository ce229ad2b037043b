"""Run a detector over shards: chips in, candidates in scene pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes, ChipDetector, Columns, DetectorOutput
from scenesweep.pipeline.geometry.georef import to_scene
from scenesweep.pipeline.geometry.grid import Tile
from scenesweep.pipeline.raster.chips import Chips

EDGE_PX = 1.0
"""A box counts as cut by an edge of its window when it is this near to it, in grid pixels."""


@dataclass(frozen=True, slots=True)
class Candidates(Columns):
    """The boxes that the windows of a scene report, before the merge.

    `xyxy` is (N, 4) float64 in scene pixels, `score` (N,) float32, `label` (N,) int16, and
    `cut` (N,) bool marks boxes that an inner edge of their window cuts.
    """

    xyxy: NDArray[np.float64]
    score: NDArray[np.float32]
    label: NDArray[np.int16]
    cut: NDArray[np.bool_]

    @classmethod
    def none(cls) -> Self:
        """Return no candidates."""
        return cls(
            np.zeros((0, 4)), np.zeros(0, np.float32), np.zeros(0, np.int16), np.zeros(0, np.bool_)
        )


@dataclass(frozen=True, slots=True)
class ShardDetections:
    """Candidates of one shard, some counts, and the device and precision of the detector."""

    candidates: Candidates
    windows: int
    capped_windows: int
    on_nodata: int
    ran_on: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame that turns chip pixels of a scene's windows into scene pixels.

    `size` is the grid's width and height, `scale` scene pixels per grid pixel, and `slack` how far
    outside its core a window may report a box's centre, in grid pixels.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    slack: float


def detect_shards(
    detector: ChipDetector, shards: Sequence[tuple[Chips, Frame]]
) -> list[ShardDetections]:
    """Detect on the chips of several shards at once, so that small shards fill batches.

    Chips of one size share batches. A shard's result does not depend on the other shards: the
    detector treats each chip in a batch independently, and always fills the batch.
    """
    stacks = [chips.stack() for chips, _ in shards]
    results: dict[int, ShardDetections] = {}
    for size in dict.fromkeys(stack.shape[1:] for stack in stacks):
        of_size = [i for i, stack in enumerate(stacks) if stack.shape[1:] == size]
        detected = detector.detect(np.concatenate([stacks[i] for i in of_size]))
        first = 0
        for i in of_size:
            last = first + len(stacks[i])
            chips, frame = shards[i]
            results[i] = _of_shard(detected, first, last, chips, frame)
            first = last
    return [results[i] for i in range(len(shards))]


def _of_shard(
    detected: DetectorOutput, first: int, last: int, chips: Chips, frame: Frame
) -> ShardDetections:
    """Collect the detections of one shard: chips `first` up to `last` of a batch."""
    starts = np.searchsorted(detected.boxes.chip, np.arange(first, last + 1)).tolist()
    parts = [
        _report(detected.boxes.take(np.arange(start, stop)), chips, tile, frame)
        for start, stop, tile in zip(starts, starts[1:], chips.shard.tiles, strict=False)
    ]
    return ShardDetections(
        Candidates.join(Candidates.none(), *(part for part, _ in parts)),
        windows=last - first,
        capped_windows=int(detected.capped[first:last].sum()),
        on_nodata=sum(dropped for _, dropped in parts),
    )


def _report(boxes: Boxes, chips: Chips, tile: Tile, frame: Frame) -> tuple[Candidates, int]:
    """Return the candidates of one window, and the number of boxes dropped on nodata.

    A window reports the boxes whose centre lies in its core grown by the slack, on a valid pixel.
    """
    window, core = tile.window, tile.core
    centres = boxes.centres()
    grid_x, grid_y = (centres + np.array([window.col_off, window.row_off])).T
    near = (
        (grid_x >= core.col_off - frame.slack)
        & (grid_x < core.right + frame.slack)
        & (grid_y >= core.row_off - frame.slack)
        & (grid_y < core.bottom + frame.slack)
    )
    valid = chips.valid_at(tile, centres)
    boxes = boxes.take(near & valid)
    xyxy = to_scene(boxes.xyxy, window, frame.scale)
    sx, sy = frame.scale
    limits = np.array([frame.size[0] * sx, frame.size[1] * sy] * 2)
    candidates = Candidates(
        np.clip(xyxy, 0, limits),
        boxes.score.astype(np.float32),
        boxes.label.astype(np.int16),
        _cut(boxes, tile, frame.size),
    )
    return candidates, int((near & ~valid).sum())


def _cut(boxes: Boxes, tile: Tile, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which boxes touch an edge of their window that is not an edge of the scene."""
    window = tile.window
    x0, y0, x1, y1 = boxes.xyxy.T
    cut = np.zeros(len(boxes), np.bool_)
    if tile.alone:
        return cut
    if window.col_off > 0:
        cut |= x0 <= EDGE_PX
    if window.row_off > 0:
        cut |= y0 <= EDGE_PX
    if window.right < size[0]:
        cut |= x1 >= window.width - EDGE_PX
    if window.bottom < size[1]:
        cut |= y1 >= window.height - EDGE_PX
    return cut
