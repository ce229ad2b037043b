"""Paint a synthetic suburb as a four-band aerial picture and keep where each of its trees stands.

The picture stands in for imagery that cannot be shipped. Its appearance constants were measured on
0.6 m USDA NAIP chips of Southern California (red, green, blue, near infrared), none of whose pixels
are used. A suburb is planned as polygons and plants, the polygons are filled in tiles at twice the
resolution, the plants are stamped over them from low to tall, and a sensor model ends the work.

Frames: all positions are pixels of the painted frame, which is `PAD_PX` wider on every side than
the delivered one, x to the right and y down; lengths in metres end in `_m`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Layer = NDArray[np.float32]
Colour = tuple[float, float, float, float]
_Block = tuple[float, float, float, float]  # u0, v0, u1, v1 in street coordinates

PX_M = 0.6  # ground sample distance
PAD_PX = 64  # half of it holds the largest crown (14 px) and its shadow (10 px, 16 at 45 degrees)
TILE_PX = 512
SUPERSAMPLING = 2
FOLIAGE_PX = 512  # side of the noise that crowns cut their foliage from

# Light: shadows fall to the north-north-east, 0.6 m for each metre of height.
SHADOW_DIRECTION = np.array([0.5, -0.866])
SHADOW_LENGTH_M = 0.6
SHADE = 0.42  # what is left of the sunlight in a cast shadow
SHADE_EXPONENTS = (1.0, 0.95, 0.85, 0.95)  # skylight fills blue the most
ROOF_CONTRAST = 0.20

# Sensor: set so that the power spectrum falls off as the chips' does.
BLUR_PX = 0.52
NOISE_DN = 1.3
BRIGHTNESS_DRIFT = 0.05
HAZE_DN = (2.0, 2.0, 3.0, 1.0)

# Planting: tuned to 53 trees per 256 px chip, 5.2 m median to the nearest neighbour.
CROWN_MEDIAN_M, CROWN_SPREAD, CROWN_MIN_M, CROWN_MAX_M = 6.0, 0.30, 3.0, 10.0
HEIGHT_MAX_M = 15.0
SPACING_MIN_M, SPACING_PER_CROWN = 2.5, 0.29
STREET_TREE_STEP_M = 9.5
GARDEN_CLUMPS = 0.95
CLUMP_GROWTH = 0.55  # chance of one more tree in a clump
GARDEN_SHRUBS = 2.0
PARK_TREES_PER_HA = 45.0

# Crown relief: the sunlit side, the lumps of the foliage, and the dark rim.
CROWN_SIDE, CROWN_RELIEF, CROWN_RIM = 0.18, 0.27, 0.15
MOTTLE_LEANS = (-0.22, -0.16, -0.16, 0.10)  # what a greener patch does to each band
CROWN_NIR_FILL = 0.45  # leaves scatter near infrared, so its relief is weaker


@dataclass(frozen=True, slots=True)
class Suburb:
    """A painted scene and its truth.

    Attributes:
        pixels: (4, size, size), red, green, blue, near infrared; 0 in all bands is nodata.
        trees: (N, 3), x and y of the crown's centre in pixels (pixel edges are integers, so a
            pixel's centre is +0.5) and the crown's diameter in metres.
    """

    pixels: NDArray[np.uint8]
    trees: Floats


@dataclass(frozen=True, slots=True)
class _Paint:
    """What fills a polygon: DNs per band, brightness grain, green mottle, room to plant."""

    colour: Colour
    grain: float = 0.03
    mottle: float = 0.0
    plantable: bool = False

    def lit(self, gain: float) -> "_Paint":
        """Return this paint with all bands multiplied by `gain`."""
        red, green, blue, nir = self.colour
        colour = (red * gain, green * gain, blue * gain, nir * gain)
        return _Paint(colour, self.grain, self.mottle, self.plantable)


@dataclass(frozen=True, slots=True)
class _Species:
    """How a plant looks: DNs of its lit crown, roughness of outline and foliage, height."""

    colour: Colour
    weight: float
    rough: float = 0.14
    relief: float = 1.0
    height_per_m: float = 0.9
    opacity: float = 0.97


# Cluster centres (k-means, 22 clusters) of the residential chips, assigned to materials by eye.
ASPHALT = _Paint((90, 92, 95, 72), 0.035)
OLD_ASPHALT = _Paint((118, 117, 114, 96), 0.04)
CONCRETE = _Paint((168, 164, 155, 136), 0.03)
MARKING = _Paint((178, 174, 160, 150))
LAWN = _Paint((88, 106, 79, 172), 0.06, 0.5, True)
DRY_LAWN = _Paint((130, 124, 105, 142), 0.07, 0.6, True)
DIRT = _Paint((158, 145, 127, 144), 0.07, 0.15, True)
MULCH = _Paint((106, 98, 88, 112), 0.10, 0.7, True)
HEDGE = _Paint((62, 80, 66, 150), 0.22, 0.5)
FENCE = _Paint((150, 144, 136, 124), 0.1)
POOL = _Paint((104, 165, 175, 42), 0.05)
TRACK = _Paint((150, 98, 86, 130), 0.03)
TENNIS = _Paint((82, 106, 112, 88), 0.02)
SOLAR = _Paint((58, 66, 86, 60), 0.03)
GLASS = _Paint((56, 60, 66, 48))
PITCHED_ROOFS = (
    (_Paint((122, 122, 121, 98), 0.05), 0.24),
    (_Paint((84, 86, 91, 68), 0.05), 0.17),
    (_Paint((132, 116, 106, 116), 0.05), 0.17),
    (_Paint((158, 114, 98, 148), 0.06), 0.14),
    (_Paint((168, 163, 153, 140), 0.04), 0.16),
    (_Paint((200, 200, 196, 176), 0.03), 0.12),
)
FLAT_ROOFS = (
    (_Paint((210, 211, 208, 190), 0.03), 0.45),
    (_Paint((176, 174, 170, 150), 0.04), 0.33),
    (_Paint((134, 130, 126, 108), 0.04), 0.22),
)
CARS = (
    (_Paint((212, 214, 216, 190)), 0.40),
    (_Paint((144, 148, 152, 128)), 0.25),
    (_Paint((52, 54, 58, 46)), 0.22),
    (_Paint((150, 56, 54, 110)), 0.07),
    (_Paint((62, 80, 120, 70)), 0.06),
)
CLUTTER = ((CONCRETE, 0.35), (FLAT_ROOFS[0][0], 0.15), (MULCH, 0.25), (SOLAR, 0.05), (DIRT, 0.20))
# Percentiles of the pixels under the tree points: median (65, 80, 70, 150), NDVI 0.29 to 0.47.
SPECIES = (
    _Species((60, 77, 64, 146), 0.34),
    _Species((68, 91, 67, 170), 0.26, relief=0.8),
    _Species((91, 107, 77, 170), 0.14),
    _Species((87, 93, 79, 128), 0.14, rough=0.22, opacity=0.85),
    _Species((52, 63, 60, 124), 0.08, relief=1.2, height_per_m=1.3),
    _Species((79, 85, 73, 122), 0.04, rough=0.45, relief=1.6, height_per_m=2.4, opacity=0.9),
)
SHRUB = _Species((72, 86, 70, 140), 0.0, rough=0.2, height_per_m=0.8)
SHRUB_KIND = len(SPECIES)
AVENUE_HALF_PX = 16.0
TWO_AVENUES_PX = 2000  # a smaller picture has room for one only
_GROUND, _CASTER, _ROOF = range(3)


@dataclass(slots=True)
class _Sketch:
    """The plan of a suburb as it grows: polygons in drawing order and plants."""

    rng: np.random.Generator
    corners: list[Floats] = field(default_factory=list)
    paints: list[_Paint] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    plants: list[tuple[float, float, float, int]] = field(default_factory=list)
    avenue: Floats = field(default_factory=lambda: np.empty((0, 2)))

    def on_avenue(self, place: Floats, reach_px: float) -> bool:
        """Tell whether something of this reach would stand on an avenue."""
        apart = self.avenue - place
        near_px = AVENUE_HALF_PX + reach_px
        return bool(np.any(np.einsum("ij,ij->i", apart, apart) < near_px**2))

    def add(self, corners: Floats, paint: _Paint, *, layer: int = _GROUND) -> None:
        """Add a polygon of (K, 2) corners."""
        self.corners.append(corners)
        self.paints.append(paint)
        self.layers.append(layer)

    def cast(self, corners: Floats, height_m: float) -> None:
        """Let a convex polygon `height_m` above the ground cast a shadow."""
        reach_px = SHADOW_DIRECTION * (SHADOW_LENGTH_M * height_m / PX_M)
        self.add(_hull_swept(corners, reach_px), ASPHALT, layer=_CASTER)

    def plant(self, place: Floats, kind: int, *, diameter_m: float | None = None) -> None:
        """Plant one tree or shrub, its crown drawn from the usual sizes unless given."""
        if diameter_m is None:
            size_m = CROWN_MEDIAN_M * np.exp(CROWN_SPREAD * self.rng.standard_normal())
            diameter_m = float(np.clip(size_m, CROWN_MIN_M, CROWN_MAX_M))
        self.plants.append((float(place[0]), float(place[1]), diameter_m, kind))

    def species(self) -> int:
        """Draw a tree species by its weight."""
        ends = np.cumsum([species.weight for species in SPECIES])
        return int(np.searchsorted(ends, self.rng.random() * ends[-1]))

    def pick(self, choices: tuple[tuple[_Paint, float], ...]) -> _Paint:
        """Draw a paint by its weight and vary its brightness."""
        index = int(np.searchsorted(np.cumsum([w for _, w in choices]), self.rng.random()))
        return self.vary(choices[min(index, len(choices) - 1)][0])

    def vary(self, paint: _Paint, spread: float = 0.08) -> _Paint:
        """Vary a paint's brightness, and its bands a little against each other."""
        common, *apart = self.rng.standard_normal(5).tolist()
        gains = (math.exp(spread * common + 0.012 * lean) for lean in apart)
        red, green, blue, nir = (c * g for c, g in zip(paint.colour, gains, strict=True))
        return _Paint((red, green, blue, nir), paint.grain, paint.mottle, paint.plantable)


