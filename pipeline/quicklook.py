"""Draw a scene, small, with its detections."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.detect import Candidates
from pipeline.raster import open_raster
from pipeline.read import Source, scene_stretch, to_uint8
from pipeline.scene import Scene

_COLORS = ("#ffd400", "#00e5ff", "#ff3df2", "#7cff3d", "#ff7a1a", "#ffffff")
_SMALLEST_BOX_PX = 3


def draw_quicklook(source: Source, detections: Candidates, path: Path, *, longest_px: int) -> None:
    """Write a PNG of at most `longest_px` on its longer side, boxes coloured by class."""
    scene = source.scene
    shrink = max(1.0, max(scene.width, scene.height) / longest_px)
    size = max(1, math.floor(scene.width / shrink)), max(1, math.floor(scene.height / shrink))
    picture = Image.fromarray(_picture(source, size), "RGB")
    draw = ImageDraw.Draw(picture)
    xyxy = detections.xyxy * np.array([size[0] / scene.width, size[1] / scene.height] * 2)
    for (x0, y0, x1, y1), label in zip(xyxy.tolist(), detections.label.tolist(), strict=True):
        color = _COLORS[label % len(_COLORS)]
        if x1 - x0 < _SMALLEST_BOX_PX:  # an outline would be a blot
            draw.point(((x0 + x1) / 2, (y0 + y1) / 2), fill=color)
        else:
            draw.rectangle((x0, y0, x1, y1), outline=color)
    picture.save(path, format="PNG")


def _picture(source: Source, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read (height, width, 3) uint8 of a whole scene, decimated."""
    scene = source.scene
    bands = display_bands(scene)
    stretch = scene_stretch(
        scene, bands, source_range=None, percentiles=(2, 98), drivers=source.drivers
    )
    with open_raster(scene.href, source.drivers) as dataset:
        pixels = dataset.read(list(bands), out_shape=(len(bands), size[1], size[0]))
    return np.ascontiguousarray(to_uint8(pixels, stretch).transpose(1, 2, 0))


def display_bands(scene: Scene) -> tuple[int, int, int]:
    """Return the bands to show as red, green and blue: by name, else the first ones."""
    found = []
    for color in ("red", "green", "blue"):
        match = [i for i, b in enumerate(scene.bands, 1) if color in (b.description, b.color)]
        found.append(match[0] if match else 0)
    if all(found):
        return found[0], found[1], found[2]
    return (1, 2, 3) if len(scene.bands) >= 3 else (1, 1, 1)
