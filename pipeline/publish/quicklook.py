"""Draw the quicklook of a scene: without detections, because they depend on thresholds.

A pixel of the picture is the mean of the valid scene pixels of its cell. Cell `j` of `n` along a
side of `length` pixels has the pixels from floor(j * length / n) up to floor((j + 1) * length / n),
so each scene pixel counts once, whatever the strips in which the scene is read. A scene with
overviews is read from these by GDAL instead, which takes a fraction of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio import windows
from rasterio.enums import Resampling

from scenesweep.pipeline.raster.chips import Source, scene_stretch
from scenesweep.pipeline.raster.pixels import Pixels, open_scene
from scenesweep.pipeline.raster.stretch import Stretch, to_uint8
from scenesweep.pipeline.raster.validity import read_with_validity
from scenesweep.pipeline.scene import Scene

_STRIP_PX = 4_000_000
_SOURCE_PX = 4_000_000, 32_000_000
"""Scene pixels in one read without overviews: one row of blocks if it has so many."""
_BLOCK = 64
_ZLIB_LEVEL = (
    2  # aerial imagery: 3 to 10 % larger than with zlib's default, in a quarter of the time
)

Edges = tuple[NDArray[np.int64], NDArray[np.int64]]
"""The first pixel of each cell and the end of the last one, along rows and along columns."""
Block = tuple[slice, slice]
"""Rows and columns of a picture, as slices."""


def draw_quicklook(source: Source, path: Path, *, longest_px: int) -> None:
    """Write a PNG of at most `longest_px` on its longer side; invalid pixels are transparent."""
    write_picture(scene_picture(source.scene, shrunk(source.scene, longest_px)), path)


def write_picture(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a picture (height, width, 3 or 4) as PNG."""
    Image.fromarray(picture).save(path, format="PNG", compress_level=_ZLIB_LEVEL)


def shrunk(scene: Scene, longest_px: int) -> tuple[int, int]:
    """Return the width and height that a scene is reduced to; it is never enlarged."""
    shrink = max(1.0, max(scene.width, scene.height) / longest_px)
    return max(1, math.floor(scene.width / shrink)), max(1, math.floor(scene.height / shrink))