@dataclass(frozen=True, slots=True)
class _Frame:
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

    def moved(self, a_px: float, b_px: float, *, quarter_turn: bool = False) -> "_Frame":
        """Return this frame with its origin moved, turned by 90 degrees if asked."""
        if quarter_turn:
            return _Frame(self.at(a_px, b_px), self.inward, -self.along)
        return _Frame(self.at(a_px, b_px), self.along, self.inward)


def paint_suburb(size_px: int = 6144, *, seed: int = 7) -> Suburb:
    """Paint a suburb of size_px x size_px pixels at 0.6 m, the same for the same arguments.

    Args:
        size_px: Width and height of the picture, at least 256.
        seed: Seed of everything drawn at random.

    Returns:
        The four-band picture, with a slanted nodata border, and its trees.
    """
    if size_px < 256:
        raise ValueError(f"size_px must be at least 256, got {size_px}")
    rng = np.random.default_rng(seed)
    sketch = _Sketch(rng)
    side_px = size_px + 2 * PAD_PX
    _plan_town(sketch, side_px)
    canvas, light, open_ground = _fill_polygons(sketch, side_px)
    plants = _plants_with_room(sketch, open_ground)
    _stamp_plants(canvas, light, plants, rng=rng)
    inner = slice(PAD_PX, PAD_PX + size_px)
    pixels = _expose(canvas[:, inner, inner], light[inner, inner], rng=rng)
    valid = _flight_strip(size_px)
    pixels[:, ~valid] = 0
    trees = plants[plants[:, 3] != SHRUB_KIND, :3] - [PAD_PX, PAD_PX, 0]
    inside = np.all((trees[:, :2] >= 0) & (trees[:, :2] < size_px), axis=1)
    trees = trees[inside]
    columns, rows = trees[:, :2].astype(int).T
    trees = trees[valid[rows, columns]]
    return Suburb(pixels, trees[np.lexsort((trees[:, 0], trees[:, 1]))])


