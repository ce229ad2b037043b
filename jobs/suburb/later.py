"""The same ground on a later date: some trees are gone, some are new, and clouds hide a part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scenesweep.jobs.suburb.palette import PAD_PX, SHRUB_KIND
from scenesweep.jobs.suburb.render import Layer, plants_with_room
from scenesweep.jobs.suburb.sketch import Floats, Sketch

CLOUD_DN = 246
QUALITY_PX = 10
"""Pixels of the image along a pixel of its quality raster."""
CLEAR, CLOUD, NO_DATA = 4, 9, 0
"""Values of the quality raster: vegetation, cloud of high probability and no data in the scene
classification of Sentinel-2."""

_CLOUDED_SHARE = 0.2
_CLOUD_CELLS = 9  # cells of noise along the image: the clouds are about as wide as one
_CLOUD_EDGE = 0.35  # deviations of the noise from a clear sky to a full cloud


def changed_plants(
    plants: Floats, open_ground: NDArray[np.bool_], *, share: float, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Remove a share of the trees and plant as many new ones where there is room.

    `plants` is (N, 4) as in `plants_with_room`. Returns the plants of the later date, the trees
    that are gone and those that are new. No new tree stands near one that is gone.
    """
    trees = np.flatnonzero(plants[:, 3] != SHRUB_KIND)
    count = round(share * len(trees))
    leaving = np.zeros(len(plants), np.bool_)
    leaving[rng.permutation(trees)[:count]] = True
    sketch = Sketch(rng)
    sketch.plants = [(x, y, d, int(kind)) for x, y, d, kind in plants.tolist()]
    old = set(sketch.plants)
    side = open_ground.shape[0]
    for position in rng.uniform(0, side, (20 * count, 2)):
        sketch.plant(position, sketch.species())
    roomy = plants_with_room(sketch, open_ground)
    is_new = np.array([(x, y, d, int(k)) not in old for x, y, d, k in roomy.tolist()], np.bool_)
    new = roomy[is_new][:count]
    return np.concatenate([plants[~leaving], new]), plants[leaving], new


def cloud_cover(side_px: int, *, rng: np.random.Generator) -> Layer:
    """Return (side, side) the opacity of clouds, which hide about a fifth of the ground."""
    noise = rng.standard_normal((_CLOUD_CELLS, _CLOUD_CELLS)).astype(np.float32)
    smooth = Image.fromarray(noise).resize((side_px, side_px), Image.Resampling.BICUBIC)
    thick = np.asarray(smooth)
    least = np.quantile(thick, 1 - _CLOUDED_SHARE)
    opacity: Layer = np.clip((thick - least) / _CLOUD_EDGE + 0.5, 0, 1).astype(np.float32)
    return opacity


def under_clouds(pixels: NDArray[np.uint8], opacity: Layer) -> NDArray[np.uint8]:
    """Return an image (4, H, W) with clouds over it."""
    hidden = pixels + opacity * (CLOUD_DN - pixels.astype(np.float32))
    return np.clip(np.rint(hidden), 1, 255).astype(np.uint8)


def quality_of(opacity: Layer, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the quality raster of an image: a value for each block of `QUALITY_PX` pixels."""
    rows, columns = (-(-side // QUALITY_PX) for side in opacity.shape)
    padding = [(0, n * QUALITY_PX - s) for n, s in zip((rows, columns), opacity.shape, strict=True)]
    shape = (rows, QUALITY_PX, columns, QUALITY_PX)
    cloud = np.pad(opacity, padding, mode="edge").reshape(shape).mean(axis=(1, 3))
    seen = np.pad(valid, padding, mode="edge").reshape(shape).any(axis=(1, 3))
    return np.where(seen, np.where(cloud >= 0.5, CLOUD, CLEAR), NO_DATA).astype(np.uint8)


def inside(plants: Floats, corner: tuple[int, int], side_px: int) -> Floats:
    """Return the plants (N, 4) that can be drawn into a part of the frame, moved to its corner."""
    moved = plants - [*corner, 0, 0]
    margin = PAD_PX / 2
    there = np.all((moved[:, :2] >= margin) & (moved[:, :2] < side_px - margin), axis=1)
    kept: Floats = moved[there]
    return kept
