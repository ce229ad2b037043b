"""Plan the inside of a block: homes, shops, a park, a school or waste land."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from scenesweep.jobs.suburb.palette import (
    ASPHALT,
    CLUMP_GROWTH,
    CLUTTER,
    CONCRETE,
    DIRT,
    DRY_LAWN,
    FENCE,
    GARDEN_CLUMPS,
    GARDEN_SHRUBS,
    HEDGE,
    LAWN,
    MARKING,
    MULCH,
    OLD_ASPHALT,
    PARK_TREES_PER_HA,
    PITCHED_ROOFS,
    POOL,
    PX_M,
    SHRUB_KIND,
    TENNIS,
    TRACK,
)
from scenesweep.jobs.suburb.sketch import (
    Floats,
    Frame,
    Sketch,
    Warp,
    add_car,
    add_hall,
    add_roof,
    add_wall,
    band,
)

Block = tuple[float, float, float, float]  # u0, v0, u1, v1 in street coordinates


def plan_lots(sketch: Sketch, warp: Warp, block: Block, *, rich: float) -> None:
    """Divide a block into two rows of lots, back to back, most of them with a house."""
    u0, v0, u1, v1 = block
    depth = (v1 - v0) / 2
    width = sketch.rng.uniform(24, 33) * (1.7 if sketch.rng.random() < 0.2 else 1.0)
    count = max(1, int((u1 - u0) / width))
    for u in u0 + (np.arange(count) + 0.5) * (u1 - u0) / count:
        for v, inward in ((v0, (0, 1)), (v1, (0, -1))):
            frame = warp.frame(float(u), v, inward)
            _plan_lot(sketch, frame, ((u1 - u0) / count, depth), rich)


def plan_shops(sketch: Sketch, warp: Warp, block: Block) -> None:
    """Plan a block of flat-roofed buildings, each with a car park beside it."""
    rng, (u0, v0, u1, v1) = sketch.rng, block
    sketch.add(warp.box(*block), sketch.vary(ASPHALT if rng.random() < 0.6 else OLD_ASPHALT))
    count = max(1, int((u1 - u0) / rng.uniform(110, 170)))
    span = (u1 - u0) / count
    for u in u0 + (np.arange(count) + 0.5) * span:
        frame = warp.frame(float(u), (v0 + v1) / 2, (0, 1))
        depth, width = (v1 - v0) / 2, span * rng.uniform(0.18, 0.3)
        shift = rng.choice((-1, 1)) * (span / 2 - width - 2)
        add_hall(sketch, frame.moved(shift, 0), (width, depth * rng.uniform(0.7, 0.97)))
        sign = -np.sign(shift)
        room = span - 2 * width - 8
        _plan_car_park(sketch, frame.moved(sign * (span / 2 - room / 2 - 3), 0), (room, depth))


def plan_park(sketch: Sketch, warp: Warp, block: Block) -> None:
    """Plan a park with a winding path and clumps of trees."""
    rng, (u0, v0, u1, v1) = sketch.rng, block
    sketch.add(warp.box(*block), sketch.vary(LAWN if rng.random() < 0.7 else DRY_LAWN))
    frame = warp.frame((u0 + u1) / 2, (v0 + v1) / 2, (0, 1))
    half_a, half_b = (u1 - u0) / 2, (v1 - v0) / 2
    wander = ndimage.gaussian_filter1d(np.repeat(rng.uniform(-0.5, 0.5, 4), 10), 6) * half_b
    path = np.stack([np.linspace(-half_a, half_a, 40), wander], axis=1)
    sketch.add(band(frame.polygon(path), -1.8, 1.8), CONCRETE)
    clumps = int(4 * half_a * half_b * PX_M**2 / 1e4 * PARK_TREES_PER_HA / 3)
    for a, b in rng.uniform((-half_a, -half_b), (half_a, half_b), (clumps, 2)):
        for _ in range(rng.integers(1, 6)):
            position = frame.at(a + rng.normal(0, 11), b + rng.normal(0, 11))
            sketch.plant(position, sketch.species())


def plan_school(sketch: Sketch, warp: Warp, block: Block) -> None:
    """Plan a school: two halls, courts, and a field inside a running track."""
    u0, v0, u1, v1 = block
    sketch.add(warp.box(*block), sketch.vary(DRY_LAWN))
    frame = warp.frame((u0 + u1) / 2, (v0 + v1) / 2, (0, 1))
    half_a, half_b = (u1 - u0) / 2, (v1 - v0) / 2
    for grow_px, paint in ((0, TRACK), (-6, sketch.vary(LAWN))):
        ring = _oval(half_a * 0.3, 0, half_a * 0.6 + grow_px, half_b * 0.85 + grow_px)
        sketch.add(frame.polygon(ring), replace(paint, plantable=False))
    for b in (-0.45, 0.45):
        add_hall(sketch, frame.moved(-half_a * 0.7, b * half_b), (half_a * 0.2, half_b * 0.3))
    sketch.add(frame.box(-half_a * 0.46, -30, -half_a * 0.36, 30), sketch.vary(TENNIS))


def plan_waste(sketch: Sketch, warp: Warp, block: Block) -> None:
    """Plan a bare block of dirt with worn patches, weeds and a few trees."""
    rng, (u0, v0, u1, v1) = sketch.rng, block
    ground = sketch.vary(DIRT, 0.06)
    sketch.add(warp.box(*block), ground)
    for index, spot in enumerate(warp(rng.uniform((u0 + 8, v0 + 8), (u1 - 8, v1 - 8), (60, 2)))):
        if index < 30:
            turns = np.linspace(0, 2 * np.pi, 30, endpoint=False)
            radii = np.exp(ndimage.gaussian_filter1d(rng.normal(0, 1.2, 30), 2, mode="wrap"))
            ring = np.stack([2 * np.cos(turns), np.sin(turns)], axis=1) * radii[:, None]
            paint = (
                replace(DRY_LAWN, mottle=1.0) if index < 6 else ground.lit(rng.uniform(0.93, 1.06))
            )
            sketch.add(spot + ring * rng.uniform(2, 12), paint)
        elif index < 38:
            sketch.plant(spot, sketch.species())
        else:
            sketch.plant(spot, SHRUB_KIND, diameter_m=rng.uniform(0.8, 2.0))


def _plan_lot(sketch: Sketch, frame: Frame, extent: tuple[float, float], rich: float) -> None:
    """Plan one lot: front and back gardens, house, drive, fences and plants."""
    rng, half, depth = sketch.rng, extent[0] / 2, extent[1]
    for b0, b1 in ((0.0, depth * 0.3), (depth * 0.3, depth)):
        ground = rng.choice(4, p=(0.1 + 0.4 * rich, 0.5 - 0.4 * rich, 0.2, 0.2))
        paint = sketch.vary((LAWN, DRY_LAWN, DIRT, MULCH)[ground], 0.12)
        sketch.add(frame.box(-half, b0, half, b1), paint)
    for _ in range(rng.poisson(3.0)):
        a, b, size = rng.uniform(-half, half), rng.uniform(0.6, 1) * depth, rng.uniform(1, 4, 2)
        sketch.add(frame.box(a, b, a + size[0], b + size[1]), sketch.pick(CLUTTER))
    if rng.random() < 0.96 and not sketch.on_avenue(frame.at(0, depth / 2), depth / 2):
        turn = 1 if rng.random() < 0.5 else -1
        _plan_home(sketch, replace(frame, along=frame.along * turn), half, depth)
    for edge in (-half, half):
        if rng.random() < 0.25:
            start = rng.uniform(0.1, 0.7) * depth
            add_wall(sketch, frame.box(edge - 1.1, start, edge + 1.1, start + 14), HEDGE)
    if rng.random() < 0.7:
        add_wall(sketch, frame.box(-half - 0.3, depth * 0.4, -half + 0.3, depth), FENCE)
    if rng.random() < 0.7:
        add_wall(sketch, frame.box(-half, depth - 0.3, half, depth + 0.3), FENCE)
    _plant_garden(sketch, frame, extent, rich)


def _plan_home(sketch: Sketch, frame: Frame, half: float, depth: float) -> None:
    """Plan a house with drive, path and patio, and sometimes a pool or a shed."""
    rng = sketch.rng
    wide = rng.uniform(0.60, 0.70) * half
    front = rng.uniform(0.17, 0.24) * depth
    back = front + rng.uniform(0.34, 0.46) * depth
    roof, height_m = sketch.pick(PITCHED_ROOFS), rng.uniform(3.4, 6.0)
    drive, shift = sketch.vary(CONCRETE), -half * 0.22
    sketch.add(frame.box(half - 6.2, -5.5, half - 1.0, front + 0.5 * depth), drive)
    sketch.add(frame.box(-2.2, -1.0, -0.2, front), drive)
    sketch.add(frame.box(shift - wide * 0.8, back - 2, shift + wide, back + 6), drive)
    if rng.random() < 0.45:
        add_car(sketch, frame.moved(half - 3.6, rng.uniform(0.5, 6), quarter_turn=True))
    main = frame.moved(shift, (front + back) / 2)
    add_roof(sketch, main, (wide, (back - front) / 2), roof, height_m=height_m)
    for b in (back - 3, front + 3) if rng.random() < 0.25 else (back - 4,):
        if rng.random() < 0.7:
            wing = frame.moved(shift + rng.uniform(-0.4, 0.5) * wide, b, quarter_turn=True)
            size = (rng.uniform(7, 10), wide * rng.uniform(0.35, 0.55))
            add_roof(sketch, wing, size, roof, height_m=height_m - 0.3)
    if rng.random() < 0.16:
        a, b = rng.uniform(-0.5, 0.1) * half, rng.uniform(0.74, 0.82) * depth
        sketch.add(frame.box(a - 5.5, b - 3.5, a + 8.5, b + 7.0), sketch.vary(CONCRETE))
        pool = _oval(a + 1.5, b + 1.8, rng.uniform(3.5, 6), rng.uniform(2, 3.2))
        sketch.add(frame.polygon(pool), sketch.vary(POOL))
    if rng.random() < 0.35:
        shed = frame.moved(half * rng.uniform(0.4, 0.7), depth * 0.86)
        size = (rng.uniform(3, 5), rng.uniform(3, 5))
        add_roof(sketch, shed, size, sketch.pick(PITCHED_ROOFS), height_m=2.6)


def _plant_garden(sketch: Sketch, frame: Frame, extent: tuple[float, float], rich: float) -> None:
    """Plant clumps of trees, most of them behind the house, and shrubs anywhere."""
    rng, half, depth = sketch.rng, extent[0] / 2, extent[1]
    for _ in range(rng.poisson(GARDEN_CLUMPS * (0.6 + 0.8 * rich) * half / 14)):
        low, high = (0.66, 1.0) if rng.random() < 0.72 else (0.02, 0.26)
        a, b = rng.uniform(-half, half), rng.uniform(low, high) * depth
        kind = sketch.species()
        for _ in range(rng.geometric(1 - CLUMP_GROWTH)):
            sketch.plant(frame.at(a, b), kind if rng.random() < 0.7 else sketch.species())
            a, b = a + rng.normal(0, 6.0), b + rng.normal(0, 4.0)
    for _ in range(rng.poisson(GARDEN_SHRUBS)):
        position = frame.at(rng.uniform(-half, half), rng.uniform(0.05, 1.0) * depth)
        sketch.plant(position, SHRUB_KIND, diameter_m=rng.uniform(1.0, 2.2))


def _plan_car_park(sketch: Sketch, frame: Frame, extent: tuple[float, float]) -> None:
    """Mark rows of bays, park cars in some, and plant islands with trees."""
    rng, half_a, half_b = sketch.rng, extent[0] / 2, extent[1] * 0.94
    kind, full = sketch.species(), rng.uniform(0.15, 0.6)
    for b in np.arange(-half_b + 6, half_b - 5, 28.0):
        for row in (b, b + 9.5):
            for slot, a in enumerate(np.arange(-half_a + 4, half_a - 3, 4.6)):
                spot = frame.moved(float(a), float(row), quarter_turn=True)
                sketch.add(spot.box(-4.5, -2.5, 4.5, -2.1), MARKING)
                if slot % 9 == 4:
                    sketch.add(spot.box(-4.5, -2, 4.5, 2), sketch.vary(MULCH))
                    sketch.plant(spot.origin, kind)
                elif rng.random() < full:
                    add_car(sketch, spot)


def _oval(a: float, b: float, half_a: float, half_b: float) -> Floats:
    """Return (24, 2) local points of a rounded rectangle."""
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return np.asarray(np.sign(circle) * np.abs(circle) ** 0.6 * (half_a, half_b) + (a, b))
