"""The ground of one scene on the map: its outline, and what of it was observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from scenesweep.pipeline.geometry.areas import area_km2
from scenesweep.pipeline.results.observed import observed_ground
from scenesweep.pipeline.results.tables import open_scene_table
from scenesweep.pipeline.results.unique import DateScenes
from scenesweep.pipeline.results.view.about import LATTICE, lattice
from scenesweep.pipeline.results.view.night.frame import Frame
from scenesweep.pipeline.results.view.published import PublishedScene
from scenesweep.pipeline.results.zones import Polygons
from scenesweep.pipeline.storage.location import Location

_DETAIL = 1 / 400  # of the scene's size; finer corners cannot be seen at the scale of a scene
_MOST_PARTS = 200
Ring = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ground:
    """The ground of a scene, in degrees; longitudes of a ring are continuous.

    `outline` is the closed ring of the raster's edge. `observed` are polygons in OGC:CRS84, or
    the part of the scene that the run was to look at when there is no coverage file; then it is
    `estimated`. `lattice` is of `pipeline.results.view.about`.
    """

    outline: Ring
    observed: Polygons
    estimated: bool
    lattice: NDArray[np.float64]

    @property
    def longitudes(self) -> tuple[float, float]:
        """West and east of the outline; east may be above 180."""
        longitudes = self.outline[:, 0]
        return float(longitudes.min()), float(longitudes.max())


def ground_of(published: PublishedScene, date: str, out: Location) -> Ground | None:
    """Return the ground of a scene; None without georeference.

    Raises:
        UnreadableOutput: when its coverage file cannot be read.
    """
    points = lattice(published)
    if points is None or published.provenance is None:
        return None
    scene = open_scene_table(published.table)
    ground = observed_ground(DateScenes(date, (scene,), 0, {}), out, estimate=True)
    return Ground(
        _edge(points),
        ground.parts,
        ground.without > 0,
        points,
    )


def observed_km2(grounds: Sequence[Ground]) -> list[float]:
    """Return the observed area of each ground."""
    owner = np.repeat(np.arange(len(grounds)), [len(ground.observed) for ground in grounds])
    parts = np.concatenate([ground.observed for ground in grounds])
    # One call for all: to set up its projection takes longer than to measure a scene.
    areas: list[float] = np.bincount(owner, area_km2(parts), len(grounds)).tolist()
    return areas


def rings_of(ground: Ground, frame: Frame) -> list[NDArray[np.int32]]:
    """Return rings (N, 2) of the map: first the outline, then those of the observed ground.

    The rings of the observed ground are to be filled by the even-odd rule. Small details are left
    out, and of very many parts the smallest.
    """
    west, south, east, north = shapely.bounds(shapely.LineString(ground.outline))
    detail = max(east - west, north - south) * _DETAIL
    parts = shapely.get_parts(shapely.simplify(ground.observed, detail))
    parts = parts[shapely.area(parts) > 0]
    largest = np.argsort(-shapely.area(parts), kind="stable")[:_MOST_PARTS]
    rings = shapely.get_rings(parts[np.sort(largest)])
    lines = [ground.outline, *(shapely.get_coordinates(ring) for ring in rings)]
    return [np.rint(frame.project_line(line)).astype(np.int32) for line in lines]


def axes_of(ground: Ground, size: tuple[int, int], frame: Frame) -> list[float]:
    """Return how a pixel's sides lie on the map at the scene's middle: units right, down.

    The four numbers are x and y of a step to the next column, then to the next row.
    """
    middle = LATTICE // 2
    along = ground.lattice[middle, [middle - 1, middle + 1]]
    down = ground.lattice[[middle - 1, middle + 1], middle]
    steps = np.array(size) * 2 / (LATTICE - 1)
    vectors = [np.diff(frame.project_line(line), axis=0)[0] for line in (along, down)]
    return [float(f"{value:.7g}") for value in np.ravel(np.array(vectors) / steps[:, None])]


def _edge(points: NDArray[np.float64]) -> Ring:
    """Return the closed ring around a lattice (17, 17, 2)."""
    sides = (points[0, :-1], points[:-1, -1], points[-1, :0:-1], points[::-1, 0])
    return np.concatenate(sides)
