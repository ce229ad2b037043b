"""Paint a synthetic suburb as a four-band aerial image, together with the positions of its trees.

The image replaces real imagery, which the package does not contain. Its colours and textures were
measured on 0.6 m USDA NAIP chips of Southern California (red, green, blue, near infrared). No pixel
of these chips is used.

There are four steps: plan polygons and plants, fill the polygons in tiles at twice the resolution,
draw the plants over them from the lowest to the tallest, and simulate the sensor. The modules, each
importing only earlier ones: `palette`, `sketch`, `blocks`, `layout`, `render`.

All positions are pixels of the painted frame, x to the right and y down. This frame is larger than
the image by `PAD_PX` on every side. Names of lengths in metres end in `_m`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.jobs.suburb.layout import plan_town
from scenesweep.jobs.suburb.palette import PAD_PX, PX_M, SHRUB_KIND
from scenesweep.jobs.suburb.render import (
    expose,
    fill_polygons,
    flight_strip,
    plants_with_room,
    stamp_plants,
)
from scenesweep.jobs.suburb.sketch import Floats, Sketch

__all__ = ["PX_M", "Suburb", "paint_suburb"]


@dataclass(frozen=True, slots=True)
class Suburb:
    """A painted scene and its true trees.

    Attributes:
        pixels: (4, size, size), red, green, blue, near infrared; 0 in all bands is nodata.
        trees: (N, 3), x and y of the crown's centre in pixels (pixel edges are integers, so a
            pixel's centre is +0.5) and the crown's diameter in metres.
    """

    pixels: NDArray[np.uint8]
    trees: Floats


def paint_suburb(size_px: int = 6144, *, seed: int = 7) -> Suburb:
    """Paint a suburb of size_px x size_px pixels at 0.6 m. Equal arguments give equal pixels.

    Args:
        size_px: Width and height of the image, at least 256.
        seed: Seed of all random numbers.

    Returns:
        The four-band image, with a slanted nodata border, and its trees.
    """
    if size_px < 256:
        raise ValueError(f"size_px: expected at least 256, got {size_px}")
    rng = np.random.default_rng(seed)
    sketch = Sketch(rng)
    side_px = size_px + 2 * PAD_PX
    plan_town(sketch, side_px)
    canvas, light, open_ground = fill_polygons(sketch, side_px)
    plants = plants_with_room(sketch, open_ground)
    stamp_plants(canvas, light, plants, rng=rng)
    inner = slice(PAD_PX, PAD_PX + size_px)
    pixels = expose(canvas[:, inner, inner], light[inner, inner], rng=rng)
    valid = flight_strip(size_px)
    pixels[:, ~valid] = 0
    trees = plants[plants[:, 3] != SHRUB_KIND, :3] - [PAD_PX, PAD_PX, 0]
    inside = np.all((trees[:, :2] >= 0) & (trees[:, :2] < size_px), axis=1)
    trees = trees[inside]
    columns, rows = trees[:, :2].astype(int).T
    trees = trees[valid[rows, columns]]
    return Suburb(pixels, trees[np.lexsort((trees[:, 0], trees[:, 1]))])