# --- The plan: streets, blocks, lots ---


@dataclass(frozen=True, slots=True)
class _Warp:
    """Street coordinates to picture positions: a turn about the middle and long sine bends."""

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

    def frame(self, u: float, v: float, inward: tuple[int, int]) -> _Frame:
        """Return the rigid frame at a street position with its second axis along `inward`."""
        start = np.array([u, v])
        ends = self(np.stack([start, start + 10.0 * np.array(inward)]))
        axis = (ends[1] - ends[0]) / np.hypot(*(ends[1] - ends[0]))
        return _Frame(ends[0], np.array([axis[1], -axis[0]]), axis)


def _street_lines(rng: np.random.Generator, side_px: float, step_px: tuple[float, float]) -> Floats:
    """Return (N, 2) street centre lines over a wide range: position and half width in px."""
    lines = []
    position = -0.35 * side_px - 150 + rng.uniform(0, step_px[0])
    while position < 1.35 * side_px + 150:
        half_width = 15.0 if rng.random() < 0.15 else rng.uniform(7.0, 9.0)
        lines.append((position, half_width))
        position += rng.uniform(*step_px)
    return np.array(lines)


def _plan_town(sketch: _Sketch, side_px: int) -> None:
    """Plan streets, blocks and a diagonal avenue over the whole frame."""
    rng = sketch.rng
    warp = _Warp(side_px, rng.uniform(0.08, 0.16), rng.uniform(0, 2 * np.pi, 2))
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


