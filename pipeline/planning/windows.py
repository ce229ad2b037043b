"""Choose the windows of a scene: only ground inside the area and with valid pixels.

The mask of valid pixels is read decimated, with a sample about every 16 px. A narrower island of
valid pixels may be missed. Where planning may not read the mask, windows are kept, and the reader
of a shard drops those without valid pixels (`pipeline.raster.empty`).
"""

from __future__ import annotations

import math
import sys

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import windows
from shapely import Geometry, STRtree

from scenesweep.pipeline.errors import SceneError
from scenesweep.pipeline.geometry.grid import Axis, Grid, Layout
from scenesweep.pipeline.planning.mask import Mask, Spans
from scenesweep.pipeline.raster.chips import Source
from scenesweep.pipeline.raster.pixels import open_scene
from scenesweep.pipeline.raster.survey import Survey

_EMPTIER = 16
"""The grid may have this many times the allowed windows, if most have no pixels or are outside."""
_ISLANDS_BYTES = 1_500_000_000  # of decoded pixels, for the exact extents of islands
_NEAR = np.ones((3, 3), np.bool_)
_NONE = np.zeros((0, 4), np.int64)


def lay_out(
    source: Source, grid: Grid, area_px: Geometry | None, *, slack: float, most: int = sys.maxsize
) -> Layout:
    """Choose the windows to look at.

    A window is dropped when its core is outside the area of interest, or when its core, grown by
    the slack, has no valid pixel: a window only reports boxes that are centred there on a valid
    pixel. In a scene with a mask, an island of valid pixels that fits a chip gets a window of its
    own size, unless the core of a window that is kept for other pixels covers some of it.

    Raises:
        SceneError: when there are more than `most` windows to look at. It is raised before any
            array of that size exists.
    """
    everywhere = area_px is None and not source.scene.masked
    _check_count(math.prod(grid.shape), source, grid, most if everywhere else _EMPTIER * most)
    layout = _laid_out(source, grid, area_px, slack)
    _check_count(layout.windows, source, grid, most)
    return layout


def _laid_out(source: Source, grid: Grid, area_px: Geometry | None, slack: float) -> Layout:
    in_area = np.ones(grid.shape, np.bool_)
    if area_px is not None:
        in_area = _cores_touching(source, grid, area_px)
    if not source.scene.masked or not in_area.any():
        return Layout(grid, in_area, _NONE)
    mask = Mask.of(source.scene)
    if not mask.valid.any():
        return Layout(grid, np.zeros(grid.shape, np.bool_), _NONE)
    if grid.shape == (1, 1) or not mask.exact:
        kept = in_area & _cores_with_pixels(source, grid, mask, slack)
        return Layout(grid, kept, _NONE, exact=mask.exact)
    islands = _islands(source, grid, mask)
    if area_px is not None:
        boxes = shapely.box(*_in_scene(islands, source).T)
        islands = islands[np.atleast_1d(shapely.intersects(area_px, boxes))]
    return _divided(source, grid, mask, in_area, islands, slack)


def _check_count(windows: int, source: Source, grid: Grid, most: int) -> None:
    """Refuse a scene with more than `most` windows."""
    if windows <= most:
        return
    scene, (rows, columns) = source.scene, grid.shape
    sx, sy = source.scale
    resampled = "" if source.scale == (1.0, 1.0) else f", {1 / sx:.3g} x {1 / sy:.3g} times finer"
    raise SceneError(
        f"{scene.href}: its {scene.width:,} x {scene.height:,} pixels{resampled} make "
        f"{windows:,} windows of {grid.chip} px ({columns:,} x {rows:,} in all), at most {most:,} "
        "are allowed; if its size is right, raise engine.max_windows or look at a part (--aoi)"
    )


def windows_with_pixels(source: Source, grid: Grid, *, slack: float) -> NDArray[np.bool_]:
    """Return which windows have valid pixels in their core grown by the slack: (rows, columns).

    It decodes the whole scene if it has no overviews: training reads all of it anyway.
    """
    if not source.scene.masked:
        return np.ones(grid.shape, np.bool_)
    mask = Mask.of(source.scene, Survey(left_bytes=sys.maxsize))
    return _cores_with_pixels(source, grid, mask, slack)


def _cores_touching(source: Source, grid: Grid, area_px: Geometry) -> NDArray[np.bool_]:
    sx, sy = source.scale
    x, y = grid.columns, grid.rows
    boxes = shapely.box(
        (x.core_starts * sx)[None, :],
        (y.core_starts * sy)[:, None],
        (x.core_stops * sx)[None, :],
        (y.core_stops * sy)[:, None],
    )
    shapely.prepare(area_px)
    touching: NDArray[np.bool_] = shapely.intersects(area_px, boxes)
    return touching


def _cores_with_pixels(source: Source, grid: Grid, mask: Mask, slack: float) -> NDArray[np.bool_]:
    """Return which cores, grown by the slack, have a valid pixel."""
    (sx, sy), x, y = source.scale, grid.columns, grid.rows
    left, right = mask.spans((x.core_starts - slack) * sx, (x.core_stops + slack) * sx, 0)
    top, bottom = mask.spans((y.core_starts - slack) * sy, (y.core_stops + slack) * sy, 1)
    table = _summed(mask.valid)
    counts = (
        table[np.ix_(bottom, right)]
        - table[np.ix_(top, right)]
        - table[np.ix_(bottom, left)]
        + table[np.ix_(top, left)]
    )
    return counts > 0


