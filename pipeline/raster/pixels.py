"""Open a scene for reading, whatever it is made of: one raster, stacked bands, or a mosaic.

GDAL's VRT would do it too, but opens its sources in any format: docs/decisions/0004.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio import windows
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.warp import reproject

from scenesweep.pipeline.raster.blocks import written_blocks
from scenesweep.pipeline.raster.ground import EarthPixels, WrittenPixels, sample_axes
from scenesweep.pipeline.raster.opening import open_raster, raster_errors
from scenesweep.pipeline.scene import Part, Scene
from scenesweep.pipeline.storage.network import is_remote, without_secrets

_REACH_PX = 2  # pixels that bilinear weights may touch beyond a window
_KEPT_OPEN = 64  # files; of scenes of more, each is opened when it is read


class Pixels(Protocol):
    """What is read from. A rasterio dataset is one.

    `read` returns (bands, H, W) of 1-based `indexes`, and `dataset_mask` (H, W), above 0 where
    pixels are valid: of a window, or of the whole scene decimated to `out_shape`.
    """

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    def read(
        self,
        indexes: list[int],
        *,
        window: windows.Window | None = None,
        out_shape: tuple[int, ...] | None = None,
        resampling: Resampling = Resampling.nearest,
    ) -> NDArray[np.generic]: ...

    def dataset_mask(
        self, *, window: windows.Window | None = None, out_shape: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]: ...


@contextmanager
def open_scene(scene: Scene, *, keep: bool = False) -> Iterator[Pixels]:
    """Open a scene for reading; one file on disk stays open for who reads on, if told to `keep` it.

    Raises:
        UnreadableScene: naming the file that cannot be opened, or read inside the block.
    """
    with _opened(scene, keep) as pixels:
        if scene.off_earth and scene.crs and scene.transform:
            yield EarthPixels(pixels, scene.crs, scene.transform)
        else:
            yield pixels


@contextmanager
def _opened(scene: Scene, keep: bool) -> Iterator[Pixels]:
    """Open the files of a scene, wherever they lie on the globe."""
    if len(scene.parts) == 1:
        href = scene.parts[0].href
        version = scene.fingerprint if keep and not is_remote(href) else ""
        with open_raster(href, scene.drivers, keep=version) as dataset:
            yield _ground(scene.parts[0], dataset)
        return
    with ExitStack() as opened:
        # Files on disk are opened where GDAL has no network: not beside those that need it.
        alike = len({is_remote(part.href) for part in scene.parts}) == 1
        kept = opened if alike and len(scene.parts) <= _KEPT_OPEN else None
        files = [_File(part, scene.drivers, kept) for part in scene.parts]
        yield _Mosaic(scene, files) if scene.join == "mosaic" else _Stack(scene, files)


def _ground(part: Part, dataset: DatasetReader) -> Pixels:
    """Return what is read of a file: of a sparse one, unwritten blocks are not valid."""
    written = written_blocks(part.href, dataset) if part.sparse else None
    pixels: Pixels = dataset if written is None else WrittenPixels(dataset, written)
    return pixels


def resample(
    values: NDArray[np.generic],
    valid: NDArray[np.bool_],
    *,
    to_source: Affine,
    shape: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Resample (bands, H, W) to `shape`: averages when it gets coarser, else bilinear.

    `to_source` maps pixel edges of the result to those of the source. Pixels are weighted by
    the validity of those under them, and are valid when at least half of it is.
    """
    weight = valid.astype(np.float32)
    filled = np.where(valid, np.nan_to_num(values.astype(np.float32)), 0)
    layers = np.concatenate([filled * weight, weight[None]])
    resampled = np.zeros((len(layers), *shape), np.float32)
    # Both arrays are placed in source pixels, so no geography and no CRS enters here.
    reproject(
        layers,
        resampled,
        src_transform=Affine.identity(),
        dst_transform=to_source,
        src_crs="EPSG:3857",
        dst_crs="EPSG:3857",
        resampling=(
            Resampling.average if to_source.a >= 1 and to_source.e >= 1 else Resampling.bilinear
        ),
    )
    share = resampled[-1]
    return resampled[:-1] / np.maximum(share, 1e-6), share >= 0.5


