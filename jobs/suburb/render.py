"""Turn a plan into pixels: fill its polygons, draw its plants, simulate the sensor."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import cKDTree

from scenesweep.jobs.suburb.palette import (
    ASPHALT,
    BLUR_PX,
    BRIGHTNESS_DRIFT,
    CROWN_MAX_M,
    CROWN_NIR_FILL,
    CROWN_RELIEF,
    CROWN_RIM,
    CROWN_SIDE,
    HAZE_DN,
    HEIGHT_MAX_M,
    MOTTLE_LEANS,
    NOISE_DN,
    PAD_PX,
    PX_M,
    SHADE,
    SHADE_EXPONENTS,
    SHADOW_DIRECTION,
    SHADOW_LENGTH_M,
    SHRUB,
    SHRUB_KIND,
    SPACING_MIN_M,
    SPACING_PER_CROWN,
    SPECIES,
    Species,
)
from scenesweep.jobs.suburb.sketch import CASTER, GROUND, Floats, Sketch

Layer = NDArray[np.float32]

TILE_PX = 512
SUPERSAMPLING = 2
FOLIAGE_PX = 512  # side of the noise tile from which the foliage of crowns is taken


def fill_polygons(sketch: Sketch, side_px: int) -> tuple[Layer, Layer, NDArray[np.bool_]]:
    """Fill the plan tile by tile.

    Returns:
        (4, side, side) sunlit DNs, (side, side) light with the shadows of buildings, and (side,
        side) bool: whether a plant can stand there.
    """
    paints = (ASPHALT, *sketch.paints)
    table = np.array([(*p.colour, p.grain, p.mottle, p.plantable) for p in paints], np.float32)
    order = np.argsort(sketch.layers, kind="stable")
    starts = np.cumsum([0, *(len(polygon) for polygon in sketch.corners[:-1])])
    corners = np.concatenate(sketch.corners)
    low, high = (bound.reduceat(corners, starts)[order] for bound in (np.minimum, np.maximum))
    canvas = np.empty((4, side_px, side_px), np.float32)
    light = np.empty((side_px, side_px), np.float32)
    open_ground = np.empty((side_px, side_px), np.bool_)
    noises = _noise(sketch.rng, (0.7, 2.5, 9.0), 701), _noise(sketch.rng, (1.2, 4, 16), 809)
    for y0, x0 in product(range(0, side_px, TILE_PX), repeat=2):
        box = (slice(y0, y0 + TILE_PX), slice(x0, x0 + TILE_PX))
        rows, columns = light[box].shape
        corner = np.array([x0, y0], float)
        hit = np.all((high > corner) & (low < corner + TILE_PX), axis=1)
        ids, shade = _draw(sketch, order[hit].tolist(), corner)
        values = _halve(table[ids[: 2 * rows, : 2 * columns]])
        light[box] = 1 - (1 - SHADE) * _halve(shade[: 2 * rows, : 2 * columns, None])[..., 0]
        open_ground[box] = values[..., 6] > 0.9
        grain, mottle = (_window(noise, (y0, x0), (rows, columns)) for noise in noises)
        grain, mottle = 1 + values[..., 4] * grain, values[..., 5] * np.clip(mottle, -1.8, 1.8)
        for band, lean in enumerate(MOTTLE_LEANS):
            canvas[band][box] = values[..., band] * grain * (1 + lean * mottle)
    return canvas, light, open_ground


def plants_with_room(sketch: Sketch, open_ground: NDArray[np.bool_]) -> Floats:
    """Return (N, 4) plants (x, y, diameter in metres, kind) on open ground, not too close together.

    Of two plants that are too close, the one planned first stays, but a tree replaces a shrub.
    """
    plants = np.array(sketch.plants).reshape(-1, 4)
    plants = plants[np.argsort(plants[:, 3] == SHRUB_KIND, kind="stable")]
    side = open_ground.shape[0]
    inside = np.all((plants[:, :2] >= PAD_PX / 2) & (plants[:, :2] < side - PAD_PX / 2), axis=1)
    plants = plants[inside]
    columns, rows = plants[:, :2].astype(int).T
    plants = plants[open_ground[rows, columns]]
    farthest_m = max(SPACING_MIN_M, 2 * SPACING_PER_CROWN * CROWN_MAX_M)
    pairs = cKDTree(plants[:, :2]).query_pairs(farthest_m / PX_M, output_type="ndarray")
    apart_m = np.hypot(*(plants[pairs[:, 0], :2] - plants[pairs[:, 1], :2]).T) * PX_M
    need_m = SPACING_PER_CROWN * (plants[pairs[:, 0], 2] + plants[pairs[:, 1], 2])
    pairs = pairs[apart_m < np.maximum(SPACING_MIN_M, need_m)]
    keep = np.ones(len(plants), bool)
    for first, second in sorted(pairs.tolist()):
        if keep[first] and keep[second]:
            keep[second] = False
    return np.asarray(plants[keep])


def stamp_plants(canvas: Layer, light: Layer, plants: Floats, *, rng: np.random.Generator) -> None:
    """Draw crowns and their shadows into canvas and light, from the lowest plant to the tallest.

    A shadow also darkens the crowns drawn before it. Overlapping shadows are not darker than one.
    """
    kinds = (*SPECIES, SHRUB)
    lumps = _noise(rng, (1.0, 2.2), FOLIAGE_PX)
    relief = ndimage.shift(lumps, -1.4 * SHADOW_DIRECTION[::-1], order=1, mode="wrap") - lumps
    relief /= relief.std()
    heights_m = _heights_m(plants, rng)
    for index in np.argsort(heights_m, kind="stable"):
        x, y, diameter_m, kind = plants[index].tolist()
        species, reach = kinds[int(kind)], int(diameter_m / PX_M * 0.68) + 2
        x0, y0, width = int(x) - reach, int(y) - reach, 2 * reach + 1
        v, u = rng.integers(0, FOLIAGE_PX - width, 2)
        foliage = (lumps[v : v + width, u : u + width], relief[v : v + width, u : u + width])
        alpha, bright = _crown((x - x0, y - y0), diameter_m / 2 / PX_M, species, foliage)
        fall = SHADOW_DIRECTION * (SHADOW_LENGTH_M / PX_M * 0.65 * heights_m[index])
        sx, sy = np.rint(fall).astype(int).tolist()
        shaded = light[y0 + sy : y0 + sy + width, x0 + sx : x0 + sx + width]
        np.minimum(shaded, 1 - (1 - SHADE) * alpha, out=shaded)
        box = (slice(y0, y0 + width), slice(x0, x0 + width))
        light[box] += alpha * (bright - light[box])
        gains = np.exp(rng.normal(0, 0.10) + rng.normal(0, 0.04, 4)).tolist()
        for band in range(4):
            value = species.colour[band] * gains[band]
            crown = value * bright**-CROWN_NIR_FILL if band == 3 else value
            canvas[band][box] += alpha * (crown - canvas[band][box])


def expose(canvas: Layer, light: Layer, *, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply light, haze, blur, brightness drift and noise, and quantise; no pixel becomes 0."""
    side = light.shape[0]
    pixels = np.empty(canvas.shape, np.uint8)
    coarse = rng.standard_normal((6, 6)).astype(np.float32)
    drift = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    drift = 1 + BRIGHTNESS_DRIFT * drift
    for band in range(4):
        seen = light ** np.float32(SHADE_EXPONENTS[band])
        seen *= canvas[band]
        seen *= drift
        seen += np.float32(HAZE_DN[band])
        seen = ndimage.gaussian_filter(seen, BLUR_PX)
        seen += NOISE_DN * rng.standard_normal((side, side), dtype=np.float32)
        pixels[band] = np.clip(np.rint(seen), 1, 255).astype(np.uint8)
    return pixels


