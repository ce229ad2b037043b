"""Counts at many score thresholds, the figures made of them, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS: NDArray[np.float64] = np.round(np.arange(0.06, 0.95, 0.02), 2)
"""Score thresholds at which detectors are compared."""


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

    `threshold` is (K,) float64; `tp`, `fp` and `fn` are (K,) int64: matched predictions,
    other predictions, and objects without a prediction among those that score the threshold
    or more. A figure without anything to divide by is 0.
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
        """Return the figures at one of the thresholds; ValueError when it is not among them."""
        return self.row(index_of(self.threshold, threshold))

    def row(self, index: int) -> Scores:
        """Return the figures at the threshold number `index`."""
        counts = (int(column[index]) for column in (self.tp, self.fp, self.fn))
        return Scores(float(self.threshold[index]), *counts)


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of U places (chips, or blocks of ground) at K score thresholds.

    `hits` and `found` are (U, K) int64: matched and all predictions. `true` is (U,) int64: the
    objects. An object and its prediction may lie in different blocks, so only sums over places
    are figures.
    """

    threshold: NDArray[np.float64]
    hits: NDArray[np.int64]
    found: NDArray[np.int64]
    true: NDArray[np.int64]

    def curve(self) -> ThresholdCurve:
        """Add up all places."""
        hits = self.hits.sum(axis=0)
        return ThresholdCurve(
            self.threshold, hits, self.found.sum(axis=0) - hits, self.true.sum() - hits
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
    """Draw the places again, with replacement, and see how the figures vary.

    The interval runs from the 2.5th to the 97.5th percentile of the resamples (Efron &
    Tibshirani 1993, section 13.3). It says how far the figure would move with other places of
    the same kind: the spread between chips of this set, not a change of region, season or
    sensor, nor another training run. The best threshold is sought anew in each resample; a wide
    interval says that these places do not settle it. F at a threshold that was chosen on the
    same places is too kind, and so is its interval.
    """
    rng = np.random.default_rng(seed)
    places = len(counts.true)
    draws = rng.multinomial(places, np.full(places, 1 / places), size=resamples).astype(np.float64)
    objects_and_found = (draws @ counts.true)[:, None] + draws @ counts.found
    f = 2 * (draws @ counts.hits) / np.maximum(1, objects_and_found)
    best = counts.threshold[np.argmax(f, axis=1)]
    return Resampled(_middle(f[:, index_of(counts.threshold, threshold)]), _middle(best))


def index_of(thresholds: NDArray[np.float64], threshold: float) -> int:
    """Return where a threshold stands among ascending ones; ValueError when it does not."""
    index = int(np.abs(thresholds - threshold).argmin())
    if abs(float(thresholds[index]) - threshold) > 1e-9:
        raise ValueError(
            f"no figures at a threshold of {threshold}, the nearest is {thresholds[index]}"
        )
    return index


def _middle(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
