"""The frame of the map: web Mercator in whole units, with a west edge where no scene lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BITS = 30
"""The map is 2**30 units wide: a unit is 3.7 cm at the equator, and 31 bits hold it with a sign."""
UNITS = 2**BITS
_MOST_LATITUDE = 85.051128  # beyond it, web Mercator is taller than wide


@dataclass(frozen=True, slots=True)
class Frame:
    """Web Mercator (EPSG:3857) with its origin at the north-west corner, y downwards.

    `west` is the longitude of the left edge.
    """

    west: float

    @classmethod
    def around(cls, longitudes: Sequence[float]) -> Frame:
        """Return the frame whose left edge is in the widest gap between longitudes."""
        if not longitudes:
            return cls(-180.0)
        turns = np.sort(np.mod(longitudes, 360.0))
        gaps = np.diff(turns, append=turns[0] + 360)
        widest = int(np.argmax(gaps))
        west = float(turns[widest] + gaps[widest] / 2)
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
        lat = np.radians(np.clip(latitude, -_MOST_LATITUDE, _MOST_LATITUDE))
        y = 0.5 - np.arcsinh(np.tan(lat)) / (2 * np.pi)
        return np.stack([degrees / 360, y], axis=-1) * UNITS
