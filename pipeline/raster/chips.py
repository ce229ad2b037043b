"""Read the pixels of shards: the card's bands as uint8, on one grid for the whole scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rasterio import windows

from scenesweep.model.inference.source_windows import Taps
from scenesweep.model.inference.windows import Windows, windows_of
from scenesweep.pipeline.errors import SceneError, UnreadableScene, WrongBands
from scenesweep.pipeline.geometry.grid import Shard, Tile, Window
from scenesweep.pipeline.raster.opening import BROKEN, cause
from scenesweep.pipeline.raster.pixels import Pixels, open_scene
from scenesweep.pipeline.raster.resample import Alignment, precision_for, resample
from scenesweep.pipeline.raster.sample import sample_valid
from scenesweep.pipeline.raster.stretch import NO_RANGE, Stretch, to_uint8
from scenesweep.pipeline.raster.validity import Valid, none_if_all, read_with_validity
from scenesweep.pipeline.scene import Scene

_ALIASES = dict.fromkeys(("nir", "near_infrared", "near-infrared"), "near infrared")
_STRETCH_SAMPLE_PX = 1024
_STRIP_BYTES = 128_000_000  # source pixels that are resampled at a time
_COLOUR_SAMPLE_PX, _SOURCES_AT_MOST = 128, 200


@dataclass(frozen=True, slots=True)
class Source:
    """How a worker reads the pixels of one scene.

    `bands` are 1-based indices, or 0 for a missing band that the model can do without. `fill` is
    the value of each band, 0..255, for pixels that are not valid. `scale` is scene pixels per
    grid pixel along columns and rows; (1, 1) reads without resampling. `stretch` is None for
    uint8, which is not stretched.
    """

    scene: Scene
    bands: tuple[int, ...]
    scale: tuple[float, float]
    stretch: Stretch | None
    fill: tuple[int, ...]

    @property
    def present(self) -> list[int]:
        """Positions in `bands` of the bands that the scene has."""
        return [position for position, band in enumerate(self.bands) if band]


@dataclass(frozen=True, slots=True)
class Chips:
    """The pixels of one shard.

    `pixels` is (bands, H, W) uint8 and `valid` (H, W) bool, both over `bounds`. Pixels that are not
    valid or lie outside the scene are False in `valid` and have the source's fill. `valid` is None
    if all pixels are valid.
    """

    shard: Shard
    bounds: Window
    pixels: NDArray[np.uint8]
    valid: Valid

    def stack(self) -> NDArray[np.uint8]:
        """Return the shard's chips (N, bands, chip, chip), in the order of its tiles."""
        return np.stack([self.pixels[:, *self._slices(tile)] for tile in self.shard.tiles])

    def windows(self) -> Windows:
        """Return the shard's chips in the order of its tiles, without a copy of their pixels."""
        corners, size = corners_of(self.shard, self.bounds)
        return windows_of(self.pixels, corners, size=size)

    def valid_at(self, tile: Tile, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points (N, 2), in chip pixels, lie on valid pixels."""
        rows, columns = self._slices(tile)
        last = np.array([columns.stop - columns.start, rows.stop - rows.start]) - 1
        x, y = np.clip(np.floor(points).astype(np.intp), 0, last).T
        return self.are_valid(y + rows.start, x + columns.start)

    def are_valid(self, y: NDArray[np.intp], x: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return which pixels at rows `y` (N,) and columns `x` (N,) of `bounds` are valid."""
        return np.ones(len(y), np.bool_) if self.valid is None else self.valid[y, x]

    def _slices(self, tile: Tile) -> tuple[slice, slice]:
        top = tile.window.row_off - self.bounds.row_off
        left = tile.window.col_off - self.bounds.col_off
        return slice(top, top + tile.window.height), slice(left, left + tile.window.width)


def corners_of(shard: Shard, bounds: Window) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Return row and column (N, 2) of each window in `bounds`, and their height and width."""
    first = shard.tiles[0].window  # the tiles of a shard have one size
    origins = np.array([tile.window.origin for tile in shard.tiles])
    return (origins - bounds.origin)[:, ::-1], (first.height, first.width)


def band_indexes(
    scene: Scene, requested: tuple[str | int, ...], *, missing_ok: tuple[str, ...] = ()
) -> tuple[int, ...]:
    """Return the 1-based indices of the bands that a card asks for.

    A number is an index. A name is matched with the descriptions, then with the colour
    interpretations. A missing band of `missing_ok` becomes 0, unless all bands are missing.

    Raises:
        WrongBands: with the requested, the missing and the present bands.
    """
    _check_colours(scene)
    indexes = [_find(scene, band) for band in requested]
    missing = [band for band, index in zip(requested, indexes, strict=True) if index is None]
    if set(missing) - set(missing_ok) or len(missing) == len(requested):
        raise WrongBands(_missing_bands(scene, requested, missing))
    return tuple(index or 0 for index in indexes)


def _missing_bands(
    scene: Scene, requested: tuple[str | int, ...], missing: Sequence[str | int]
) -> str:
    """Return the message for missing bands, with a way out where the counts agree."""
    present = ", ".join(band.description or band.color for band in scene.bands)
    text = (
        f"{scene.href}: the model asks for {len(requested)} bands "
        f"({', '.join(map(str, requested))}), the scene has {len(scene.bands)} ({present}); "
        f"missing: {', '.join(map(str, missing))}"
    )
    if len(requested) != len(scene.bands):
        return text
    order = ",".join(str(i) for i, _ in enumerate(requested, 1))
    return f"{text}; if they are its bands in this order, --set read.bands=[{order}] says so"


def check_scale(scene: Scene, gsd_m: float, *, max_coarser: float) -> None:
    """Refuse a scene whose pixels are more than `max_coarser` times as large as the card's.

    Raises:
        SceneError: when they are, with both ground sample distances.
    """
    if scene.gsd_m is None or max(scene.gsd_m) <= max_coarser * gsd_m:
        return
    coarser = max(scene.gsd_m) / gsd_m
    raise SceneError(
        f"{scene.href}: expected pixels of at most {max_coarser * gsd_m:,.4g} m, found "
        f"{max(scene.gsd_m):,.4g} m: {coarser:,.3g} times as coarse as the {gsd_m:g} m of the "
        f"model, and at most {max_coarser:g} times is allowed (read.max_coarser)"
    )


def grid_scale(scene: Scene, gsd_m: float, *, tolerance: float) -> tuple[float, float]:
    """Return scene pixels per grid pixel along columns and rows; (1, 1) is no resampling.

    The grid has a whole number of pixels over the scene, so its ground sample distance differs
    from the card's by up to half a pixel over the scene's length. A scene without georeference
    is assumed to have the card's.
    """
    if scene.gsd_m is None or all(abs(gsd / gsd_m - 1) <= tolerance for gsd in scene.gsd_m):
        return 1.0, 1.0
    width = max(1, round(scene.width * scene.gsd_m[0] / gsd_m))
    height = max(1, round(scene.height * scene.gsd_m[1] / gsd_m))
    return scene.width / width, scene.height / height


def rows_at_once(source: Source, width: int) -> int:
    """Return the number of grid rows, `width` px wide, that are resampled at a time."""
    sx, sy = source.scale
    row = width * sx * max(1, len(source.present)) * np.dtype(source.scene.dtype).itemsize
    return max(1, math.floor(_STRIP_BYTES / (row * sy)))


def scene_stretch(
    scene: Scene,
    bands: tuple[int, ...],
    *,
    source_range: tuple[float, float] | None,
    percentiles: tuple[float, float],
) -> Stretch | None:
    """Return how a scene's values become 0..255: one map for the whole scene.

    uint8 is not stretched. Other types use `source_range`, else the percentiles of a sample of the
    valid pixels (`pipeline.raster.sample`). A missing band, with index 0, has the range 0..1, and
    so have all bands if the sample has no valid pixel.
    """
    if scene.dtype == "uint8":
        return None
    if source_range is not None:
        return Stretch((source_range,) * len(bands))
    present = sorted(set(bands) - {0})
    values = sample_valid(scene, present, most=_STRETCH_SAMPLE_PX)
    if not values.size:
        return Stretch((NO_RANGE,) * len(bands))
    lows, highs = np.percentile(values.astype(np.float64), percentiles, axis=1)
    ranges = {0: NO_RANGE}
    ranges |= {b: (float(p), float(q)) for b, p, q in zip(present, lows, highs, strict=True)}
    return Stretch(tuple(ranges[band] for band in bands))


def mean_colour(sources: Sequence[Source]) -> tuple[int, ...]:
    """Return the mean of each band, 0..255, over the valid pixels of decimated reads.

    Training uses it as the `fill` of a model whose card has no means yet. It reads at most 200
    sources, evenly chosen.
    """
    sums, count = np.zeros(len(sources[0].bands)), 0
    for source in sources[:: -(-len(sources) // _SOURCES_AT_MOST)]:
        bands = [source.bands[position] for position in source.present]
        values = sample_valid(source.scene, bands, most=_COLOUR_SAMPLE_PX)[:, None]
        seen = _complete(to_uint8(values, stretch_read(source)), source)[:, 0]
        sums, count = sums + seen.sum(axis=1, dtype=np.int64), count + seen.shape[1]
    return tuple(np.rint(sums / count).astype(int).tolist()) if count else sources[0].fill


def read_shard(source: Source, shard: Shard) -> Chips:
    """Read the pixels of a shard once.

    Raises:
        UnreadableScene: when the file is truncated or corrupt in the shard.
    """
    bounds = shard.bounds
    sx, sy = source.scale
    with open_scene(source.scene, keep=True) as dataset:
        inside = clip(bounds, round(dataset.width / sx), round(dataset.height / sy))
        if source.scale == (1.0, 1.0):
            values, valid = read_window(dataset, source, inside)
            pixels = to_uint8(values, stretch_read(source))
        else:
            pixels, valid = _read_resampled(dataset, source, inside)
    pixels = _complete(pixels, source)
    fill = np.array(source.fill, np.uint8)
    if valid is not None:
        np.copyto(pixels, fill[:, None, None], where=~valid)
    if inside == bounds:
        return Chips(shard, bounds, pixels, valid)
    padded = np.empty((len(source.bands), bounds.height, bounds.width), np.uint8)
    padded[:] = fill[:, None, None]
    padded_valid = np.zeros((bounds.height, bounds.width), np.bool_)
    top, left = inside.row_off - bounds.row_off, inside.col_off - bounds.col_off
    scene_part = slice(top, top + inside.height), slice(left, left + inside.width)
    padded[:, *scene_part] = pixels
    padded_valid[scene_part] = True if valid is None else valid
    return Chips(shard, bounds, padded, padded_valid)


def stretch_read(source: Source) -> Stretch | None:
    """Return the stretch of the bands that the scene has."""
    if source.stretch is None:
        return None
    return Stretch(tuple(source.stretch.ranges[position] for position in source.present))


def _complete(pixels: NDArray[np.uint8], source: Source) -> NDArray[np.uint8]:
    """Add the missing bands, with the fill, so that all bands have their position."""
    if len(source.present) == len(source.bands):
        return pixels
    complete = np.empty((len(source.bands), *pixels.shape[1:]), np.uint8)
    complete[:] = np.array(source.fill, np.uint8)[:, None, None]
    complete[source.present] = pixels
    return complete


def _read_resampled(
    dataset: Pixels, source: Source, inside: Window
) -> tuple[NDArray[np.uint8], Valid]:
    """Read a window of the grid, resampled strip by strip and stretched."""
    pixels = np.empty((len(source.present), inside.height, inside.width), np.uint8)
    valid = np.ones((inside.height, inside.width), np.bool_)
    step = rows_at_once(source, inside.width)
    for top in range(inside.row_off, inside.bottom, step):
        strip = replace(inside, row_off=top, height=min(step, inside.bottom - top))
        rows = slice(top - inside.row_off, strip.bottom - inside.row_off)
        values, known = _resample(dataset, source, strip)
        pixels[:, rows] = to_uint8(values, stretch_read(source))
        if known is not None:
            valid[rows] = known
    return pixels, none_if_all(valid)


def _resample(dataset: Pixels, source: Source, strip: Window) -> tuple[NDArray[np.generic], Valid]:
    """Read a window of the grid, as source values."""
    (top, rows), (left, columns) = grid_taps(dataset, source, strip)
    around = Window(left, top, columns.span[1], rows.span[1])
    pixels, valid = read_window(dataset, source, around)
    return resample(pixels, valid, rows=rows, columns=columns)


def grid_taps(
    dataset: Pixels, source: Source, window: Window
) -> tuple[tuple[int, Taps], tuple[int, Taps]]:
    """Return the taps of a window of the grid, and the first source pixel, for rows and columns.

    The taps count from that first pixel.
    """
    sx, sy = source.scale
    precision = precision_for(source.scene.dtype)
    rows = Alignment(dataset.height, sy).taps(
        window.row_off, window.bottom, bits=precision.row_bits
    )
    columns = Alignment(dataset.width, sx).taps(
        window.col_off, window.right, bits=precision.column_bits
    )
    top, left = rows.span[0], columns.span[0]
    return (top, rows.moved(top)), (left, columns.moved(left))


def read_window(
    dataset: Pixels, source: Source, window: Window
) -> tuple[NDArray[np.generic], Valid]:
    """Read a window of the scene: the present bands, and which pixels are valid.

    Raises:
        UnreadableScene: when the file is truncated or corrupt there.
    """
    part = windows.Window(window.col_off, window.row_off, window.width, window.height)
    bands = [source.bands[i] for i in source.present]
    try:
        return read_with_validity(dataset, bands, part, masked=source.scene.masked)
    except BROKEN as error:
        raise UnreadableScene(
            f"{source.scene.href}: columns {window.col_off}-{window.right}, rows "
            f"{window.row_off}-{window.bottom} {cause(error)}"
        ) from error


def clip(window: Window, width: int, height: int) -> Window:
    """Return the part of a window inside a raster of this size."""
    left, top = max(0, window.col_off), max(0, window.row_off)
    right, bottom = min(width, window.right), min(height, window.bottom)
    return Window(left, top, right - left, bottom - top)


def _check_colours(scene: Scene) -> None:
    """Refuse pixels that are not intensities, because they would be read as intensities."""
    if "palette" in [band.color for band in scene.bands]:
        raise WrongBands(
            f"{scene.href}: its pixels are colour numbers of a palette, not intensities; expand "
            "it to RGB"
        )


def _find(scene: Scene, requested: str | int) -> int | None:
    """Return the 1-based index of a band, None where the scene does not have it."""
    if isinstance(requested, int):
        return requested if 1 <= requested <= len(scene.bands) else None
    name = _plain(requested)
    descriptions = [_plain(band.description) for band in scene.bands]
    colours = [_plain(band.color) for band in scene.bands]
    for names in (descriptions, colours):
        if name in names:
            return names.index(name) + 1
    return None


def _plain(name: str) -> str:
    name = name.strip().lower()
    return _ALIASES.get(name, name)