def _divided(
    source: Source,
    grid: Grid,
    mask: Mask,
    in_area: NDArray[np.bool_],
    islands: NDArray[np.int64],
    slack: float,
) -> Layout:
    """Divide the ground between islands and grid, so that no object is reported twice.

    Samples under islands do not keep a window. But a window may be kept for other pixels, and its
    core may then touch an island: both would report objects there. Such an island goes back to
    the grid. Its samples then count for windows again, which may keep more windows, which may
    touch more islands: therefore the loop. It ends, because each turn drops an island.
    """
    while True:
        rest = mask if not len(islands) else mask.without(_in_scene(islands, source))
        kept = in_area & _cores_with_pixels(source, grid, rest, slack)
        shared = _under_cores(islands, grid, kept, slack)
        if not shared.any():
            return Layout(grid, kept, islands)
        islands = islands[~shared]


def _islands(source: Source, grid: Grid, mask: Mask) -> NDArray[np.int64]:
    """Return the islands (M, 4) on the grid that fit a chip and touch no other patch of pixels.

    There are none if most of the scene is valid, or if there would be more islands than the grid
    has windows: then windows of the grid cost less. There are none either if planning would have
    to decode too many pixels for them.
    """
    if mask.valid.mean() > 0.5:
        return _NONE
    from scipy import ndimage  # half a second to import, for sparse scenes alone

    # Dilate by one sample, because a patch may begin or end between two samples.
    labels, count = ndimage.label(ndimage.binary_dilation(mask.valid, _NEAR), _NEAR)
    if not 0 < count <= grid.shape[0] * grid.shape[1]:
        return _NONE
    extents = [(c.start, r.start, c.stop, r.stop) for r, c in ndimage.find_objects(labels)]
    around = np.array(extents, np.float64) * np.array(mask.step * 2)
    limits = [source.scene.width, source.scene.height] * 2
    around = np.minimum(np.rint(around), limits).astype(np.int64)
    boxes = np.asarray(shapely.box(*around.T), dtype=object)
    # Two patches whose boxes meet would see each other's pixels: neither is alone.
    box, other = STRtree(boxes).query(boxes, predicate="intersects")
    touched = np.bincount(box[box != other], minlength=len(boxes)) > 0
    largest = np.array(source.scale) * grid.chip + 4 * np.array(mask.step)
    small = (around[:, 2:] - around[:, :2] <= largest).all(axis=1)
    # The decimated mask gives only rough boxes: read the few that may fit at full resolution.
    rough = around[small & ~touched]
    if _pixel_bytes(source) * (rough[:, 2:] - rough[:, :2]).prod(axis=1).sum() > _ISLANDS_BYTES:
        return _NONE
    exact = _on_grid(_valid_extents(source, rough), source)
    return exact[(exact[:, 2:] <= grid.chip).all(axis=1)]


def _pixel_bytes(source: Source) -> int:
    return len(source.scene.bands) * np.dtype(source.scene.dtype).itemsize


def _valid_extents(source: Source, around: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shrink boxes (M, 4) of whole scene pixels to the valid pixels in them."""
    extents = []
    with open_scene(source.scene, keep=True) as dataset:
        for x0, y0, x1, y1 in around.tolist():
            valid = dataset.dataset_mask(window=windows.Window(x0, y0, x1 - x0, y1 - y0)) > 0
            rows, columns = np.flatnonzero(valid.any(axis=1)), np.flatnonzero(valid.any(axis=0))
            if len(rows):
                corner = x0 + columns[-1] + 1, y0 + rows[-1] + 1
                extents.append((x0 + columns[0], y0 + rows[0], *corner))
    return np.array(extents, np.int64).reshape(-1, 4)


def _on_grid(xyxy: NDArray[np.int64], source: Source) -> NDArray[np.int64]:
    """Return column, row, width and height on the grid of boxes (M, 4) in scene pixels."""
    scale = np.array(source.scale)
    first = np.floor(xyxy[:, :2] / scale).astype(np.int64)
    return np.hstack([first, np.ceil(xyxy[:, 2:] / scale).astype(np.int64) - first])


def _in_scene(islands: NDArray[np.int64], source: Source) -> NDArray[np.float64]:
    """Return boxes (M, 4) in scene pixels of islands on the grid."""
    scale = np.array(source.scale * 2)
    return np.hstack([islands[:, :2], islands[:, :2] + islands[:, 2:]]) * scale


def _under_cores(
    islands: NDArray[np.int64], grid: Grid, kept: NDArray[np.bool_], slack: float
) -> NDArray[np.bool_]:
    """Return which islands, grown by the slack, touch the core of a kept window."""
    reach = 2 * math.ceil(slack)  # the slack of the island's window and that of the other core
    x, y = islands[:, 0], islands[:, 1]
    left, right = _cores_under(grid.columns, x - reach, x + islands[:, 2] + reach)
    top, bottom = _cores_under(grid.rows, y - reach, y + islands[:, 3] + reach)
    table = _summed(kept)
    counts = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return counts > 0


def _cores_under(axis: Axis, low: NDArray[np.int64], high: NDArray[np.int64]) -> Spans:
    """Return the half-open range of cores that half-open spans of pixels touch."""
    first = np.searchsorted(axis.core_stops, low, side="right")
    return first, np.searchsorted(axis.core_starts, high, side="left")


def _summed(flags: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the summed-area table (rows + 1, columns + 1)."""
    table = np.zeros((flags.shape[0] + 1, flags.shape[1] + 1), np.int32)
    np.cumsum(flags, axis=1, dtype=np.int32, out=table[1:, 1:])
    np.cumsum(table, axis=0, out=table)
    return table
