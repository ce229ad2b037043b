"""The plan of a suburb: polygons, plants, and objects made of several polygons."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scenesweep.jobs.suburb.palette import (
    ASPHALT,
    CARS,
    CROWN_MAX_M,
    CROWN_MEDIAN_M,
    CROWN_MIN_M,
    CROWN_SPREAD,
    FLAT_ROOFS,
    GLASS,
    PX_M,
    ROOF_CONTRAST,
    SHADOW_DIRECTION,
    SHADOW_LENGTH_M,
    SOLAR,
    SPECIES,
    Paint,
)

Floats = NDArray[np.float64]

AVENUE_HALF_PX = 16.0
GROUND, CASTER, ROOF = range(3)  # layers, in drawing order


@dataclass(slots=True)
class Sketch:
    """A plan in the making: polygons in drawing order, and plants."""

    rng: np.random.Generator
    corners: list[Floats] = field(default_factory=list)
    paints: list[Paint] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    plants: list[tuple[float, float, float, int]] = field(default_factory=list)
    avenue: Floats = field(default_factory=lambda: np.empty((0, 2)))

    def on_avenue(self, position: Floats, reach_px: float) -> bool:
        """Say whether an object of this reach would stand on an avenue."""
        apart = self.avenue - position
        near_px = AVENUE_HALF_PX + reach_px
        return bool(np.any(np.einsum("ij,ij->i", apart, apart) < near_px**2))

    def add(self, corners: Floats, paint: Paint, *, layer: int = GROUND) -> None:
        """Add a polygon of (K, 2) corners."""
        self.corners.append(corners)
        self.paints.append(paint)
        self.layers.append(layer)

    def cast(self, corners: Floats, height_m: float) -> None:
        """Add the shadow of a convex polygon that is `height_m` above the ground."""
        reach_px = SHADOW_DIRECTION * (SHADOW_LENGTH_M * height_m / PX_M)
        self.add(_hull_swept(corners, reach_px), ASPHALT, layer=CASTER)

    def plant(self, position: Floats, kind: int, *, diameter_m: float | None = None) -> None:
        """Add one tree or shrub. Without `diameter_m`, the size of its crown is random."""
        if diameter_m is None:
            size_m = CROWN_MEDIAN_M * np.exp(CROWN_SPREAD * self.rng.standard_normal())
            diameter_m = float(np.clip(size_m, CROWN_MIN_M, CROWN_MAX_M))
        self.plants.append((float(position[0]), float(position[1]), diameter_m, kind))

    def species(self) -> int:
        """Draw a tree species by its weight."""
        ends = np.cumsum([species.weight for species in SPECIES])
        return int(np.searchsorted(ends, self.rng.random() * ends[-1]))

    def pick(self, choices: tuple[tuple[Paint, float], ...]) -> Paint:
        """Draw a paint by its weight and vary its brightness."""
        index = int(np.searchsorted(np.cumsum([w for _, w in choices]), self.rng.random()))
        return self.vary(choices[min(index, len(choices) - 1)][0])

    def vary(self, paint: Paint, spread: float = 0.08) -> Paint:
        """Vary a paint's brightness, and its bands a little against each other."""
        common, *apart = self.rng.standard_normal(5).tolist()
        gains = (math.exp(spread * common + 0.012 * lean) for lean in apart)
        red, green, blue, nir = (c * g for c, g in zip(paint.colour, gains, strict=True))
        return Paint((red, green, blue, nir), paint.grain, paint.mottle, paint.plantable)


@dataclass(frozen=True, slots=True)
class Frame:
    """A rigid local frame: `along` the street and `inward` from it, as unit vectors."""

    origin: Floats
    along: Floats
    inward: Floats

    def at(self, a_px: float, b_px: float) -> Floats:
        """Return the (2,) position `a_px` along and `b_px` inward."""
        return self.origin + a_px * self.along + b_px * self.inward

    def polygon(self, local: Floats) -> Floats:
        """Return (K, 2) positions of (K, 2) local points."""
        return self.origin + local[:, :1] * self.along + local[:, 1:] * self.inward

    def box(self, a0: float, b0: float, a1: float, b1: float) -> Floats:
        """Return the four corners of a local rectangle."""
        return self.polygon(np.array([[a0, b0], [a1, b0], [a1, b1], [a0, b1]]))

    def moved(self, a_px: float, b_px: float, *, quarter_turn: bool = False) -> Frame:
        """Return this frame with its origin moved, and turned by 90 degrees with `quarter_turn`."""
        if quarter_turn:
            return Frame(self.at(a_px, b_px), self.inward, -self.along)
        return Frame(self.at(a_px, b_px), self.along, self.inward)


@dataclass(frozen=True, slots=True)
class Warp:
    """Maps street coordinates to pixels: a rotation about the centre, and long sine waves."""

    side_px: float
    angle: float
    phases: Floats

    def __call__(self, points: Floats) -> Floats:
        """Map (K, 2) street coordinates to (K, 2) pixels."""
        middle = self.side_px / 2
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = (points - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle
        waves = 2 * np.pi * turned[:, ::-1] / (2300.0, 1900.0) + self.phases
        return np.asarray(turned + np.sin(waves) * (32.0, 28.0))

    def line(self, start: Floats, end: Floats) -> Floats:
        """Map a straight street segment to a bent polyline, a vertex about every 12 px."""
        steps = max(2, int(np.hypot(*(end - start)) / 12))
        return self(start + (end - start) * np.linspace(0, 1, steps)[:, None])

    def box(self, u0: float, v0: float, u1: float, v1: float) -> Floats:
        """Map a street-aligned rectangle to a polygon with bent sides."""
        ring = np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]])
        sides = [self.line(ring[i], ring[(i + 1) % 4])[:-1] for i in range(4)]
        return np.concatenate(sides)

    def frame(self, u: float, v: float, inward: tuple[int, int]) -> Frame:
        """Return the rigid frame at a street position with its second axis along `inward`."""
        start = np.array([u, v])
        ends = self(np.stack([start, start + 10.0 * np.array(inward)]))
        axis = (ends[1] - ends[0]) / np.hypot(*(ends[1] - ends[0]))
        return Frame(ends[0], np.array([axis[1], -axis[0]]), axis)