def scene_picture(scene: Scene, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a complete scene as (height, width, 3) uint8; a mask is added as a fourth channel."""
    return picture_rows(scene, size, slice(0, size[1]))


def picture_rows(scene: Scene, size: tuple[int, int], rows: slice) -> NDArray[np.uint8]:
    """Read some rows of the picture of a scene; `size` is the width and height of the picture.

    The scene is read in strips, so that float64 needs no more memory than uint8. In a sparse scene
    only blocks with valid pixels are read.
    """
    bands, width = display_bands(scene), size[0]
    stretch = scene_stretch(scene, bands, source_range=None, percentiles=(2, 98))
    picture = np.zeros((rows.stop - rows.start, width, 4 if scene.masked else 3), np.uint8)
    with open_scene(scene) as dataset:
        for strip in _strips(scene, size, rows):
            part = picture[strip.start - rows.start : strip.stop - rows.start]
            blocks = [(strip, slice(0, width))]
            if scene.masked:
                window = _window_of(scene, blocks[0], size)
                part[..., 3] = dataset.dataset_mask(window=window, out_shape=part.shape[:2])
                blocks = _blocks(part[..., 3], strip.start)
            for rows_of, columns in blocks:
                inside = slice(rows_of.start - strip.start, rows_of.stop - strip.start), columns
                colours = _colours(dataset, scene, size, (rows_of, columns), stretch)
                if scene.masked:
                    colours = np.where(part[*inside, 3:] > 0, colours, 0)
                part[*inside, :3] = colours
    return picture


def _strips(scene: Scene, size: tuple[int, int], rows: slice) -> Iterator[slice]:
    """Yield the rows of a picture in strips that are read at once."""
    width, height = size
    step = max(1, _STRIP_PX // width)
    if _is_averaged_here(scene, size):
        least, most = _SOURCE_PX
        pixels = min(max(least, scene.width * scene.block[0]), most)
        step = max(1, min(step, pixels * height // (scene.width * scene.height)))
    for top in range(rows.start, rows.stop, step):
        yield slice(top, min(top + step, rows.stop))


def is_read_in_strips(scene: Scene, size: tuple[int, int]) -> bool:
    """Say whether strips of a picture can be read by different workers, without more work.

    A stretch needs a look at the whole scene, and GDAL's averages depend on the strips.
    """
    return _is_averaged_here(scene, size) and scene.dtype == "uint8"


def _is_averaged_here(scene: Scene, size: tuple[int, int]) -> bool:
    """Say whether the cells are averaged here, and not by GDAL."""
    return not scene.overviews and size != (scene.width, scene.height)


def _colours(
    dataset: Pixels, scene: Scene, size: tuple[int, int], block: Block, stretch: Stretch | None
) -> NDArray[np.uint8]:
    """Return a block of a picture (H, W, 3)."""
    bands = display_bands(scene)
    if not _is_averaged_here(scene, size):
        pixels = _averaged_by_gdal(dataset, bands, _window_of(scene, block, size), block)
        return to_uint8(pixels, stretch).transpose(1, 2, 0)
    y = _edges(block[0], scene.height, size[1])
    x = _edges(block[1], scene.width, size[0])
    window = windows.Window(x[0], y[0], x[-1] - x[0], y[-1] - y[0])
    unique = sorted(set(bands))
    pixels, valid = read_with_validity(dataset, unique, window, masked=scene.masked)
    means = cell_means(pixels, valid, (y - y[0], x - x[0]))
    means = means[[unique.index(band) for band in bands]]
    return to_uint8(means, stretch).transpose(1, 2, 0)


def _edges(cells: slice, length: int, count: int) -> NDArray[np.int64]:
    """Return the first pixel of each of some cells along a side, and the end of the last one."""
    return np.arange(cells.start, cells.stop + 1, dtype=np.int64) * length // count


def cell_means(pixels: NDArray[Any], valid: NDArray[np.bool_] | None, edges: Edges) -> NDArray[Any]:
    """Return the mean of the valid pixels of each cell, in the type of the pixels.

    `pixels` is (bands, H, W), `valid` (H, W) or None if all are. Whole numbers are rounded, a half
    upwards. A cell without valid pixels becomes 0.
    """
    y, x = edges
    if valid is None:
        counts = np.multiply.outer(np.diff(y), np.diff(x)).astype(np.uint32)
    else:
        pixels = np.where(valid, pixels, np.zeros((), pixels.dtype))
        counts = np.maximum(_cell_sums(valid[None].view(np.uint8), edges)[0], 1)
    sums = _cell_sums(pixels, edges)
    if sums.dtype.kind == "f":
        return (sums / counts).astype(pixels.dtype)
    return ((sums + counts // 2) // counts).astype(pixels.dtype)


def _cell_sums(pixels: NDArray[Any], edges: Edges) -> NDArray[Any]:
    """Return the sum of the pixels (bands, H, W) of each cell: int64, uint32 or float64.

    Rows are added first, in the smallest type that holds the sums: most of the time is theirs.
    """
    y, x = edges
    exact = pixels.dtype.kind in "ui" and pixels.dtype.itemsize <= 4
    kind = np.int64 if exact else np.float64
    narrow = pixels.dtype == np.uint8 and max(np.diff(y).max(), np.diff(x).max()) <= 257
    sums = np.empty((len(pixels), len(y) - 1, len(x) - 1), np.uint32 if narrow else kind)
    row = np.empty((len(pixels), pixels.shape[2]), np.uint16 if narrow else kind)  # 257 * 255
    for cell, (first, last) in enumerate(zip(y[:-1].tolist(), y[1:].tolist(), strict=True)):
        row[:] = pixels[:, first]
        for number in range(first + 1, last):
            row += pixels[:, number]
        sums[:, cell] = np.add.reduceat(row, x[:-1], axis=1, dtype=sums.dtype)
    return sums


def display_bands(scene: Scene) -> tuple[int, int, int]:
    """Return the bands to show as red, green and blue: by name, or the first ones."""
    bands = []
    for color in ("red", "green", "blue"):
        match = [i for i, b in enumerate(scene.bands, 1) if color in (b.description, b.color)]
        bands.append(match[0] if match else 0)
    if all(bands):
        return bands[0], bands[1], bands[2]
    return (1, 2, 3) if len(scene.bands) >= 3 else (1, 1, 1)


def _blocks(alpha: NDArray[np.uint8], top: int) -> list[Block]:
    """Return the blocks of a strip to read: all of it, or only valid parts if it is sparse.

    `alpha` (H, W) is the mask of the strip, whose first row in the picture is `top`.
    """
    height, width = alpha.shape
    blocks = [
        (slice(y, min(y + _BLOCK, height)), slice(x, min(x + _BLOCK, width)))
        for y in range(0, height, _BLOCK)
        for x in range(0, width, _BLOCK)
    ]
    valid = [_around_valid(alpha, block) for block in blocks if alpha[block].any()]
    if len(valid) >= len(blocks) / 2:
        valid = [(slice(0, height), slice(0, width))]
    return [(slice(rows.start + top, rows.stop + top), columns) for rows, columns in valid]


def _around_valid(alpha: NDArray[np.uint8], block: Block) -> Block:
    valid = alpha[block] > 0
    y, x = (np.flatnonzero(valid.any(axis=axis)) for axis in (1, 0))
    top, left = (span.start for span in block)
    return _span(top, y), _span(left, x)


def _span(start: int, inside: NDArray[np.intp]) -> slice:
    return slice(start + int(inside[0]), start + int(inside[-1]) + 1)


def _window_of(scene: Scene, block: Block, size: tuple[int, int]) -> windows.Window:
    """Return the window of the scene under a block of a picture; `size` is width and height."""
    (y, x), (width, height) = block, size
    sx, sy = scene.width / width, scene.height / height
    return windows.Window(
        x.start * sx, y.start * sy, (x.stop - x.start) * sx, (y.stop - y.start) * sy
    )


def _averaged_by_gdal(
    dataset: Pixels, bands: tuple[int, ...], window: windows.Window, block: Block
) -> NDArray[np.generic]:
    shape = tuple(span.stop - span.start for span in block)
    return dataset.read(
        list(bands), window=window, out_shape=(len(bands), *shape), resampling=Resampling.average
    )
