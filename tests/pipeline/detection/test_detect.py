"""The report of a shard equals, to the bit, a report window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes, DetectorOutput
from scenesweep.model.inference.windows import AnyWindows
from scenesweep.pipeline.detection.detect import (
    EDGE_PX,
    Candidates,
    Frame,
    ShardDetections,
    detect_shards,
)
from scenesweep.pipeline.geometry.grid import Grid, Layout, Tile
from scenesweep.pipeline.raster.chips import Chips


def reference(output: DetectorOutput, chips: Chips, frame: Frame) -> ShardDetections:
    """The definition: the report of each window on its own, joined."""
    parts, on_nodata = [Candidates.none()], 0
    for chip, tile in enumerate(chips.shard.tiles):
        boxes = output.boxes.take(output.boxes.chip == chip)
        candidates, dropped = _window_report(boxes, chips, tile, frame)
        parts.append(candidates)
        on_nodata += dropped
    windows = len(chips.shard.tiles)
    return ShardDetections(Candidates.join(*parts), windows, int(output.capped.sum()), on_nodata)


def _window_report(boxes: Boxes, chips: Chips, tile: Tile, frame: Frame) -> tuple[Candidates, int]:
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
    sx, sy = frame.scale
    offset = np.array([window.col_off, window.row_off] * 2, np.float64)
    xyxy = (boxes.xyxy.astype(np.float64) + offset) * np.array(frame.scale * 2)
    limits = np.array([frame.size[0] * sx, frame.size[1] * sy] * 2)
    candidates = Candidates(
        np.clip(xyxy, 0, limits), boxes.score, boxes.label, _cut(boxes, tile, frame.size)
    )
    return candidates, int((near & ~valid).sum())


def _cut(boxes: Boxes, tile: Tile, size: tuple[int, int]) -> NDArray[np.bool_]:
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


class Given:
    """A detector that returns the same output, whatever the chips are."""

    runs_on = ""

    def __init__(self, output: DetectorOutput) -> None:
        self.output = output

    def detect_windows(self, parts: Sequence[AnyWindows]) -> DetectorOutput:
        return self.output


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A scene of a few windows of 64 px; some are left out, and an island may be there."""
    width, height = draw(st.integers(1, 260)), draw(st.integers(1, 260))
    grid = Grid(width, height, 64, draw(st.integers(0, 16)), draw(st.integers(1, 4)), 64)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kept = rng.random(grid.shape) < draw(st.sampled_from([0.5, 1.0]))
    island = [[width // 2, height // 2, min(40, width), min(30, height)]]
    return Layout(grid, kept, np.array(island if draw(st.booleans()) else [], int).reshape(-1, 4))


@st.composite
def detected(draw: st.DrawFn) -> tuple[DetectorOutput, Chips, Frame]:
    """A shard with random pixels and boxes, many of them on the edges of windows and cores."""
    layout = draw(layouts().filter(lambda layout: bool(layout.numbers)))
    shard = layout.shard(draw(st.sampled_from(layout.numbers)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = (shard.bounds.height, shard.bounds.width)
    valid = rng.random(size) < draw(st.sampled_from([0.0, 0.7, 1.0]))
    chips = Chips(shard, shard.bounds, np.zeros((1, *size), np.uint8), valid)
    tiles, count = len(shard.tiles), draw(st.sampled_from([0, 1, 7, 200]))
    corners = rng.choice([0, 0.5, 1, 1.0000001, 15, 17.5, 32, 62.99, 63, 64], (count, 2, 2))
    if draw(st.booleans()):
        corners += rng.normal(0, 3, corners.shape)
    corners.sort(axis=1)
    boxes = Boxes(
        corners.reshape(-1, 4).astype(np.float32),
        rng.random(count, np.float32),
        rng.integers(0, 3, count).astype(np.int16),
        np.sort(rng.integers(0, tiles, count)).astype(np.int32),
    )
    scale = draw(st.sampled_from([(1.0, 1.0), (0.7310924369747899, 1.42)]))
    frame = Frame(layout.grid.size, scale, draw(st.sampled_from([0.0, 2.0, 2.3])))
    return DetectorOutput(boxes, rng.random(tiles) < 0.5), chips, frame


@given(detected())
def test_the_report_equals_that_of_each_window_to_the_bit(
    case: tuple[DetectorOutput, Chips, Frame],
) -> None:
    output, chips, frame = case
    (found,) = detect_shards(Given(output), [(chips, frame)])
    expected = reference(output, chips, frame)
    for field in fields(Candidates):
        ours, theirs = (getattr(r.candidates, field.name) for r in (found, expected))
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()
    for name in ("windows", "capped_windows", "on_nodata"):
        assert getattr(found, name) == getattr(expected, name)


@given(detected(), st.integers(0, 5))
def test_a_shard_is_the_same_alone_and_in_company(
    case: tuple[DetectorOutput, Chips, Frame], others: int
) -> None:
    """The same shard comes several times; each time it has the report that it has alone."""
    output, chips, frame = case
    tiles = len(chips.shard.tiles)
    copies = 1 + others
    together = DetectorOutput(
        Boxes(
            np.tile(output.boxes.xyxy, (copies, 1)),
            np.tile(output.boxes.score, copies),
            np.tile(output.boxes.label, copies),
            np.concatenate([output.boxes.chip + np.int32(i * tiles) for i in range(copies)]),
        ),
        np.tile(output.capped, copies),
    )
    reports = detect_shards(Given(together), [(chips, frame)] * copies)
    (alone,) = detect_shards(Given(output), [(chips, frame)])
    for report in reports:
        assert report.candidates.xyxy.tobytes() == alone.candidates.xyxy.tobytes()
        assert report.on_nodata == alone.on_nodata
        assert report.capped_windows == alone.capped_windows