def flight_strip(side_px: int) -> NDArray[np.bool_]:
    """Return (side, side) bool: whether a pixel lies in the slanted quadrilateral with data."""
    corners = ((0.045, -0.01), (1.01, 0.03), (0.972, 1.01), (-0.01, 0.962))
    mask = Image.new("1", (side_px, side_px))
    ImageDraw.Draw(mask).polygon([(x * side_px, y * side_px) for x, y in corners], fill=1)
    return np.asarray(mask, np.bool_)


def _draw(sketch: Sketch, order: list[int], corner: Floats) -> tuple[NDArray[np.int32], Layer]:
    """Draw polygons into one supersampled tile: paint numbers (0 is the base) and shadow."""
    side = TILE_PX * SUPERSAMPLING
    paints, shadows = Image.new("I", (side, side)), Image.new("L", (side, side))
    on_paints, on_shadows = ImageDraw.Draw(paints), ImageDraw.Draw(shadows)
    for index in order:
        flat = ((sketch.corners[index] - corner) * SUPERSAMPLING - 0.5).ravel().tolist()
        layer = sketch.layers[index]
        if layer != CASTER:
            on_paints.polygon(flat, fill=index + 1)
        if layer != GROUND:
            on_shadows.polygon(flat, fill=1 if layer == CASTER else 0)
    return np.asarray(paints, np.int32), np.asarray(shadows, np.float32)


