"""The number of correct detections that calibrated probabilities promise, with an interval.

If each detection is correct with its own probability, independently of the others, the number of
correct ones has a Poisson binomial distribution. Its distribution function is approximated by the
refined normal approximation, which corrects the normal one for skewness (Volkova 1996, "A
refinement of the central limit theorem for sums of independent random indicators"; Hong 2013, "On
computing the distribution function for the Poisson binomial distribution", section 2.4):

    P(X <= k) ~ G((k + 0.5 - mean) / sd),   G(x) = cdf(x) + skewness (1 - x^2) pdf(x) / 6

It needs three sums per polygon, so detections can be streamed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
Floats = NDArray[np.float64]
_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the detections of each polygon, (N,) each.

    `mean` sums p, `variance` p (1 - p), `third` p (1 - p) (1 - 2 p), and `count` the detections
    that have a probability p.
    """

    mean: Floats
    variance: Floats
    third: Floats
    count: Floats


def moments(p: Floats) -> Floats:
    """Return the terms of `Sums` for probabilities (N,), as rows of (4, N)."""
    variance = p * (1 - p)
    return np.stack([p, variance, variance * (1 - 2 * p), np.ones_like(p)])


def interval(sums: Sums, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Return the lowest and highest number of correct detections, both included.

    A smaller number has a probability of at most (1 - level) / 2, and so has a larger one. The
    interval is about the detections: objects that were not detected are not in it.
    """
    tail = (1 - level) / 2
    low, high = _quantile(sums, tail), _quantile(sums, 1 - tail)
    return np.clip(low, 0, sums.count), np.clip(high, 0, sums.count)


def _quantile(sums: Sums, share: float) -> Floats:
    """Return the smallest whole numbers k with P(X <= k) >= share."""
    below, above = np.full(len(sums.mean), -1.0), sums.count.copy()
    for _ in range(_HALVINGS):
        middle = np.floor((below + above) / 2)
        reached = _distribution(sums, middle) >= share
        above = np.where(reached, middle, above)
        below = np.where(reached, below, middle)
        if (above - below <= 1).all():
            break
    return above


def _distribution(sums: Sums, k: Floats) -> Floats:
    from scipy.special import ndtr  # slow to import

    sd = np.sqrt(np.maximum(sums.variance, 1e-12))
    x = (k + 0.5 - sums.mean) / sd
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    refined = ndtr(x) + sums.third / sd**3 * (1 - x * x) * density / 6
    return np.where(k >= sums.count, 1.0, np.where(k < 0, 0.0, np.clip(refined, 0, 1)))