def add_car(sketch: Sketch, frame: Frame) -> None:
    """Add one car of about 4.6 m x 1.9 m with its windows and shadow."""
    if sketch.on_avenue(frame.origin, 4.0):
        return
    body, half = sketch.pick(CARS), sketch.rng.uniform(3.5, 4.2)
    outline = frame.box(-half, -1.55, half, 1.55)
    sketch.cast(outline, 1.2)
    sketch.add(outline, body, layer=ROOF)
    sketch.add(frame.box(half * 0.2, -1.2, half * 0.48, 1.2), GLASS, layer=ROOF)
    sketch.add(frame.box(-half * 0.8, -1.1, -half * 0.6, 1.1), GLASS, layer=ROOF)


def add_wall(sketch: Sketch, outline: Floats, paint: Paint) -> None:
    """Add a hedge or fence of 1.7 m height."""
    if not sketch.on_avenue(outline.mean(0), 16.0):
        sketch.cast(outline, 1.7)
        sketch.add(outline, sketch.vary(paint, 0.12), layer=ROOF)


def add_roof(
    sketch: Sketch,
    frame: Frame,
    half: tuple[float, float],
    paint: Paint,
    *,
    height_m: float,
) -> None:
    """Add a hip, gable or flat roof centred on a frame, its planes lit by their aspect."""
    (a, b), rng = half, sketch.rng
    if b > a:
        frame, a, b = frame.moved(0, 0, quarter_turn=True), b, a
    outline = frame.box(-a, -b, a, b)
    sketch.cast(outline, height_m)
    sketch.add(outline, paint.lit(1.06), layer=ROOF)
    style = rng.random()
    if style > 0.85:
        sketch.add(frame.box(-a + 0.7, -b + 0.7, a - 0.7, b - 0.7), paint, layer=ROOF)
        return
    ridge = a if style < 0.4 else a - b
    planes = (
        (((-a, -b), (a, -b), (ridge, 0), (-ridge, 0)), -frame.inward),
        (((-a, b), (a, b), (ridge, 0), (-ridge, 0)), frame.inward),
        (((a, -b), (a, b), (ridge, 0)), frame.along),
        (((-a, -b), (-a, b), (-ridge, 0)), -frame.along),
    )
    for points, aspect in planes:
        gain = 1 - ROOF_CONTRAST * float(aspect @ SHADOW_DIRECTION)
        sketch.add(frame.polygon(np.array(points)), paint.lit(gain), layer=ROOF)
    if rng.random() < 0.10:
        panel = frame.box(-a * 0.5, b * 0.2, a * 0.3, b * 0.75)
        sketch.add(panel, SOLAR, layer=ROOF)


def add_hall(sketch: Sketch, frame: Frame, half: tuple[float, float]) -> None:
    """Add a flat roof with a parapet, stains and machinery."""
    rng, (a, b) = sketch.rng, half
    if sketch.on_avenue(frame.origin, max(half)):
        return
    roof, outline = sketch.pick(FLAT_ROOFS), frame.box(-a, -b, a, b)
    sketch.cast(outline, rng.uniform(5, 9))
    sketch.add(outline, roof.lit(1.06), layer=ROOF)
    sketch.add(frame.box(-a + 1, -b + 1, a - 1, b - 1), roof, layer=ROOF)
    for _ in range(rng.poisson(a * b / 90)):
        x, y, w, h = (rng.uniform(-0.85, 0.85) * a, rng.uniform(-0.85, 0.85) * b, 1.2, 2.0)
        x, y = np.clip(x, 3 - a, a - 5), np.clip(y, 3 - b, b - 5)
        sketch.add(frame.box(x + 0.8, y - 1, x + w + 1.6, y + h), roof.lit(0.6), layer=ROOF)
        sketch.add(frame.box(x, y, x + w + 1, y + h), roof.lit(rng.uniform(0.8, 1.1)), layer=ROOF)


def band(line: Floats, near_px: float, far_px: float) -> Floats:
    """Return the polygon between two offsets to the side of an (N, 2) polyline."""
    heading = np.gradient(line, axis=0)
    normal = heading[:, ::-1] * (-1, 1) / np.hypot(*heading.T)[:, None]
    return np.concatenate([line + near_px * normal, (line + far_px * normal)[::-1]])


def _hull_swept(corners: Floats, reach_px: Floats) -> Floats:
    """Return the outline of a convex polygon swept along a vector."""
    ring, (sx, sy) = corners.tolist(), reach_px.tolist()
    sides = list(zip(ring, ring[1:] + ring[:1], strict=True))
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in sides)
    ahead = [((y1 - y0) * sx - (x1 - x0) * sy) * area > 0 for (x0, y0), (x1, y1) in sides]
    points = []
    for index, (x, y) in enumerate(ring):
        before, after = ahead[index - 1], ahead[index]
        here, moved = (x, y), (x + sx, y + sy)
        points += [moved] if before and after else [here] if not before and not after else []
        points += [here, moved] if after > before else [moved, here] if before > after else []
    return np.array(points)
