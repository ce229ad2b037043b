"""The interval of the expected number holds as often as it says, in simulations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from scenesweep.pipeline.results.expected import Sums, interval, moments


def poisson_binomial(p: np.ndarray) -> np.ndarray:
    """Return the exact probabilities of 0 to N successes, by adding one trial at a time."""
    exact = np.ones(1)
    for one in p:
        exact = np.convolve(exact, [1 - one, one])
    return exact


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 30, 100, 1000])
@pytest.mark.parametrize("shape", [(1, 1), (5, 2), (0.5, 0.5), (1, 9), (9, 1)])
def test_the_interval_covers_its_share(count: int, shape: tuple[float, float]) -> None:
    """Of simulated numbers of correct detections, at least 95 % lie in it (with sampling error)."""
    rng = np.random.default_rng(count)
    p = rng.beta(*shape, (300, count))
    sums = Sums(*np.stack([moments(row).sum(axis=1) for row in p], axis=1))
    low, high = interval(sums)
    correct = (rng.random((100, 300, count)) < p).sum(axis=2)
    covered = (correct >= low) & (correct <= high)
    assert covered.mean() >= 0.945
    assert (low == np.round(low)).all()
    assert (low <= np.ceil(sums.mean)).all()
    assert (np.floor(sums.mean) <= high).all()


def test_the_interval_is_as_narrow_as_the_exact_one() -> None:
    rng = np.random.default_rng(1)
    for count, _ in product((20, 100, 300), range(20)):
        p = rng.random(count)
        low, high = interval(Sums(*moments(p).sum(axis=1)[:, None]))
        below = np.cumsum(poisson_binomial(p))
        exact = np.searchsorted(below, [0.025, 0.975])
        assert np.abs(np.array([low[0], high[0]]) - exact).max() <= 1


def test_certain_detections_have_no_interval() -> None:
    sums = Sums(*np.stack([moments(np.array(p)).sum(axis=1) for p in ([1.0, 1.0, 0.0], [])], 1))
    low, high = interval(sums)
    assert low.tolist() == high.tolist() == sums.mean.tolist() == [2, 0]
