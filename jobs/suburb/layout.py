"""Plan a suburb: a curved grid of streets, diagonal avenues, and the use of each block."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np

from scenesweep.jobs.suburb.blocks import (
    Block,
    plan_lots,
    plan_park,
    plan_school,
    plan_shops,
    plan_waste,
)
from scenesweep.jobs.suburb.palette import (
    ASPHALT,
    CONCRETE,
    CROWN_MAX_M,
    CROWN_MEDIAN_M,
    CROWN_MIN_M,
    DRY_LAWN,
    LAWN,
    MARKING,
    OLD_ASPHALT,
    PX_M,
    STREET_TREE_STEP_M,
)
from scenesweep.jobs.suburb.sketch import AVENUE_HALF_PX, Floats, Frame, Sketch, Warp, add_car, band

TWO_AVENUES_PX = 2000  # a smaller image has room for one only


def plan_town(sketch: Sketch, side_px: int) -> None:
    """Plan streets, blocks and a diagonal avenue over the whole frame."""
    rng = sketch.rng
    warp = Warp(side_px, rng.uniform(0.08, 0.16), rng.uniform(0, 2 * np.pi, 2))
    avenues = _avenue_lines(rng, side_px)
    for line in avenues:
        _plan_cars(sketch, line[::2], AVENUE_HALF_PX)
    sketch.avenue = np.concatenate(avenues)
    across, down = (_street_lines(rng, side_px, step) for step in ((230, 400), (122, 138)))
    for (u0, left), (u1, right) in pairwise(across.tolist()):
        for (v0, upper), (v1, lower) in pairwise(down.tolist()):
            block = (u0 + left, v0 + upper, u1 - right, v1 - lower)
            outline = warp.box(*block)
            if np.all(outline.max(0) > -30) and np.all(outline.min(0) < side_px + 30):
                _plan_block(sketch, warp, block)
                _plan_street(sketch, warp, (u0, v0, u1, v0), upper)
                _plan_street(sketch, warp, (u0, v0, u0, v1), left)
    for line in avenues:
        _lay_avenue(sketch, line)


def _avenue_lines(rng: np.random.Generator, side_px: int) -> list[Floats]:
    """Return (N, 2) centre lines of curved diagonal avenues, a vertex about every 12 px."""
    steps = np.linspace(-0.1, 1.1, max(16, side_px // 12))
    bends = 0.10 * np.sin(3.1 * steps + rng.uniform(0, 6, (2, 1)))
    rising = side_px * np.stack([steps, 0.72 - 0.52 * steps + bends[0]], axis=1)
    falling = side_px * np.stack([0.3 + 0.5 * steps + bends[1], steps], axis=1)
    return [rising, falling] if side_px > TWO_AVENUES_PX else [rising]


def _street_lines(rng: np.random.Generator, side_px: float, step_px: tuple[float, float]) -> Floats:
    """Return (N, 2) street centre lines over a wide range: position and half width in px."""
    lines = []
    position = -0.35 * side_px - 150 + rng.uniform(0, step_px[0])
    while position < 1.35 * side_px + 150:
        half_width = 15.0 if rng.random() < 0.15 else rng.uniform(7.0, 9.0)
        lines.append((position, half_width))
        position += rng.uniform(*step_px)
    return np.array(lines)


def _plan_block(sketch: Sketch, warp: Warp, block: Block) -> None:
    """Plan one block between its kerbs: parkway, sidewalk, and the inside by its use."""
    rng, (u0, v0, u1, v1) = sketch.rng, block
    rich = 0.5 + 0.5 * np.sin(u0 / 700 + warp.phases[0]) * np.cos(v0 / 900 + warp.phases[1])
    lawn = sketch.vary(LAWN if rng.random() < 0.25 + 0.5 * rich else DRY_LAWN)
    inset = ((0.0, CONCRETE), (0.8, lawn), (3.2, CONCRETE), (5.8, lawn))
    for step, paint in inset:
        sketch.add(warp.box(u0 + step, v0 + step, u1 - step, v1 - step), paint)
    district = np.sin(u0 / 410 + warp.phases[1]) * np.sin(v0 / 370 + warp.phases[0])
    use = rng.random() ** (1.0 + 0.8 * district)  # so that blocks of other uses form clusters
    inner = (u0 + 6.0, v0 + 6.0, u1 - 6.0, v1 - 6.0)
    if use < 0.78:
        plan_lots(sketch, warp, inner, rich=rich)
    elif use < 0.90:
        plan_shops(sketch, warp, inner)
    elif use < 0.93:
        plan_park(sketch, warp, inner)
    elif use < 0.95:
        plan_school(sketch, warp, inner)
    else:
        plan_waste(sketch, warp, inner)
    _plant_streets(sketch, warp, block)


def _plant_streets(sketch: Sketch, warp: Warp, block: Block) -> None:
    """Plant the parkways of a block's long sides, one species of one age, with gaps."""
    rng, (u0, v0, u1, v1) = sketch.rng, block
    kind, age = sketch.species(), rng.uniform(0.7, 1.35)
    step_px = STREET_TREE_STEP_M / PX_M * rng.uniform(0.8, 1.5)
    along = np.arange(u0 + 9, u1 - 9, step_px)
    for u, v in product(along + rng.normal(0, 0.8, len(along)), (v0 + 2.0, v1 - 2.0)):
        if rng.random() < 0.62:
            size_m = np.clip(CROWN_MEDIAN_M * age * rng.normal(1, 0.12), CROWN_MIN_M, CROWN_MAX_M)
            sketch.plant(warp(np.array([[u, v]]))[0], kind, diameter_m=float(size_m))


