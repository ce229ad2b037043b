"""The order of a published table: boxes that are near each other have rows near each other.

Source: D. Hilbert, "Ueber die stetige Abbildung einer Linie auf ein Flaechenstueck", 1891. The
curve visits all cells of a square, always from a cell to its neighbour.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BITS = 16
"""The square has 2**BITS cells along each side."""


def hilbert_codes(xyxy: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint32]:
    """Return the place (N,) of the centres of boxes (N, 4) on a Hilbert curve.

    Boxes are in scene pixels. `size` is the scene's width and height: the curve fills the square
    of its longer side. So the place of a box does not depend on other boxes.
    """
    side = 2**BITS
    x, y = (_cells((xyxy[:, i] + xyxy[:, i + 2]) / 2, max(size)) for i in (0, 1))
    codes = np.zeros(len(xyxy), np.uint32)
    for bit in reversed(range(BITS)):
        right, lower = (x >> bit) & 1, (y >> bit) & 1
        codes |= ((3 * right) ^ lower) << np.uint32(2 * bit)
        # In two of the four quadrants, the curve inside is turned: swap the axes there, and in
        # the right one of them mirror them too.
        turned = lower == 0
        mirror = np.where(turned & (right == 1), np.uint32(side - 1), np.uint32(0))
        x, y = x ^ mirror, y ^ mirror
        x, y = np.where(turned, y, x), np.where(turned, x, y)
    return codes


def _cells(centres_px: NDArray[np.float64], side_px: int) -> NDArray[np.uint32]:
    """Return the cells of coordinates along one side of the square."""
    last = 2**BITS - 1
    return np.clip(centres_px * (2**BITS / side_px), 0, last).astype(np.uint32)