def _band(line: Floats, near_px: float, far_px: float) -> Floats:
    """Return the polygon between two offsets to the side of an (N, 2) polyline."""
    heading = np.gradient(line, axis=0)
    normal = heading[:, ::-1] * (-1, 1) / np.hypot(*heading.T)[:, None]
    return np.concatenate([line + near_px * normal, (line + far_px * normal)[::-1]])


def _dashes(line: Floats, offset_px: float) -> Iterator[Floats]:
    """Yield every second stretch of a lane marking."""
    for start in range(0, len(line) - 1, 2):
        yield _band(line[start : start + 2], offset_px, offset_px + 0.4)


def _plan_street(
    sketch: _Sketch, warp: _Warp, ends: tuple[float, float, float, float], half_px: float
) -> None:
    """Plan one block's length of street: patches, markings on wide ones, and cars."""
    rng = sketch.rng
    line = warp.line(np.array(ends[:2]), np.array(ends[2:]))
    if rng.random() < 0.5:
        shade = sketch.vary(OLD_ASPHALT if rng.random() < 0.6 else ASPHALT)
        sketch.add(_band(line[1:-1], -half_px, half_px), shade)
    if half_px > 12:
        for offset_px in (-0.45, 0.2):
            sketch.add(_band(line[2:-2], offset_px, offset_px + 0.4), MARKING)
        for dash in (*_dashes(line[2:-2], -7.5), *_dashes(line[2:-2], 7.1)):
            sketch.add(dash, MARKING)
    _plan_cars(sketch, line, half_px)


def _plan_cars(sketch: _Sketch, line: Floats, half_px: float) -> None:
    """Park cars along both kerbs of a street and let a few drive on it."""
    for i in range(2, len(line) - 2):
        heading = (line[i + 1] - line[i]) / np.hypot(*(line[i + 1] - line[i]))
        frame = _Frame(line[i], heading, heading[::-1] * (-1, 1))
        for side in (-1, 1):
            draw = sketch.rng.random()
            if draw < 0.30:
                _add_car(sketch, frame.moved(0, side * (half_px - 2.4)))
            elif draw < 0.33:
                _add_car(sketch, frame.moved(0, side * half_px * 0.4))


def _add_car(sketch: _Sketch, frame: _Frame) -> None:
    """Add one car of about 4.6 m x 1.9 m with its windows and shadow."""
    if sketch.on_avenue(frame.origin, 4.0):
        return
    body, half = sketch.pick(CARS), sketch.rng.uniform(3.5, 4.2)
    outline = frame.box(-half, -1.55, half, 1.55)
    sketch.cast(outline, 1.2)
    sketch.add(outline, body, layer=_ROOF)
    sketch.add(frame.box(half * 0.2, -1.2, half * 0.48, 1.2), GLASS, layer=_ROOF)
    sketch.add(frame.box(-half * 0.8, -1.1, -half * 0.6, 1.1), GLASS, layer=_ROOF)


