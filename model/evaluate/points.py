"""Match points with true points."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import KDTree

from scenesweep.model.boxes import Boxes
from scenesweep.model.evaluate.curve import THRESHOLDS, Scores

_UNMATCHED_COST = 1e4  # in radii: one more match is always worth more than any distance saved


@dataclass(frozen=True, slots=True)
class PointScores(Scores):
    """Counts and figures of matched points at one score threshold."""

    rmse: float
    """Root mean square distance of matched pairs, in the unit of the points; NaN without pairs."""


@dataclass(frozen=True, slots=True)
class PointComparison:
    """Predicted points (P, 2) with scores (P,), and true points (T, 2), of one chip or scene."""

    predicted: NDArray[np.float64]
    score: NDArray[np.float32]
    true: NDArray[np.float64]


def match_points(
    predicted: NDArray[np.float64], true: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Match points one to one within `radius`: as many pairs as possible, then the shortest sum.

    `predicted` is (P, 2) and `true` (T, 2) in one frame. Returns the matched indices of both and
    their distances. This is the optimal assignment of Ventura et al. 2024. It is solved on the
    sparse graph of pairs within `radius`, so it works for complete scenes.
    """
    if len(predicted) == 0 or len(true) == 0:
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
    near = KDTree(predicted).sparse_distance_matrix(KDTree(true), radius, output_type="coo_matrix")
    n, t = len(predicted), len(true)
    # Each prediction gets a spare column of its own, so a full matching always exists. In a sparse
    # array a cost of zero would mean "no edge", so each cost is the distance plus one radius.
    rows = np.concatenate([near.row, np.arange(n)])
    columns = np.concatenate([near.col, t + np.arange(n)])
    costs = np.concatenate([near.data + radius, np.full(n, _UNMATCHED_COST * radius)])
    graph = coo_array((costs, (rows, columns)), shape=(n, t + n)).tocsr()
    left, right = min_weight_full_bipartite_matching(graph)
    real = right < t
    left, right = left[real], right[real]
    return left, right, np.linalg.norm(predicted[left] - true[right], axis=1)


def claim_points(
    predicted: Boxes, true: NDArray[np.float64], label: NDArray[np.int64], *, radius: float
) -> NDArray[np.bool_]:
    """Say of each prediction (P,) whether it adds a pair to the matching of those above it.

    Predictions are taken in descending order of score. `true` is (T, 2), the centres of the
    objects, and `label` (T,) their classes.

    The sets of predictions that can be matched together form a matroid (Edmonds & Fulkerson
    1965). So for every threshold, the number of True values above it is the number of pairs that
    `match_points` finds there: one pass is enough for all thresholds.
    """
    adds = np.zeros(len(predicted), np.bool_)
    order = np.argsort(-predicted.score, kind="stable")
    if len(predicted) == 0 or len(true) == 0:
        return adds
    trees = KDTree(predicted.centres()[order]), KDTree(true)
    near = trees[0].sparse_distance_matrix(trees[1], radius, output_type="coo_matrix")
    same = predicted.label[order][near.row] == label[near.col]
    reach: list[list[int]] = [[] for _ in order]
    nearest_first = np.argsort(near.data[same], kind="stable")
    rows, columns = near.row[same][nearest_first], near.col[same][nearest_first]
    for p, t in zip(rows.tolist(), columns.tolist(), strict=True):
        reach[p].append(t)
    adds[order] = _augmenting(reach, len(true))
    return adds


def score_points(
    comparisons: Sequence[PointComparison], *, radius: float, threshold: float
) -> PointScores:
    """Match the points of every comparison at one score threshold and add up the counts."""
    tp = fp = fn = 0
    squares = 0.0
    for comparison in comparisons:
        kept = comparison.predicted[comparison.score >= threshold]
        matched, _, distances = match_points(kept, comparison.true, radius)
        tp += len(matched)
        fp += len(kept) - len(matched)
        fn += len(comparison.true) - len(matched)
        squares += float((distances**2).sum())
    rmse = float(np.sqrt(squares / tp)) if tp else float("nan")
    return PointScores(threshold, tp, fp, fn, rmse)


def best_point_scores(comparisons: Sequence[PointComparison], *, radius: float) -> PointScores:
    """Return the figures at the threshold, in steps of 0.02, with the highest F-score."""
    scores = [score_points(comparisons, radius=radius, threshold=float(t)) for t in THRESHOLDS]
    return max(scores, key=lambda s: s.f_score)


def _augmenting(reach: list[list[int]], true: int) -> list[bool]:
    """Say of each prediction in turn whether an augmenting path leads from it to a free object.

    `reach` lists the objects within the radius of each prediction. The objects that a failed
    search visited are closed: no later path can go through them.
    """
    owner, held, closed = [-1] * true, [-1] * len(reach), [False] * true
    augmenting = []
    for start in range(len(reach)):
        came_from: dict[int, int] = {}
        end = _free_object(start, reach, owner, closed, came_from)
        augmenting.append(end >= 0)
        if end < 0:
            for t in came_from:
                closed[t] = True
        while end >= 0:  # move back along the path: each prediction takes the next object
            p = came_from[end]
            owner[end], held[p], end = p, end, held[p]
    return augmenting


def _free_object(
    start: int,
    reach: list[list[int]],
    owner: list[int],
    closed: list[bool],
    came_from: dict[int, int],
) -> int:
    """Search breadth first for an object without an owner; return -1 when there is none."""
    queue = deque([start])
    while queue:
        p = queue.popleft()
        for t in reach[p]:
            if t in came_from or closed[t]:
                continue
            came_from[t] = p
            if owner[t] < 0:
                return t
            queue.append(owner[t])
    return -1