def _plan_street(
    sketch: Sketch, warp: Warp, ends: tuple[float, float, float, float], half_px: float
) -> None:
    """Plan one block's length of street: patches, markings on wide ones, and cars."""
    rng = sketch.rng
    line = warp.line(np.array(ends[:2]), np.array(ends[2:]))
    if rng.random() < 0.5:
        shade = sketch.vary(OLD_ASPHALT if rng.random() < 0.6 else ASPHALT)
        sketch.add(band(line[1:-1], -half_px, half_px), shade)
    if half_px > 12:
        for offset_px in (-0.45, 0.2):
            sketch.add(band(line[2:-2], offset_px, offset_px + 0.4), MARKING)
        for dash in (*_dashes(line[2:-2], -7.5), *_dashes(line[2:-2], 7.1)):
            sketch.add(dash, MARKING)
    _plan_cars(sketch, line, half_px)


def _plan_cars(sketch: Sketch, line: Floats, half_px: float) -> None:
    """Park cars along both kerbs of a street and let a few drive on it."""
    for i in range(2, len(line) - 2):
        heading = (line[i + 1] - line[i]) / np.hypot(*(line[i + 1] - line[i]))
        frame = Frame(line[i], heading, heading[::-1] * (-1, 1))
        for side in (-1, 1):
            draw = sketch.rng.random()
            if draw < 0.30:
                add_car(sketch, frame.moved(0, side * (half_px - 2.4)))
            elif draw < 0.33:
                add_car(sketch, frame.moved(0, side * half_px * 0.4))


def _lay_avenue(sketch: Sketch, line: Floats) -> None:
    """Draw sidewalks, asphalt and markings of an avenue over everything on the ground."""
    half = AVENUE_HALF_PX
    for width, paint in ((half + 5, CONCRETE), (half, ASPHALT), (0.5, MARKING)):
        sketch.add(band(line, -width, width), paint)
    for dash in (*_dashes(line, -8.0), *_dashes(line, 7.6)):
        sketch.add(dash, MARKING)


def _dashes(line: Floats, offset_px: float) -> Iterator[Floats]:
    """Yield every second stretch of a lane marking."""
    for start in range(0, len(line) - 1, 2):
        yield band(line[start : start + 2], offset_px, offset_px + 0.4)