def _avenue_lines(rng: np.random.Generator, side_px: int) -> list[Floats]:
    """Return (N, 2) centre lines of curved diagonal avenues, a vertex about every 12 px."""
    steps = np.linspace(-0.1, 1.1, max(16, side_px // 12))
    bends = 0.10 * np.sin(3.1 * steps + rng.uniform(0, 6, (2, 1)))
    rising = side_px * np.stack([steps, 0.72 - 0.52 * steps + bends[0]], axis=1)
    falling = side_px * np.stack([0.3 + 0.5 * steps + bends[1], steps], axis=1)
    return [rising, falling] if side_px > TWO_AVENUES_PX else [rising]


def _lay_avenue(sketch: _Sketch, line: Floats) -> None:
    """Lay the avenue's sidewalks, asphalt and markings over all that lies on the ground."""
    half = AVENUE_HALF_PX
    for width, paint in ((half + 5, CONCRETE), (half, ASPHALT), (0.5, MARKING)):
        sketch.add(_band(line, -width, width), paint)
    for dash in (*_dashes(line, -8.0), *_dashes(line, 7.6)):
        sketch.add(dash, MARKING)


def _plan_block(sketch: _Sketch, warp: _Warp, block: _Block) -> None:
    """Plan one block between its kerbs: parkway, sidewalk, and what its use asks for."""
    rng, (u0, v0, u1, v1) = sketch.rng, block
    rich = 0.5 + 0.5 * np.sin(u0 / 700 + warp.phases[0]) * np.cos(v0 / 900 + warp.phases[1])
    lawn = sketch.vary(LAWN if rng.random() < 0.25 + 0.5 * rich else DRY_LAWN)
    inset = ((0.0, CONCRETE), (0.8, lawn), (3.2, CONCRETE), (5.8, lawn))
    for step, paint in inset:
        sketch.add(warp.box(u0 + step, v0 + step, u1 - step, v1 - step), paint)
    district = np.sin(u0 / 410 + warp.phases[1]) * np.sin(v0 / 370 + warp.phases[0])
    use = rng.random() ** (1.0 + 0.8 * district)  # blocks other than homes gather
    inner = (u0 + 6.0, v0 + 6.0, u1 - 6.0, v1 - 6.0)
    if use < 0.78:
        _plan_lots(sketch, warp, inner, rich=rich)
    elif use < 0.90:
        _plan_shops(sketch, warp, inner)
    elif use < 0.93:
        _plan_park(sketch, warp, inner)
    elif use < 0.95:
        _plan_school(sketch, warp, inner)
    else:
        _plan_waste(sketch, warp, inner)
    _plant_streets(sketch, warp, block)


def _plant_streets(sketch: _Sketch, warp: _Warp, block: _Block) -> None:
    """Plant the parkways of a block's long sides, one species of one age, with gaps."""
    rng, (u0, v0, u1, v1) = sketch.rng, block
    kind, age = sketch.species(), rng.uniform(0.7, 1.35)
    step_px = STREET_TREE_STEP_M / PX_M * rng.uniform(0.8, 1.5)
    along = np.arange(u0 + 9, u1 - 9, step_px)
    for u, v in product(along + rng.normal(0, 0.8, len(along)), (v0 + 2.0, v1 - 2.0)):
        if rng.random() < 0.62:
            size_m = np.clip(CROWN_MEDIAN_M * age * rng.normal(1, 0.12), CROWN_MIN_M, CROWN_MAX_M)
            sketch.plant(warp(np.array([[u, v]]))[0], kind, diameter_m=float(size_m))


def _plan_lots(sketch: _Sketch, warp: _Warp, block: _Block, *, rich: float) -> None:
    """Divide a block into two rows of lots, back to back, with a house on nearly each."""
    u0, v0, u1, v1 = block
    depth = (v1 - v0) / 2
    width = sketch.rng.uniform(24, 33) * (1.7 if sketch.rng.random() < 0.2 else 1.0)
    count = max(1, int((u1 - u0) / width))
    for u in u0 + (np.arange(count) + 0.5) * (u1 - u0) / count:
        for v, inward in ((v0, (0, 1)), (v1, (0, -1))):
            frame = warp.frame(float(u), v, inward)
            _plan_lot(sketch, frame, ((u1 - u0) / count, depth), rich)


def _plan_lot(sketch: _Sketch, frame: _Frame, extent: tuple[float, float], rich: float) -> None:
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
            _add_wall(sketch, frame.box(edge - 1.1, start, edge + 1.1, start + 14), HEDGE)
    if rng.random() < 0.7:
        _add_wall(sketch, frame.box(-half - 0.3, depth * 0.4, -half + 0.3, depth), FENCE)
    if rng.random() < 0.7:
        _add_wall(sketch, frame.box(-half, depth - 0.3, half, depth + 0.3), FENCE)
    _plant_garden(sketch, frame, extent, rich)


def _add_wall(sketch: _Sketch, outline: Floats, paint: _Paint) -> None:
    """Add a hedge or fence of 1.7 m height."""
    if not sketch.on_avenue(outline.mean(0), 16.0):
        sketch.cast(outline, 1.7)
        sketch.add(outline, sketch.vary(paint, 0.12), layer=_ROOF)


def _plant_garden(sketch: _Sketch, frame: _Frame, extent: tuple[float, float], rich: float) -> None:
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
        place = frame.at(rng.uniform(-half, half), rng.uniform(0.05, 1.0) * depth)
        sketch.plant(place, SHRUB_KIND, diameter_m=rng.uniform(1.0, 2.2))


def _plan_home(sketch: _Sketch, frame: _Frame, half: float, depth: float) -> None:
    """Build a house with drive, path, patio, and now and then a pool or a shed."""
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
        _add_car(sketch, frame.moved(half - 3.6, rng.uniform(0.5, 6), quarter_turn=True))
    main = frame.moved(shift, (front + back) / 2)
    _add_roof(sketch, main, (wide, (back - front) / 2), roof, height_m=height_m)
    for b in (back - 3, front + 3) if rng.random() < 0.25 else (back - 4,):
        if rng.random() < 0.7:
            wing = frame.moved(shift + rng.uniform(-0.4, 0.5) * wide, b, quarter_turn=True)
            size = (rng.uniform(7, 10), wide * rng.uniform(0.35, 0.55))
            _add_roof(sketch, wing, size, roof, height_m=height_m - 0.3)
    if rng.random() < 0.16:
        a, b = rng.uniform(-0.5, 0.1) * half, rng.uniform(0.74, 0.82) * depth
        sketch.add(frame.box(a - 5.5, b - 3.5, a + 8.5, b + 7.0), sketch.vary(CONCRETE))
        pool = _oval(a + 1.5, b + 1.8, rng.uniform(3.5, 6), rng.uniform(2, 3.2))
        sketch.add(frame.polygon(pool), sketch.vary(POOL))
    if rng.random() < 0.35:
        shed = frame.moved(half * rng.uniform(0.4, 0.7), depth * 0.86)
        size = (rng.uniform(3, 5), rng.uniform(3, 5))
        _add_roof(sketch, shed, size, sketch.pick(PITCHED_ROOFS), height_m=2.6)


def _oval(a: float, b: float, half_a: float, half_b: float) -> Floats:
    """Return (24, 2) local points of a rounded rectangle."""
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return np.asarray(np.sign(circle) * np.abs(circle) ** 0.6 * (half_a, half_b) + (a, b))


def _add_roof(
    sketch: _Sketch,
    frame: _Frame,
    half: tuple[float, float],
    paint: _Paint,
    *,
    height_m: float,
) -> None:
    """Add a hip, gable or flat roof centred on a frame, its planes lit by their aspect."""
    (a, b), rng = half, sketch.rng
    if b > a:
        frame, a, b = frame.moved(0, 0, quarter_turn=True), b, a
    outline = frame.box(-a, -b, a, b)
    sketch.cast(outline, height_m)
    sketch.add(outline, paint.lit(1.06), layer=_ROOF)
    style = rng.random()
    if style > 0.85:
        sketch.add(frame.box(-a + 0.7, -b + 0.7, a - 0.7, b - 0.7), paint, layer=_ROOF)
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
        sketch.add(frame.polygon(np.array(points)), paint.lit(gain), layer=_ROOF)
    if rng.random() < 0.10:
        panel = frame.box(-a * 0.5, b * 0.2, a * 0.3, b * 0.75)
        sketch.add(panel, SOLAR, layer=_ROOF)


def _plan_shops(sketch: _Sketch, warp: _Warp, block: _Block) -> None:
    """Plan a block of flat-roofed buildings, each with a car park beside it."""
    rng, (u0, v0, u1, v1) = sketch.rng, block
    sketch.add(warp.box(*block), sketch.vary(ASPHALT if rng.random() < 0.6 else OLD_ASPHALT))
    count = max(1, int((u1 - u0) / rng.uniform(110, 170)))
    span = (u1 - u0) / count
    for u in u0 + (np.arange(count) + 0.5) * span:
        frame = warp.frame(float(u), (v0 + v1) / 2, (0, 1))
        depth, width = (v1 - v0) / 2, span * rng.uniform(0.18, 0.3)
        shift = rng.choice((-1, 1)) * (span / 2 - width - 2)
        _add_hall(sketch, frame.moved(shift, 0), (width, depth * rng.uniform(0.7, 0.97)))
        sign = -np.sign(shift)
        room = span - 2 * width - 8
        _plan_car_park(sketch, frame.moved(sign * (span / 2 - room / 2 - 3), 0), (room, depth))


def _add_hall(sketch: _Sketch, frame: _Frame, half: tuple[float, float]) -> None:
    """Add a flat roof with a parapet, stains and machinery."""
    rng, (a, b) = sketch.rng, half
    if sketch.on_avenue(frame.origin, max(half)):
        return
    roof, outline = sketch.pick(FLAT_ROOFS), frame.box(-a, -b, a, b)
    sketch.cast(outline, rng.uniform(5, 9))
    sketch.add(outline, roof.lit(1.06), layer=_ROOF)
    sketch.add(frame.box(-a + 1, -b + 1, a - 1, b - 1), roof, layer=_ROOF)
    for _ in range(rng.poisson(a * b / 90)):
        x, y, w, h = (rng.uniform(-0.85, 0.85) * a, rng.uniform(-0.85, 0.85) * b, 1.2, 2.0)
        x, y = np.clip(x, 3 - a, a - 5), np.clip(y, 3 - b, b - 5)
        sketch.add(frame.box(x + 0.8, y - 1, x + w + 1.6, y + h), roof.lit(0.6), layer=_ROOF)
        sketch.add(frame.box(x, y, x + w + 1, y + h), roof.lit(rng.uniform(0.8, 1.1)), layer=_ROOF)


def _plan_car_park(sketch: _Sketch, frame: _Frame, extent: tuple[float, float]) -> None:
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
                    _add_car(sketch, spot)


def _plan_park(sketch: _Sketch, warp: _Warp, block: _Block) -> None:
    """Plan a park with a winding path and clumps of trees."""
    rng, (u0, v0, u1, v1) = sketch.rng, block
    sketch.add(warp.box(*block), sketch.vary(LAWN if rng.random() < 0.7 else DRY_LAWN))
    frame = warp.frame((u0 + u1) / 2, (v0 + v1) / 2, (0, 1))
    half_a, half_b = (u1 - u0) / 2, (v1 - v0) / 2
    wander = ndimage.gaussian_filter1d(np.repeat(rng.uniform(-0.5, 0.5, 4), 10), 6) * half_b
    path = np.stack([np.linspace(-half_a, half_a, 40), wander], axis=1)
    sketch.add(_band(frame.polygon(path), -1.8, 1.8), CONCRETE)
    clumps = int(4 * half_a * half_b * PX_M**2 / 1e4 * PARK_TREES_PER_HA / 3)
    for a, b in rng.uniform((-half_a, -half_b), (half_a, half_b), (clumps, 2)):
        for _ in range(rng.integers(1, 6)):
            place = frame.at(a + rng.normal(0, 11), b + rng.normal(0, 11))
            sketch.plant(place, sketch.species())


def _plan_school(sketch: _Sketch, warp: _Warp, block: _Block) -> None:
    """Plan a school: two halls, courts, a field in a running track."""
    u0, v0, u1, v1 = block
    sketch.add(warp.box(*block), sketch.vary(DRY_LAWN))
    frame = warp.frame((u0 + u1) / 2, (v0 + v1) / 2, (0, 1))
    half_a, half_b = (u1 - u0) / 2, (v1 - v0) / 2
    for grow_px, paint in ((0, TRACK), (-6, sketch.vary(LAWN))):
        ring = _oval(half_a * 0.3, 0, half_a * 0.6 + grow_px, half_b * 0.85 + grow_px)
        sketch.add(frame.polygon(ring), replace(paint, plantable=False))
    for b in (-0.45, 0.45):
        _add_hall(sketch, frame.moved(-half_a * 0.7, b * half_b), (half_a * 0.2, half_b * 0.3))
    sketch.add(frame.box(-half_a * 0.46, -30, -half_a * 0.36, 30), sketch.vary(TENNIS))


def _plan_waste(sketch: _Sketch, warp: _Warp, block: _Block) -> None:
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


# --- The paint: polygons, plants, sensor ---


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


def _noise(rng: np.random.Generator, scales_px: tuple[float, ...], side_px: int) -> Layer:
    """Return a periodic noise tile of zero mean and unit deviation, mixed from equal scales."""
    total = np.zeros((side_px, side_px), np.float32)
    for scale in scales_px:
        white = rng.standard_normal((side_px, side_px), dtype=np.float32)
        smooth = ndimage.gaussian_filter(white, scale, mode="wrap")
        total += smooth / smooth.std()
    return np.asarray((total - total.mean()) / total.std(), np.float32)


def _fill_polygons(sketch: _Sketch, side_px: int) -> tuple[Layer, Layer, NDArray[np.bool_]]:
    """Fill the plan tile by tile.

    Returns:
        (4, side, side) sunlit DNs, (side, side) light with buildings' shadows, and (side, side)
        whether a plant finds room.
    """
    paints = (ASPHALT, *sketch.paints)
    table = np.array([(*p.colour, p.grain, p.mottle, p.plantable) for p in paints], np.float32)
    order = np.argsort(sketch.layers, kind="stable")
    starts = np.cumsum([0, *(len(corners) for corners in sketch.corners[:-1])])
    low = np.minimum.reduceat(np.concatenate(sketch.corners), starts)[order]
    high = np.maximum.reduceat(np.concatenate(sketch.corners), starts)[order]
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
        grain, mottle = (
            noise[
                np.ix_(
                    np.arange(y0, y0 + rows) % len(noise), np.arange(x0, x0 + columns) % len(noise)
                )
            ]
            for noise in noises
        )
        grain, mottle = 1 + values[..., 4] * grain, values[..., 5] * np.clip(mottle, -1.8, 1.8)
        for band, lean in enumerate(MOTTLE_LEANS):
            canvas[band][box] = values[..., band] * grain * (1 + lean * mottle)
    return canvas, light, open_ground


def _draw(sketch: _Sketch, order: list[int], corner: Floats) -> tuple[NDArray[np.int32], Layer]:
    """Draw polygons into one supersampled tile: paint numbers (0 is the base) and shadow."""
    side = TILE_PX * SUPERSAMPLING
    paints, shadows = Image.new("I", (side, side)), Image.new("L", (side, side))
    on_paints, on_shadows = ImageDraw.Draw(paints), ImageDraw.Draw(shadows)
    for index in order:
        flat = ((sketch.corners[index] - corner) * SUPERSAMPLING - 0.5).ravel().tolist()
        layer = sketch.layers[index]
        if layer != _CASTER:
            on_paints.polygon(flat, fill=index + 1)
        if layer != _GROUND:
            on_shadows.polygon(flat, fill=1 if layer == _CASTER else 0)
    return np.asarray(paints, np.int32), np.asarray(shadows, np.float32)


def _halve(fine: Layer) -> Layer:
    """Average 2 x 2 pixels of a (2h, 2w, channels) array."""
    rows = fine[0::2] + fine[1::2]
    return np.asarray((rows[:, 0::2] + rows[:, 1::2]) / 4, np.float32)


def _plants_with_room(sketch: _Sketch, open_ground: NDArray[np.bool_]) -> Floats:
    """Return (N, 4) plants (x, y, diameter in metres, kind) on open ground and not too close.

    Of two plants too close, the one planned first stays, but a tree always stays over a shrub.
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


def _stamp_plants(canvas: Layer, light: Layer, plants: Floats, *, rng: np.random.Generator) -> None:
    """Stamp crowns and their shadows into canvas and light, from the lowest plant to the tallest.

    A later shadow darkens earlier crowns, and where shadows meet, the ground is shaded once.
    """
    kinds = (*SPECIES, SHRUB)
    lumps = _noise(rng, (1.0, 2.2), FOLIAGE_PX)
    relief = ndimage.shift(lumps, -1.4 * SHADOW_DIRECTION[::-1], order=1, mode="wrap") - lumps
    relief /= relief.std()
    ratios = np.array([kind.height_per_m for kind in kinds])[plants[:, 3].astype(int)]
    heights_m = (plants[:, 2] * ratios + 1.0) * rng.uniform(0.85, 1.15, len(plants))
    heights_m = np.minimum(heights_m, HEIGHT_MAX_M)
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


def _crown(
    centre: tuple[float, float], radius_px: float, species: _Species, foliage: tuple[Layer, Layer]
) -> tuple[Layer, Layer]:
    """Return how far a crown covers each pixel of its square patch, and how lit it is there."""
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


def _expose(canvas: Layer, light: Layer, *, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light the scene, then blur, drift and quantise it as the sensor does; never 0."""
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


def _flight_strip(side_px: int) -> NDArray[np.bool_]:
    """Return (side, side) whether a pixel lies in the slanted quadrilateral that holds data."""
    corners = ((0.045, -0.01), (1.01, 0.03), (0.972, 1.01), (-0.01, 0.962))
    mask = Image.new("1", (side_px, side_px))
    ImageDraw.Draw(mask).polygon([(x * side_px, y * side_px) for x, y in corners], fill=1)
    return np.asarray(mask, np.bool_).copy()
