"""Judge detections against truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import KDTree

from model.boxes import ChipDetector

_UNMATCHED_COST = 1e4  # in radii: no chain of matches saves so much distance as one match more


@dataclass(frozen=True, slots=True)
class PointScores:
    """Counts and figures of a point comparison at one score threshold."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    rmse: float
    """Root mean square distance of the matched pairs, in the unit of the points."""

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
class PointSample:
    """Predicted points (P, 2) with scores (P,), and true points (T, 2), of one chip or scene."""

    predicted: NDArray[np.float64]
    score: NDArray[np.float32]
    true: NDArray[np.float64]


def point_samples(
    detector: ChipDetector, chips: NDArray[np.uint8], points: Sequence[NDArray[np.float64]]
) -> list[PointSample]:
    """Detect on chips (N, bands, S, S) and pair box centres with the true points of each chip."""
    boxes = detector.detect(chips).boxes
    samples = []
    for chip, true in enumerate(points):
        here = boxes.take(boxes.chip == chip)
        samples.append(PointSample(here.centres(), here.score, true))
    return samples


def match_points(
    predicted: NDArray[np.float64], true: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Match points one to one within `radius`: as many as possible, then as near as possible.

    `predicted` is (P, 2) and `true` (T, 2) in one frame. Returns the matched indices of both
    and their distances. This is the optimal assignment of Ventura et al. 2024, solved on the
    sparse graph of pairs within reach, so whole scenes can be compared at once.
    """
    if len(predicted) == 0 or len(true) == 0:
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
    near = KDTree(predicted).sparse_distance_matrix(KDTree(true), radius, output_type="coo_matrix")
    n, t = len(predicted), len(true)
    # One private spare column per prediction makes a full matching always possible. Zero would
    # mean "no edge", so each cost is one radius more than the distance.
    rows = np.concatenate([near.row, np.arange(n)])
    columns = np.concatenate([near.col, t + np.arange(n)])
    costs = np.concatenate([near.data + radius, np.full(n, _UNMATCHED_COST * radius)])
    graph = coo_array((costs, (rows, columns)), shape=(n, t + n)).tocsr()
    left, right = min_weight_full_bipartite_matching(graph)
    real = right < t
    left, right = left[real], right[real]
    return left, right, np.linalg.norm(predicted[left] - true[right], axis=1)


def score_points(samples: Sequence[PointSample], *, radius: float, threshold: float) -> PointScores:
    """Compare every sample at one score threshold and add up the counts."""
    tp = fp = fn = 0
    squares = 0.0
    for sample in samples:
        kept = sample.predicted[sample.score >= threshold]
        matched, _, distances = match_points(kept, sample.true, radius)
        tp += len(matched)
        fp += len(kept) - len(matched)
        fn += len(sample.true) - len(matched)
        squares += float((distances**2).sum())
    rmse = float(np.sqrt(squares / tp)) if tp else float("nan")
    return PointScores(threshold, tp, fp, fn, rmse)


def best_points(samples: Sequence[PointSample], *, radius: float) -> PointScores:
    """Return the figures at the threshold, in steps of 0.02, with the highest F-score."""
    thresholds = np.round(np.arange(0.06, 0.95, 0.02), 2)
    scores = [score_points(samples, radius=radius, threshold=float(t)) for t in thresholds]
    return max(scores, key=lambda s: s.f_score)
