"""Paint a synthetic suburb as a four-band aerial image, together with the positions of its trees.

The image replaces real imagery, which the package does not contain. Its colours and textures were
measured on 0.6 m USDA NAIP chips of Southern California (red, green, blue, near infrared). No pixel
of these chips is used.

There are four steps: plan polygons and plants, fill the polygons in tiles at twice the resolution,
draw the plants over them from the lowest to the tallest, and simulate the sensor. The modules, each
importing only earlier ones: `palette`, `sketch`, `blocks`, `layout`, `render`, `later`.

All positions are pixels of the painted frame, x to the right and y down. This frame is larger than
the image by `PAD_PX` on every side. Names of lengths in metres end in `_m`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.jobs.suburb.later import (
    changed_plants,
    cloud_cover,
    inside,
    quality_of,
    under_clouds,
)
from scenesweep.jobs.suburb.layout import plan_town
from scenesweep.jobs.suburb.palette import PAD_PX, PX_M, SHRUB_KIND
from scenesweep.jobs.suburb.render import (
    Layer,
    expose,
    fill_polygons,
    flight_strip,
    plants_with_room,
    stamp_plants,
)
from scenesweep.jobs.suburb.sketch import Floats, Sketch

__all__ = ["PX_M", "LaterSuburb", "Suburb", "paint_suburb", "paint_two_dates"]

_CHANGED_SHARE = 0.03
_HIDING = 0.2  # opacity of a cloud through which a crown is no longer clear


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


@dataclass(frozen=True, slots=True)
class LaterSuburb:
    """A part of a painted scene on a later date.

    Attributes:
        pixels: (4, side, side), as in `Suburb`.
        trees: (N, 3), the true trees that no cloud hides, in pixels of this image.
        gone: (N, 3), the trees of the first date that are gone, where no cloud hides the ground.
        new: (N, 3), the trees among `trees` that are new.
        quality: Values of `jobs.suburb.later` for blocks of `QUALITY_PX` pixels.
        corner: Column, and also row, of its first pixel in the scene of the first date.
    """

    pixels: NDArray[np.uint8]
    trees: Floats
    gone: Floats
    new: Floats
    quality: NDArray[np.uint8]
    corner: int


@dataclass(frozen=True, slots=True)
class _Town:
    rng: np.random.Generator
    canvas: Layer
    light: Layer
    open_ground: NDArray[np.bool_]
    plants: Floats


def paint_suburb(size_px: int = 6144, *, seed: int = 7) -> Suburb:
    """Paint a suburb of size_px x size_px pixels at 0.6 m. Equal arguments give equal pixels.

    Args:
        size_px: Width and height of the image, at least 256.
        seed: Seed of all random numbers.

    Returns:
        The four-band image, with a slanted nodata border, and its trees.
    """
    town = _planned(size_px, seed)
    return _painted(town)


def paint_two_dates(size_px: int = 6144, *, seed: int = 7) -> tuple[Suburb, LaterSuburb]:
    """Paint a suburb as `paint_suburb` does, and its middle third on a later date.

    On the later date three of a hundred trees are gone, as many are new, and clouds hide a fifth
    of the ground. Equal arguments give equal pixels.
    """
    town = _planned(size_px, seed)
    side_px = min(size_px, max(256, size_px // 3))
    corner = (size_px - side_px) // 2
    part = slice(corner, corner + side_px + 2 * PAD_PX)
    canvas, light = town.canvas[:, part, part].copy(), town.light[part, part].copy()
    first = _painted(town)
    rng = np.random.default_rng([seed, 1])
    plants, gone, new = changed_plants(
        inside(town.plants, (corner, corner), side_px + 2 * PAD_PX),
        town.open_ground[part, part],
        share=_CHANGED_SHARE,
        rng=rng,
    )
    stamp_plants(canvas, light, plants, rng=rng)
    inner = slice(PAD_PX, PAD_PX + side_px)
    pixels = expose(canvas[:, inner, inner], light[inner, inner], rng=rng)
    opacity = cloud_cover(side_px, rng=rng)
    strip = slice(corner, corner + side_px)
    valid = flight_strip(size_px)[strip, strip]
    pixels = under_clouds(pixels, opacity)
    pixels[:, ~valid] = 0
    seen = valid & (opacity < _HIDING)
    trees, gone, new = (_true_trees(some, seen) for some in (plants, gone, new))
    return first, LaterSuburb(pixels, trees, gone, new, quality_of(opacity, valid), corner)


def _planned(size_px: int, seed: int) -> _Town:
    """Plan the town, fill its polygons and decide where plants stand."""
    if size_px < 256:
        raise ValueError(f"size_px: expected at least 256, got {size_px}")
    rng = np.random.default_rng(seed)
    sketch = Sketch(rng)
    side_px = size_px + 2 * PAD_PX
    plan_town(sketch, side_px)
    canvas, light, open_ground = fill_polygons(sketch, side_px)
    return _Town(rng, canvas, light, open_ground, plants_with_room(sketch, open_ground))


def _painted(town: _Town) -> Suburb:
    """Draw the plants of a town, and simulate the sensor. It changes canvas and light."""
    rng, size_px = town.rng, len(town.light) - 2 * PAD_PX
    stamp_plants(town.canvas, town.light, town.plants, rng=rng)
    inner = slice(PAD_PX, PAD_PX + size_px)
    pixels = expose(town.canvas[:, inner, inner], town.light[inner, inner], rng=rng)
    valid = flight_strip(size_px)
    pixels[:, ~valid] = 0
    return Suburb(pixels, _true_trees(town.plants, valid))


def _true_trees(plants: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Return x, y and diameter (N, 3) of the trees among plants that stand on pixels seen."""
    size_px = len(seen)
    trees = plants[plants[:, 3] != SHRUB_KIND, :3] - [PAD_PX, PAD_PX, 0]
    inside_image = np.all((trees[:, :2] >= 0) & (trees[:, :2] < size_px), axis=1)
    trees = trees[inside_image]
    columns, rows = trees[:, :2].astype(int).T
    trees = trees[seen[rows, columns]]
    ordered: Floats = trees[np.lexsort((trees[:, 0], trees[:, 1]))]
    return ordered
