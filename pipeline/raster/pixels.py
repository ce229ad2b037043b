"""Open a scene for reading: one raster, files of bands, or a mosaic.

A GDAL VRT could do the same, but it opens its sources in any format: docs/decisions/0004.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from rasterio import windows
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from scenesweep.pipeline.raster.blocks import written_blocks
from scenesweep.pipeline.raster.ground import EarthPixels, WrittenPixels, sample_axes
from scenesweep.pipeline.raster.opening import open_raster, raster_errors
from scenesweep.pipeline.raster.resample import Alignment, precision_for, resample
from scenesweep.pipeline.raster.survey import Survey, SurveyedFile
from scenesweep.pipeline.scene import Part, Scene
from scenesweep.pipeline.storage.network import is_remote, without_secrets

T = TypeVar("T")

_KEPT_OPEN = 64  # a scene of more files opens each file for each read


class Pixels(Protocol):
    """The part of a rasterio dataset that the pipeline uses; every scene is read through it.

    `read` returns (bands, H, W) of 1-based `indexes`. `dataset_mask` returns (H, W), above 0 where
    pixels are valid. Both read a window, or the whole scene, decimated to `out_shape` if given.
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
def open_scene(
    scene: Scene, *, keep: bool = False, survey: Survey | None = None
) -> Iterator[Pixels]:
    """Open a scene for reading. With `keep`, a file stays open for the next reader.

    With a survey, the mask is that of `pipeline.raster.survey`: it costs at most what the survey
    allows, and may claim too many valid pixels.

    Raises:
        UnreadableScene: naming the file that cannot be opened, or cannot be read in the block.
    """
    with _opened(scene, keep, survey) as pixels:
        if scene.off_earth and scene.crs and scene.transform:
            yield EarthPixels(pixels, scene.crs, scene.transform)
        else:
            yield pixels


@contextmanager
def _opened(scene: Scene, keep: bool, survey: Survey | None) -> Iterator[Pixels]:
    """Open the files of a scene, without the mask for pixels off the Earth."""
    version = scene.fingerprint if keep else ""
    if len(scene.parts) == 1:
        href = scene.parts[0].href
        with open_raster(href, scene.drivers, keep=version) as dataset:
            yield _ground(scene.parts[0], dataset, survey)
        return
    with ExitStack() as opened:
        # GDAL options hold until a file is closed: a file on disk, which must not reach the
        # network, cannot stay open together with a remote file.
        one_kind = len({is_remote(part.href) for part in scene.parts}) == 1
        kept = opened if one_kind and len(scene.parts) <= _KEPT_OPEN else None
        files = [_File(part, scene.drivers, version, kept, survey) for part in scene.parts]
        yield _Mosaic(scene, files) if scene.join == "mosaic" else _Stack(scene, files)


def _ground(part: Part, dataset: DatasetReader, survey: Survey | None) -> Pixels:
    """Return the pixels of a file; in a sparse file, blocks that were never written are invalid."""
    written = written_blocks(part.href, dataset) if part.sparse else None
    pixels: Pixels = dataset if written is None else WrittenPixels(dataset, written)
    return pixels if survey is None else SurveyedFile(pixels, dataset, part.href, survey)


class _File:
    """A file of a scene. It is opened on the first read, and its errors name it."""

    def __init__(
        self,
        part: Part,
        drivers: tuple[str, ...],
        version: str,
        kept: ExitStack | None,
        survey: Survey | None,
    ) -> None:
        self.part = part
        self._open = partial(open_raster, part.href, drivers, keep=version)
        self._drivers, self._kept, self._survey = drivers, kept, survey
        self._dataset: Pixels | None = None

    def read(
        self,
        bands: list[int],
        *,
        window: windows.Window | None,
        out_shape: tuple[int, ...] | None = None,
        resampling: Resampling = Resampling.nearest,
    ) -> NDArray[np.generic]:
        return self._call(
            lambda dataset: dataset.read(
                bands, window=window, out_shape=out_shape, resampling=resampling
            )
        )

    def valid(
        self, *, window: windows.Window | None, out_shape: tuple[int, int] | None = None
    ) -> NDArray[np.bool_]:
        return self._call(
            lambda dataset: dataset.dataset_mask(window=window, out_shape=out_shape) > 0
        )

    def _call(self, read: Callable[[Pixels], T]) -> T:
        # The exit stack closes all files together, so their own contexts cannot tell whose error
        # it is: this maps the errors of one file.
        with raster_errors(without_secrets(self.part.href), self._drivers):
            if self._kept is None:
                with self._open() as dataset:
                    return read(_ground(self.part, dataset, self._survey))
            if self._dataset is None:
                dataset = self._kept.enter_context(self._open())
                self._dataset = _ground(self.part, dataset, self._survey)
            return read(self._dataset)


