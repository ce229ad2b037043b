"""The frame of the map: web Mercator in whole units, with a west edge where no scene lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.pipeline.publish.formats.centres import MOST_LATITUDE

BITS = 30
"""The map is 2**30 units wide: a unit is 3.7 cm at the equator, and 31 bits hold it with a sign."""
UNITS = 2**BITS


@dataclass(frozen=True, slots=True)
class Frame:
    """Web Mercator (EPSG:3857) with its origin at the north-west corner, y downwards.

    It ends at `MOST_LATITUDE`: projected points beyond lie on the edge.
    `west` is the longitude of the left edge.
    """

    west: float

    @classmethod
    def around(cls, intervals: Sequence[tuple[float, float]]) -> Frame:
        """Return the frame whose left edge is in the widest gap between intervals of longitude.

        Each interval is west, east in degrees, with west <= east. If they leave no gap, the left
        edge is where they overlap least.
        """
        if not intervals:
            return cls(-180.0)
        lows, highs = np.array(intervals, np.float64).T
        order = np.argsort(np.mod(lows, 360), kind="stable")
        starts = np.mod(lows, 360)[order]
        reached = np.maximum.accumulate(starts + np.minimum(highs - lows, 360)[order])
        # The last ones may reach round the globe, beyond the first ones.
        before = np.maximum(np.append(-np.inf, reached[:-1]), reached[-1] - 360)
        widest = int(np.argmax(starts - before))
        west = float(starts[widest] + before[widest]) / 2
        return cls((west + 180) % 360 - 180)

    def project(self, lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
        """Project points (N, 2) in degrees to units (N, 2) of the map, each on its own."""
        return self._project((lonlat[:, 0] - self.west) % 360, lonlat[:, 1])

    def project_line(self, lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
        """Project a line (N, 2) in degrees to units (N, 2), without a jump at the left edge.

        The longitudes of the line must be continuous.
        """
        middle = (lonlat[:, 0].min() + lonlat[:, 0].max()) / 2
        return self._project((middle - self.west) % 360 + (lonlat[:, 0] - middle), lonlat[:, 1])

    def _project(
        self, degrees: NDArray[np.float64], latitude: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        lat = np.radians(np.clip(latitude, -MOST_LATITUDE, MOST_LATITUDE))
        y = 0.5 - np.arcsinh(np.tan(lat)) / (2 * np.pi)
        return np.stack([degrees / 360, y], axis=-1) * UNITS
