"""Cells of the H3 grid as zones: those that have a detection or were observed.

H3 is a hierarchical grid of hexagons (Brodsky 2018, "H3: Uber's hexagonal hierarchical spatial
index"). The package `h3` is the extra `h3`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import shapely
from numpy.typing import NDArray

from scenesweep.model.errors import needs_extra
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.geometry.areas import area_km2
from scenesweep.pipeline.planning.footprint import in_first_turn, over_the_pole
from scenesweep.pipeline.results.zones import Numbers, Polygons

MOST_CELLS = 5_000_000
"""Cells of observed ground. Each needs some hundred bytes, and a row for each date."""
_HALF_TURN_DEG = 180


@dataclass(slots=True)
class Cells:
    """H3 cells of one resolution, numbered in the order in which they were first met."""

    resolution: int
    numbers: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with needs_extra("h3"):
            import h3  # noqa: F401

    def __len__(self) -> int:
        return len(self.numbers)

    def locate(self, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> tuple[Numbers, Numbers]:
        """Return pairs of a point's number and the number of its cell, as `Zones.locate`."""
        from h3.api import basic_int as h3

        of, resolution = h3.latlng_to_cell, self.resolution
        found = [of(y, x, resolution) for x, y in zip(lon.tolist(), lat.tolist(), strict=True)]
        cells, inverse = np.unique(np.array(found, np.uint64), return_inverse=True)
        return np.arange(len(lon)), self._numbered(cells.tolist())[inverse]

    def add_observed(self, ground: Polygons) -> None:
        """Add the cells whose centres lie in polygons, so that empty cells are counted too.

        Raises:
            UsageError: when there are more than `MOST_CELLS`.
        """
        from h3.api import basic_int as h3

        cell_km2 = h3.average_hexagon_area(self.resolution, unit="km^2")
        count = float(area_km2(ground).sum()) / cell_km2
        if count > MOST_CELLS:
            raise UsageError(
                f"--h3 {self.resolution}: the observed ground has about {count:,.0f} cells, and "
                f"{MOST_CELLS:,} fit; choose a lower resolution"
            )
        for polygon in ground:
            self._numbered(sorted(h3.geo_to_cells(polygon, self.resolution)))

    def names(self) -> list[str]:
        """Return the ids of the cells, as H3 writes them in hexadecimal digits."""
        return [f"{cell:x}" for cell in self.numbers]

    def polygons(self) -> Polygons:
        """Return the outlines of the cells in degrees, split at the antimeridian."""
        from h3.api import basic_int as h3

        rings = [h3.cell_to_boundary(cell) for cell in self.numbers]
        owner = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
        points = np.array([point for ring in rings for point in ring]).reshape(-1, 2)[:, ::-1]
        polygons = np.asarray(
            shapely.polygons(shapely.linearrings(points, indices=owner)), dtype=object
        )
        west, _, east, _ = shapely.bounds(polygons).reshape(-1, 4).T
        for number in np.flatnonzero(east - west > _HALF_TURN_DEG):
            polygons[number] = _in_one_piece(polygons[number])
        return polygons

    def _numbered(self, cells: list[int]) -> Numbers:
        numbers = self.numbers
        return np.array([numbers.setdefault(cell, len(numbers)) for cell in cells], np.int64)


def _in_one_piece(polygon: shapely.Polygon) -> shapely.Geometry:
    """Return a polygon across the antimeridian, split there, or round a pole, closed over it."""
    ring = shapely.get_coordinates(polygon)
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)
    if abs(ring[-1, 0] - ring[0, 0]) > _HALF_TURN_DEG:
        ring = over_the_pole(ring)
    ring[-1] = ring[0]  # rounding may have left a gap, and GEOS then returns the outside
    return in_first_turn(shapely.Polygon(ring))