class _Stack:
    """Files whose bands follow one another, on the grid of the finest file."""

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
        requested = [self._bands[index - 1] for index in indexes]
        bands: dict[tuple[_File, int], NDArray[np.generic]] = {}
        for file in dict.fromkeys(file for file, _ in requested):
            of_file = sorted({band for owner, band in requested if owner is file})
            if out_shape is None:
                values = self._native(file, of_file, window)
            else:
                shape = (len(of_file), *out_shape[-2:])
                part = _in_file(file.part, window)
                values = file.read(of_file, window=part, out_shape=shape, resampling=resampling)
            bands |= {(file, b): v for b, v in zip(of_file, values, strict=True)}
        return np.stack([bands[key] for key in requested])

    def dataset_mask(
        self, *, window: windows.Window | None = None, out_shape: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        """Return where some file is valid, as GDAL does for the bands of one file."""
        masks = [self._valid(file, window, out_shape) for file in self._files]
        return np.logical_or.reduce(masks).astype(np.uint8) * np.uint8(255)

    def _native(
        self, file: _File, bands: list[int], window: windows.Window | None
    ) -> NDArray[np.generic]:
        assert window is not None
        if self._is_on_grid(file.part):
            return file.read(bands, window=window)
        values, _ = _finer(file, bands, window, self._dtype)
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
        valid = _finer(file, [], window, self._dtype)[1]
        return valid if valid is not None else np.ones((window.height, window.width), np.bool_)

    def _is_on_grid(self, part: Part) -> bool:
        return (part.width, part.height) == (self.width, self.height)


def _in_file(part: Part, window: windows.Window | None) -> windows.Window | None:
    """Return a window of the scene in pixels of a file that covers the same ground."""
    if window is None:
        return None
    (sx, sy), (x, y) = part.step, (window.col_off - part.col_off, window.row_off - part.row_off)
    left, top = max(0, x / sx), max(0, y / sy)
    right = min(part.width, (x + window.width) / sx)
    return windows.Window(left, top, right - left, min(part.height, (y + window.height) / sy) - top)


def _finer(
    file: _File, bands: list[int], window: windows.Window, dtype: np.dtype[np.generic]
) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.bool_] | None]:
    """Read a window of the scene from a coarser file, interpolated between its valid pixels."""
    part, (sx, sy) = file.part, file.part.step
    (y, x), precision = window.toslices(), precision_for(dtype)
    across = Alignment(part.width, 1 / sx, -part.col_off / sx)
    down = Alignment(part.height, 1 / sy, -part.row_off / sy)
    columns = across.taps(x.start, x.stop, bits=precision.column_bits)
    rows = down.taps(y.start, y.stop, bits=precision.row_bits)
    (top, bottom), (left, right) = rows.span, columns.span
    around = windows.Window(left, top, right - left, bottom - top)
    valid = file.valid(window=around)
    values = file.read(bands, window=around) if bands else np.zeros((0, *valid.shape), dtype)
    return resample(values, valid, rows=rows.moved(top), columns=columns.moved(left))


class _Mosaic:
    """Files side by side on one grid; where they overlap, the first valid pixel counts."""

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
            overlap = _overlap(file.part, columns, rows)
            if overlap is None or known[overlap.samples].all():
                continue
            window, shape = overlap.window, (len(indexes), *overlap.shape)
            valid = file.valid(window=window, out_shape=overlap.shape) & ~known[overlap.samples]
            piece = file.read(indexes, window=window, out_shape=shape, resampling=resampling)
            np.copyto(values[:, *overlap.samples], piece, where=valid)
            known[overlap.samples] |= valid
        return values

    def dataset_mask(
        self, *, window: windows.Window | None = None, out_shape: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        columns, rows = sample_axes((self.width, self.height), window, out_shape)
        known = np.zeros((len(rows), len(columns)), np.bool_)
        for file in self._files:
            overlap = _overlap(file.part, columns, rows)
            if overlap is not None and not known[overlap.samples].all():
                valid = file.valid(window=overlap.window, out_shape=overlap.shape)
                known[overlap.samples] |= valid
        return known.astype(np.uint8) * np.uint8(255)


@dataclass(frozen=True, slots=True)
class _Overlap:
    """Where a file meets the requested samples of a mosaic.

    `samples` are slices of their rows and columns, and `window` is the same ground in pixels of
    the file.
    """

    samples: tuple[slice, slice]
    window: windows.Window

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of samples."""
        rows, columns = self.samples
        return rows.stop - rows.start, columns.stop - columns.start


def _overlap(
    part: Part, columns: NDArray[np.float64], rows: NDArray[np.float64]
) -> _Overlap | None:
    """Return where a file meets samples at these columns and rows; None if it has none of them."""
    x, left, width = _span(columns - part.col_off, part.width)
    y, top, height = _span(rows - part.row_off, part.height)
    if x.start >= x.stop or y.start >= y.stop:
        return None
    return _Overlap((y, x), windows.Window(left, top, width, height))


def _span(samples: NDArray[np.float64], size: int) -> tuple[slice, float, float]:
    """Return which samples lie in 0..size, and the start and length of the pixels under them."""
    start, stop = np.searchsorted(samples, [0, size])
    step = samples[1] - samples[0] if len(samples) > 1 else 1.0
    if start >= stop:
        return slice(0, 0), 0, 0
    low = max(0.0, float(samples[start] - step / 2))
    high = min(float(size), float(samples[stop - 1] + step / 2))
    return slice(int(start), int(stop)), low, high - low
