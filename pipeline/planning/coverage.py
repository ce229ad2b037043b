"""The ground of a scene that was observed: valid pixels in the area of interest, not masked.

It follows from the decimated mask that planning uses (`pipeline.planning.mask`), so it costs a
bounded number of decoded pixels, and its borders are exact to about one sample of that mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon

from scenesweep.pipeline.geometry.areas import area_km2
from scenesweep.pipeline.geometry.georef import point_on_earth, to_lonlat, to_map
from scenesweep.pipeline.planning.area import polygons_of
from scenesweep.pipeline.planning.footprint import (
    DECIMALS,
    encloses_pole,
    footprint,
    in_first_turn,
    moved_to_earth,
)
from scenesweep.pipeline.planning.mask import Mask
from scenesweep.pipeline.raster.quality import Quality, masked_shares
from scenesweep.pipeline.scene import Scene

_MOST_CELLS, _MOST_MASKED_CELLS = 4_000_000, 1_000_000
_STEP_PX = 16
_MOST = 0.5  # a cell is observed if at least this share of it is
_MOST_SIDES = 20_000  # of cells, on the border of the ground: most vertices of its polygons
_SMOOTHING = 0.75  # of a cell: turns the stairs of a slanted border into a line
_COARSEST = 0.1  # of the extent: thousands of separate patches have too many vertices at any rate
_SEGMENTS = 16  # along the longer side of a scene: a straight edge is a curve in degrees

Ground = Polygon | MultiPolygon


@dataclass(frozen=True, slots=True)
class Coverage:
    """The ground of a scene that was observed.

    `ground` is in OGC:CRS84 and has no polygon if nothing was observed. `masked_km2` is the ground
    with valid pixels that the scene's mask hides, None without a mask. Where planning could not
    afford to look at all samples of valid pixels, these count as valid, and `exact` is False.
    """

    ground: Ground
    observed_km2: float
    masked_km2: float | None = None
    exact: bool = True


def coverage_of(
    scene: Scene, searched: Ground | None, quality: Quality | None = None
) -> Coverage | None:
    """Return the observed ground of a scene, given its ground inside the area of interest.

    None when the scene has no georeference, or its CRS cannot place its outline.
    """
    if searched is None:
        return None
    cells, exact = _valid_cells(scene, most=_MOST_CELLS if quality is None else _MOST_MASKED_CELLS)
    valid = _ground_of(cells, scene, searched)
    if valid is None:
        return Coverage(searched, _km2(searched), exact=False)
    if quality is None:
        return Coverage(valid, _km2(valid), exact=exact)
    clear = _ground_of(cells.without(masked_cells(cells, scene, quality)), scene, searched)
    if clear is None:
        return Coverage(searched, _km2(searched), exact=False)
    observed = _km2(clear)
    return Coverage(clear, observed, max(0.0, _km2(valid) - observed), exact)


def _valid_cells(scene: Scene, *, most: int) -> tuple[Cells, bool]:
    """Return the share of valid pixels in the cells of a scene, and whether it is exact."""
    if scene.masked:
        mask = Mask.of(scene)
        return Cells.of(mask.valid, mask.step, most=most), mask.exact
    step = max(_STEP_PX, math.ceil(math.sqrt(scene.width * scene.height / most)))
    rows, columns = -(-scene.height // step), -(-scene.width // step)
    return Cells(np.ones((rows, columns), np.float32), (float(step), float(step))), True


def _ground_of(cells: Cells, scene: Scene, searched: Ground) -> Ground | None:
    """Return the searched ground in the observed cells; None if a CRS cannot place them."""
    if (cells.shares >= 1).all():
        return searched
    placed = placed_on_earth(patches(cells, (scene.width, scene.height)), scene)
    if placed is None:
        return None
    return polygons_of(shapely.intersection(placed, shapely.make_valid(searched)))


def masked_cells(cells: Cells, scene: Scene, quality: Quality) -> NDArray[np.float32]:
    """Return the share of each cell that is masked; 0 where the mask does not reach."""
    rows, columns = cells.shares.shape
    left, top = np.arange(columns) * cells.step[0], np.arange(rows) * cells.step[1]
    x0, y0 = (edges.ravel() for edges in np.meshgrid(left, top))
    x1 = np.minimum(x0 + cells.step[0], scene.width)
    y1 = np.minimum(y0 + cells.step[1], scene.height)
    shares = masked_shares(quality, np.stack([x0, y0, x1, y1], axis=1), scene)
    return np.nan_to_num(shares).reshape(rows, columns).astype(np.float32)


def _km2(ground: Ground) -> float:
    return float(area_km2(np.array([ground], object))[0])


@dataclass(frozen=True, slots=True)
class Cells:
    """The share (rows, columns) of each cell of a scene that was observed.

    `step` is the width and height of a cell in scene pixels. Cells of the last row and column may
    reach over the edge of the scene.
    """

    shares: NDArray[np.float32]
    step: tuple[float, float]

    @classmethod
    def of(cls, flags: NDArray[np.bool_], step: tuple[float, float], *, most: int) -> Cells:
        """Return at most so many cells of flags (rows, columns), which have this `step`."""
        factor = math.ceil(math.sqrt(flags.size / most))
        return cls(_means(flags, factor), (factor * step[0], factor * step[1]))

    def without(self, hidden: NDArray[np.float32]) -> Cells:
        """Return the cells less the share of each that is hidden."""
        return replace(self, shares=self.shares * (1 - hidden))

    def larger(self, factor: int) -> Cells:
        """Return cells that are so many times as long and as high."""
        return Cells(_means(self.shares, factor), (factor * self.step[0], factor * self.step[1]))


def _means(values: NDArray[np.float32] | NDArray[np.bool_], factor: int) -> NDArray[np.float32]:
    """Return the means of square blocks of cells; the last ones may be smaller."""
    rows, columns = (np.arange(0, length, factor) for length in values.shape)
    down = np.add.reduceat(values, rows, axis=0, dtype=np.float32)
    sums = np.add.reduceat(down, columns, axis=1)
    high, wide = (
        np.diff(starts, append=length)
        for starts, length in zip((rows, columns), values.shape, strict=True)
    )
    return np.divide(sums, high[:, None] * wide, dtype=np.float32)


def patches(cells: Cells, size: tuple[int, int]) -> Ground:
    """Return polygons, in scene pixels, of the cells of which at least half was observed.

    `size` is the width and height of the scene. Cells are made larger until their common border
    is short, so that a scattered mask gives polygons of bounded size too.
    """
    factor, larger = 1, cells
    while _sides(larger.shares >= _MOST) > _MOST_SIDES:
        factor *= 2
        larger = cells.larger(factor)
    step_x, step_y = larger.step
    row, start, stop = _runs(larger.shares >= _MOST)
    boxes = shapely.box(start * step_x, row * step_y, stop * step_x, (row + 1) * step_y)
    tolerance = _SMOOTHING * max(step_x, step_y)
    smooth = shapely.make_valid(shapely.simplify(shapely.union_all(boxes), tolerance))
    return polygons_of(shapely.intersection(smooth, shapely.box(0, 0, *size)))


def _runs(flags: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return row, first column and last column plus one of each run of true flags in a row."""
    steps = np.diff(np.pad(flags.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row, start = np.nonzero(steps == 1)
    return row, start, np.nonzero(steps == -1)[1]


def _sides(flags: NDArray[np.bool_]) -> int:
    """Return the number of sides of cells between true and false ones."""
    across, down = flags[:, 1:] != flags[:, :-1], flags[1:] != flags[:-1]
    return int(across.sum()) + int(down.sum())


def few_vertices(ground: Ground, most: int = 1_000) -> Ground:
    """Return polygons in degrees with at most so many vertices: the longer, the coarser."""
    west, south, east, north = ground.bounds
    tolerance, simple = max(east - west, north - south) / (10 * most), ground
    while len(shapely.get_coordinates(simple)) > most:
        simple = polygons_of(shapely.make_valid(shapely.simplify(ground, tolerance)))
        if tolerance > _COARSEST * max(east - west, north - south):
            return polygons_of(shapely.convex_hull(ground))
        tolerance *= 2
    return simple


def placed_on_earth(ground_px: Ground, scene: Scene) -> Ground | None:
    """Move polygons from scene pixels to OGC:CRS84, split at the antimeridian.

    None where that is not possible: around a pole, or off the Earth.
    """
    outline = footprint(scene)
    assert scene.crs is not None
    assert scene.transform is not None
    crs, transform = scene.crs, scene.transform
    centre = point_on_earth((scene.width, scene.height), crs, transform)
    if outline is None or centre is None or encloses_pole(scene):
        return None
    middle = to_lonlat(to_map(centre, transform), crs)[0]

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        if scene.off_earth:
            points = moved_to_earth(points, scene)
        lonlat = to_lonlat(to_map(points, transform), crs).round(DECIMALS)
        lonlat[:, 0] -= 360 * np.round((lonlat[:, 0] - middle) / 360)
        return lonlat

    fine = shapely.segmentize(ground_px, max(scene.width, scene.height) / _SEGMENTS)
    placed = shapely.transform(fine, place)
    if not np.isfinite(shapely.get_coordinates(placed)).all():
        return None
    if placed.is_empty:
        return placed
    return polygons_of(in_first_turn(shapely.make_valid(placed)))
