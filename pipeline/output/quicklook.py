"""Picture a scene, small: as it is, without detections, which change with thresholds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio import windows
from rasterio.enums import Resampling

from pipeline.raster.gdal import DRIVERS
from pipeline.raster.pixels import Pixels, open_scene
from pipeline.read import Source, scene_stretch, to_uint8
from pipeline.scene import Scene

_STRIP_PX = 4_000_000


def draw_quicklook(source: Source, path: Path, *, longest_px: int) -> None:
    """Write a PNG of at most `longest_px` on its longer side; pixels not valid are transparent."""
    size = shrunk(source.scene, longest_px)
    picture = scene_picture(source.scene, size, drivers=source.drivers)
    Image.fromarray(picture).save(path, format="PNG")


def shrunk(scene: Scene, longest_px: int) -> tuple[int, int]:
    """Return width and height of a scene made to fit, never enlarged."""
    shrink = max(1.0, max(scene.width, scene.height) / longest_px)
    return max(1, math.floor(scene.width / shrink)), max(1, math.floor(scene.height / shrink))


def scene_picture(
    scene: Scene, size: tuple[int, int], *, drivers: tuple[str, ...] = DRIVERS
) -> NDArray[np.uint8]:
    """Read (height, width, 3) uint8 of a whole scene; a scene with a mask has it as a fourth.

    Pixels are averaged, from overviews where there are some. It is read strip by strip, so
    that a source of float64 costs no more memory than one of uint8.
    """
    bands = display_bands(scene)
    stretch = scene_stretch(scene, bands, source_range=None, percentiles=(2, 98), drivers=drivers)
    width, height = size
    picture = np.empty((height, width, 4 if scene.masked else 3), np.uint8)
    step = max(1, _STRIP_PX // width)
    with open_scene(scene, drivers) as dataset:
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            place = _strip(scene, rows, height)
            shape = rows.stop - top, width
            pixels = _averaged(dataset, bands, place, shape)
            picture[rows, :, :3] = to_uint8(pixels, stretch).transpose(1, 2, 0)
            if scene.masked:
                picture[rows, :, 3] = dataset.dataset_mask(window=place, out_shape=shape)
    return picture


def display_bands(scene: Scene) -> tuple[int, int, int]:
    """Return the bands to show as red, green and blue: by name, else the first ones."""
    found = []
    for color in ("red", "green", "blue"):
        match = [i for i, b in enumerate(scene.bands, 1) if color in (b.description, b.color)]
        found.append(match[0] if match else 0)
    if all(found):
        return found[0], found[1], found[2]
    return (1, 2, 3) if len(scene.bands) >= 3 else (1, 1, 1)


def _strip(scene: Scene, rows: slice, height: int) -> windows.Window:
    """Return the scene's pixels under some rows of a picture that is `height` high."""
    first, last = (row * scene.height / height for row in (rows.start, rows.stop))
    return windows.Window(0, first, scene.width, last - first)


def _averaged(
    dataset: Pixels, bands: tuple[int, ...], place: windows.Window, shape: tuple[int, int]
) -> NDArray[np.generic]:
    return dataset.read(
        list(bands), window=place, out_shape=(len(bands), *shape), resampling=Resampling.average
    )
