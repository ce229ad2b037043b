"""Run a detector over shards: chips in, candidates in scene pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes, Columns, DetectorOutput
from scenesweep.model.inference.windows import AnyWindows
from scenesweep.pipeline.geometry.georef import to_scene
from scenesweep.pipeline.geometry.grid import Tile, Window
from scenesweep.pipeline.raster.source_chips import ShardChips

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
    """Candidates of one shard, some counts, and the device and precision of the detector.

    `windows` are those that were looked at: windows without valid pixels are not.
    """

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


class WindowsDetector(Protocol):
    """Detects boxes in windows of one shape: those of several shards, in one batch if they fit."""

    def detect_windows(self, parts: Sequence[AnyWindows]) -> DetectorOutput:
        """Detect; `boxes.chip` counts the windows of all parts in order."""
        ...


def detect_shards(
    detector: WindowsDetector, shards: Sequence[tuple[ShardChips, Frame]]
) -> list[ShardDetections]:
    """Detect on the chips of several shards at once, so that small shards fill batches.

    Chips of one size share batches. A shard's result does not depend on the other shards: the
    detector treats each chip in a batch independently, and always fills the batch. A shard without
    windows has no detections.
    """
    windows = {i: chips.windows() for i, (chips, _) in enumerate(shards) if chips.shard.tiles}
    results = dict.fromkeys(range(len(shards)), ShardDetections(Candidates.none(), 0, 0, 0))
    for shape in dict.fromkeys(part.shape for part in windows.values()):
        of_shape = [i for i, part in windows.items() if part.shape == shape]
        detected = detector.detect_windows([windows[i] for i in of_shape])
        first = 0
        for i in of_shape:
            last = first + len(windows[i])
            chips, frame = shards[i]
            results[i] = _of_shard(detected, first, last, chips, frame)
            first = last
    return [results[i] for i in range(len(shards))]


def _of_shard(
    detected: DetectorOutput, first: int, last: int, chips: ShardChips, frame: Frame
) -> ShardDetections:
    """Collect the detections of one shard: chips `first` up to `last` of a batch.

    A window reports the boxes whose centre lies in its core grown by the slack, on a valid pixel.
    """
    start, stop = np.searchsorted(detected.boxes.chip, (first, last)).tolist()
    candidates, on_nodata = Candidates.none(), 0
    if stop > start:
        boxes = detected.boxes.take(np.arange(start, stop))
        candidates, on_nodata = _report(boxes, boxes.chip - first, chips, frame)
    return ShardDetections(
        candidates,
        windows=last - first,
        capped_windows=int(detected.capped[first:last].sum()),
        on_nodata=on_nodata,
    )


def _report(
    boxes: Boxes, tile: NDArray[np.integer], chips: ShardChips, frame: Frame
) -> tuple[Candidates, int]:
    """Return the candidates of a shard, and the number of boxes dropped on nodata.

    `tile` (N,) is the index of each box's tile. All boxes are handled at once: numpy's fixed cost
    per call is then paid once, not once for each window.
    """
    tiles = chips.shard.tiles
    origins = np.take([tile.window.origin for tile in tiles], tile, axis=0)
    centres = boxes.centres()
    near = _near_core(centres + origins, np.take(_cores(tiles), tile, axis=0), frame.slack)
    valid = _on_valid(centres, origins, chips)
    kept = np.flatnonzero(near & valid)
    boxes, tile, origins = boxes.take(kept), tile[kept], origins[kept]
    xyxy = to_scene(boxes.xyxy, origins, frame.scale)
    for column, edges in enumerate(xyxy.T):
        np.clip(edges, 0, frame.size[column % 2] * frame.scale[column % 2], out=edges)
    candidates = Candidates(
        xyxy,
        boxes.score.astype(np.float32),
        boxes.label.astype(np.int16),
        _cut(boxes, tiles[0].window, np.take(_inner(tiles, frame), tile, axis=0)),
    )
    return candidates, int((near & ~valid).sum())


def _cores(tiles: Sequence[Tile]) -> NDArray[np.float64]:
    """Return (tiles, 4) left, top, right and bottom of the cores, in grid pixels."""
    cores = [tile.core for tile in tiles]
    return np.array([(c.col_off, c.row_off, c.right, c.bottom) for c in cores], np.float64)


def _near_core(
    points: NDArray[np.float64], cores: NDArray[np.float64], slack: float
) -> NDArray[np.bool_]:
    """Return which points (N, 2) lie in their core (N, 4), grown by the slack. All on the grid."""
    x, y = points.T
    left, top, right, bottom = cores.T
    return (x >= left - slack) & (x < right + slack) & (y >= top - slack) & (y < bottom + slack)


def _on_valid(
    centres: NDArray[np.float64], origins: NDArray[np.int64], chips: ShardChips
) -> NDArray[np.bool_]:
    """Return which centres (N, 2), in chip pixels, lie on valid pixels of their window."""
    window = chips.shard.tiles[0].window  # the tiles of a shard have one size
    last = (window.width - 1, window.height - 1)
    pixels = np.clip(np.floor(centres).astype(np.intp), 0, last)
    x, y = (pixels + (origins - chips.bounds.origin)).T
    return chips.are_valid(y, x)


def _cut(boxes: Boxes, window: Window, inner: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which boxes touch an edge of their window that is `inner` (N, 4).

    All windows have the size of `window`.
    """
    x0, y0, x1, y1 = boxes.xyxy.T
    left, top, right, bottom = inner.T
    return (
        (left & (x0 <= EDGE_PX))
        | (top & (y0 <= EDGE_PX))
        | (right & (x1 >= window.width - EDGE_PX))
        | (bottom & (y1 >= window.height - EDGE_PX))
    )


def _inner(tiles: Sequence[Tile], frame: Frame) -> NDArray[np.bool_]:
    """Return (tiles, 4) which edges of the windows cut objects: not those of the scene."""
    width, height = frame.size
    inner = [
        (w.col_off > 0, w.row_off > 0, w.right < width, w.bottom < height)
        for w in (tile.window for tile in tiles)
    ]
    return np.array(inner) & ~np.array([[tile.alone] for tile in tiles])