def _halve(fine: Layer) -> Layer:
    """Average 2 x 2 pixels of a (2h, 2w, channels) array."""
    rows = fine[0::2] + fine[1::2]
    return np.asarray((rows[:, 0::2] + rows[:, 1::2]) / 4, np.float32)


def _window(noise: Layer, corner: tuple[int, int], shape: tuple[int, int]) -> Layer:
    """Cut a window of (rows, columns) at (y, x) out of a square noise tile that repeats."""
    rows, columns = (
        np.arange(start, start + length) % len(noise)
        for start, length in zip(corner, shape, strict=True)
    )
    return noise[np.ix_(rows, columns)]


def _heights_m(plants: Floats, rng: np.random.Generator) -> Floats:
    """Draw the heights (N,) of plants (N, 4); they grow with the diameter of the crown."""
    ratios = np.array([kind.height_per_m for kind in (*SPECIES, SHRUB)])[plants[:, 3].astype(int)]
    heights_m = (plants[:, 2] * ratios + 1.0) * rng.uniform(0.85, 1.15, len(plants))
    return np.minimum(heights_m, HEIGHT_MAX_M)


def _crown(
    centre: tuple[float, float], radius_px: float, species: Species, foliage: tuple[Layer, Layer]
) -> tuple[Layer, Layer]:
    """Return the opacity of a crown in each pixel of its square patch, and its brightness."""
    lumps, relief = foliage
    middles = np.arange(len(lumps), dtype=np.float32) + 0.5
    dx = (middles[None, :] - centre[0]) / radius_px
    dy = (middles[:, None] - centre[1]) / radius_px
    square = dx * dx + dy * dy
    inside_px = (1 - np.sqrt(square) - 0.8 * species.rough * lumps) * radius_px
    alpha = np.clip(inside_px + 0.5, 0, 1) * species.opacity
    sunward = -(dx * SHADOW_DIRECTION[0] + dy * SHADOW_DIRECTION[1])
    bright = 1 + CROWN_SIDE * sunward + CROWN_RELIEF * species.relief * relief - CROWN_RIM * square
    return alpha.astype(np.float32), np.clip(bright, 0.3, 1.7).astype(np.float32)


def _noise(rng: np.random.Generator, scales_px: tuple[float, ...], side_px: int) -> Layer:
    """Return a periodic noise tile of zero mean and unit deviation, mixed from equal scales."""
    total = np.zeros((side_px, side_px), np.float32)
    for scale in scales_px:
        white = rng.standard_normal((side_px, side_px), dtype=np.float32)
        smooth = ndimage.gaussian_filter(white, scale, mode="wrap")
        total += smooth / smooth.std()
    return np.asarray((total - total.mean()) / total.std(), np.float32)
