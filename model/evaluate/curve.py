"""Counts at many score thresholds, the figures computed from them, and their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS: NDArray[np.float64] = np.round(np.arange(0.06, 0.95, 0.02), 2)
"""Score thresholds at which detectors are evaluated."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Counts and figures at one score threshold."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def precision(self) -> float:
        return self.true_positives / max(1, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        return self.true_positives / max(1, self.true_positives + self.false_negatives)

    @property
    def f_score(self) -> float:
        errors = self.false_positives + self.false_negatives
        return 2 * self.true_positives / max(1, 2 * self.true_positives + errors)


@dataclass(frozen=True, slots=True)
class ThresholdCurve:
    """Counts at K ascending score thresholds.

    `threshold` is (K,) float64. `tp`, `fp` and `fn` are (K,) int64: matched predictions, other
    predictions, and objects that no prediction matches, counting predictions with a score of at
    least the threshold. A figure whose denominator is 0 is 0.
    """

    threshold: NDArray[np.float64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.threshold)

    @property
    def precision(self) -> NDArray[np.float64]:
        return self.tp / np.maximum(1, self.tp + self.fp)

    @property
    def recall(self) -> NDArray[np.float64]:
        return self.tp / np.maximum(1, self.tp + self.fn)

    @property
    def f(self) -> NDArray[np.float64]:
        return 2 * self.tp / np.maximum(1, 2 * self.tp + self.fp + self.fn)

    def best(self) -> Scores:
        """Return the figures at the lowest threshold with the highest F-score."""
        return self.row(int(np.argmax(self.f)))

    def at(self, threshold: float) -> Scores:
        """Return the figures at one of the thresholds; ValueError when it is not one of them."""
        return self.row(index_of(self.threshold, threshold))

    def row(self, index: int) -> Scores:
        """Return the figures at the threshold number `index`."""
        counts = (int(column[index]) for column in (self.tp, self.fp, self.fn))
        return Scores(float(self.threshold[index]), *counts)


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of U units (chips, or blocks of ground) at K score thresholds.

    `matched` and `predicted` are (U, K) int64: matched predictions, and all predictions. `true` is
    (U,) int64: the objects. An object and its prediction may lie in different blocks, so only sums
    over units are meaningful.
    """

    threshold: NDArray[np.float64]
    matched: NDArray[np.int64]
    predicted: NDArray[np.int64]
    true: NDArray[np.int64]

    def curve(self) -> ThresholdCurve:
        """Add up all units."""
        matched, predicted = self.matched.sum(axis=0), self.predicted.sum(axis=0)
        return ThresholdCurve(
            self.threshold, matched, predicted - matched, self.true.sum() - matched
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A closed range."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Resampled:
    """95 % bootstrap intervals: of F at one threshold, and of the best threshold itself."""

    f: Interval
    best_threshold: Interval


def bootstrap(
    counts: Counts, threshold: float, *, resamples: int = 1000, seed: int = 0
) -> Resampled:
    """Resample the units with replacement and return 95 % intervals of the figures.

    An interval runs from the 2.5th to the 97.5th percentile of the resamples (Efron & Tibshirani
    1993, section 13.3). It shows how much the figure varies between units like these. It does not
    cover another region, season or sensor, or another training run. Each resample has a best
    threshold of its own; a wide interval of it means that these units do not determine it. When
    the threshold was chosen on the same units, F and its interval are optimistic.
    """
    rng = np.random.default_rng(seed)
    units = len(counts.true)
    draws = rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)
    true_and_predicted = (draws @ counts.true)[:, None] + draws @ counts.predicted
    f = 2 * (draws @ counts.matched) / np.maximum(1, true_and_predicted)
    best = counts.threshold[np.argmax(f, axis=1)]
    return Resampled(_interval(f[:, index_of(counts.threshold, threshold)]), _interval(best))


def index_of(thresholds: NDArray[np.float64], threshold: float) -> int:
    """Return the index of `threshold` in ascending `thresholds`; ValueError when it is missing."""
    index = int(np.abs(thresholds - threshold).argmin())
    if abs(float(thresholds[index]) - threshold) > 1e-9:
        raise ValueError(
            f"expected one of the thresholds, got {threshold}; the nearest is {thresholds[index]}"
        )
    return index


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