class _File:
    """One file of a scene, opened when it is first needed; its errors name it."""

    def __init__(self, part: Part, drivers: tuple[str, ...], kept: ExitStack | None) -> None:
        self.part = part
        self._drivers, self._kept = drivers, kept
        self._dataset: Any = None

    def read(self, bands: list[int], **what: Any) -> NDArray[np.generic]:
        return self._call(lambda dataset: dataset.read(bands, **what))

    def valid(self, **what: Any) -> NDArray[np.bool_]:
        return self._call(lambda dataset: dataset.dataset_mask(**what)) > 0

    def _call(self, read: Callable[[Any], Any]) -> Any:
        # Errors are mapped here: the files' own contexts are left all together, in any order.
        with raster_errors(without_secrets(self.part.href), self._drivers):
            if self._kept is None:
                with open_raster(self.part.href, self._drivers) as dataset:
                    return read(_ground(self.part, dataset))
            if self._dataset is None:
                opening = open_raster(self.part.href, self._drivers)
                self._dataset = _ground(self.part, self._kept.enter_context(opening))
            return read(self._dataset)


class _Stack:
    """Files whose bands follow one another, on the grid of the finest."""

    def __init__(self, scene: Scene, files: Sequence[_File]) -> None:
        self.width, self.height = scene.width, scene.height
        self._dtype = np.dtype(scene.dtype)
        self._files = files
        self._bands = [(f, band) for f in files for band in range(1, f.part.bands + 1)]

    def read(
        self,
        indexes: list[int],
        *,
        window: windows.Window | None = None,
        out_shape: tuple[int, ...] | None = None,
        resampling: Resampling = Resampling.nearest,
    ) -> NDArray[np.generic]:
        wanted = [self._bands[index - 1] for index in indexes]
        bands: dict[tuple[int, int], NDArray[np.generic]] = {}
        for file in dict.fromkeys(file for file, _ in wanted):
            of_file = sorted({band for one, band in wanted if one is file})
            if out_shape is None:
                values = self._native(file, of_file, window)
            else:
                shape = (len(of_file), *out_shape[-2:])
                place = _in_file(file.part, window)
                values = file.read(of_file, window=place, out_shape=shape, resampling=resampling)
            bands |= {(id(file), b): v for b, v in zip(of_file, values, strict=True)}
        return np.stack([bands[id(file), band] for file, band in wanted])

    def dataset_mask(
        self, *, window: windows.Window | None = None, out_shape: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        """As for one file of several bands: valid where some band is."""
        masks = [self._valid(file, window, out_shape) for file in self._files]
        return np.logical_or.reduce(masks).astype(np.uint8) * np.uint8(255)

    def _native(
        self, file: _File, bands: list[int], window: windows.Window | None
    ) -> NDArray[np.generic]:
        assert window is not None
        if self._is_on_grid(file.part):
            return file.read(bands, window=window)
        values, _ = _finer(file, bands, window)
        if self._dtype.kind in "ui":
            values = np.rint(values)
        return values.astype(self._dtype)

    def _valid(
        self, file: _File, window: windows.Window | None, out_shape: tuple[int, int] | None
    ) -> NDArray[np.bool_]:
        if out_shape is not None:
            return file.valid(window=_in_file(file.part, window), out_shape=out_shape)
        assert window is not None
        if self._is_on_grid(file.part):
            return file.valid(window=window)
        return _finer(file, [], window)[1]

    def _is_on_grid(self, part: Part) -> bool:
        return (part.width, part.height) == (self.width, self.height)


def _in_file(part: Part, window: windows.Window | None) -> windows.Window | None:
    """Return where a window of the scene lies in a file of the same ground."""
    if window is None:
        return None
    (sx, sy), (x, y) = part.step, (window.col_off - part.col_off, window.row_off - part.row_off)
    left, top = max(0, x / sx), max(0, y / sy)
    right = min(part.width, (x + window.width) / sx)
    return windows.Window(left, top, right - left, min(part.height, (y + window.height) / sy) - top)


def _finer(
    file: _File, bands: list[int], window: windows.Window
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read a window of the scene from a coarser file, bilinear between its valid pixels."""
    part, (sx, sy) = file.part, file.part.step
    left, top = (window.col_off - part.col_off) / sx, (window.row_off - part.row_off) / sy
    right, bottom = left + window.width / sx, top + window.height / sy
    x0, x1 = _around(left, right, part.width)
    y0, y1 = _around(top, bottom, part.height)
    around = windows.Window(x0, y0, x1 - x0, y1 - y0)
    valid = file.valid(window=around)
    values = file.read(bands, window=around) if bands else np.zeros((0, *valid.shape), np.float32)
    to_source = Affine.translation(left - x0, top - y0) @ Affine.scale(1 / sx, 1 / sy)
    return resample(values, valid, to_source=to_source, shape=(window.height, window.width))


def _around(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the whole pixels under a span and a few beside it, at least one of `size`."""
    first = min(max(0, math.floor(low) - _REACH_PX), size - 1)
    return first, max(first + 1, min(size, math.ceil(high) + _REACH_PX))


class _Mosaic:
    """Files side by side on one grid; where they overlap the first that is valid counts."""

    def __init__(self, scene: Scene, files: Sequence[_File]) -> None:
        self.width, self.height = scene.width, scene.height
        self._empty = scene.nodata or 0
        self._dtype = np.dtype(scene.dtype)
        self._files = files

    def read(
        self,
        indexes: list[int],
        *,
        window: windows.Window | None = None,
        out_shape: tuple[int, ...] | None = None,
        resampling: Resampling = Resampling.nearest,
    ) -> NDArray[np.generic]:
        columns, rows = sample_axes((self.width, self.height), window, out_shape)
        values = np.full((len(indexes), len(rows), len(columns)), self._empty, self._dtype)
        known = np.zeros(values.shape[1:], np.bool_)
        for file in self._files:
            place = _Place.of(file.part, columns, rows)
            if place is not None and not known[place.inside].all():
                valid = file.valid(**place.asked) & ~known[place.inside]
                asked = place.asked_of(len(indexes))
                piece = file.read(indexes, resampling=resampling, **asked)
                np.copyto(values[:, *place.inside], piece, where=valid)
                known[place.inside] |= valid
        return values

    def dataset_mask(
        self, *, window: windows.Window | None = None, out_shape: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        columns, rows = sample_axes((self.width, self.height), window, out_shape)
        known = np.zeros((len(rows), len(columns)), np.bool_)
        for file in self._files:
            place = _Place.of(file.part, columns, rows)
            if place is not None and not known[place.inside].all():
                known[place.inside] |= file.valid(**place.asked)
        return known.astype(np.uint8) * np.uint8(255)


class _Place:
    """Where a file meets the samples that are asked for: `inside` of these, `asked` of the file."""

    def __init__(self, inside: tuple[slice, slice], window: windows.Window) -> None:
        self.inside = inside
        self._window = window

    @classmethod
    def of(cls, part: Part, columns: NDArray[np.float64], rows: NDArray[np.float64]) -> Any:
        """Return the place of a file, None where no sample is on it."""
        x, left, width = _span(columns - part.col_off, part.width)
        y, top, height = _span(rows - part.row_off, part.height)
        if x.start >= x.stop or y.start >= y.stop:
            return None
        return cls((y, x), windows.Window(left, top, width, height))

    @property
    def asked(self) -> dict[str, Any]:
        (y, x), window = self.inside, self._window
        return {"window": window, "out_shape": (y.stop - y.start, x.stop - x.start)}

    def asked_of(self, bands: int) -> dict[str, Any]:
        asked = self.asked
        return asked | {"out_shape": (bands, *asked["out_shape"])}


def _span(samples: NDArray[np.float64], size: int) -> tuple[slice, float, float]:
    """Return which samples lie in 0..size, and start and length of the pixels they stand for."""
    start, stop = np.searchsorted(samples, [0, size])
    step = samples[1] - samples[0] if len(samples) > 1 else 1.0
    if start >= stop:
        return slice(0, 0), 0, 0
    low = max(0.0, float(samples[start] - step / 2))
    high = min(float(size), float(samples[stop - 1] + step / 2))
    return slice(int(start), int(stop)), low, high - low
