"""Match boxes with true boxes."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes


def match_boxes(
    predicted: Boxes, xyxy: NDArray[np.floating], label: NDArray[np.int64], *, iou: float
) -> NDArray[np.int64]:
    """Return (P,) for each prediction the index of the true box that it matches, or -1.

    COCO's rule: in descending order of score, each prediction takes the true box of its class
    that it overlaps most, among those with an IoU of at least `iou` that are still free. A match
    depends on predictions with higher scores only, so a higher score threshold changes no match.
    """
    i, j, overlap = overlaps(predicted.xyxy, xyxy)
    near = (overlap >= iou) & (predicted.label[i] == label[j])
    i, j, overlap = i[near], j[near], overlap[near]
    rank = np.empty(len(predicted), np.int64)
    rank[np.argsort(-predicted.score, kind="stable")] = np.arange(len(predicted))
    order = np.lexsort((j, -overlap, rank[i]))
    partner = [-1] * len(predicted)
    free = [True] * len(xyxy)
    for p, t in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if partner[p] < 0 and free[t]:
            partner[p], free[t] = t, False
    return np.array(partner, np.int64)


def overlaps(
    a: NDArray[np.floating], b: NDArray[np.floating]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Return all pairs (i, j) of boxes of `a` (N, 4) and `b` (M, 4) that touch, with their IoU."""
    tree = shapely.STRtree(np.asarray(shapely.box(*b.T), dtype=object))
    i, j = tree.query(np.asarray(shapely.box(*a.T), dtype=object))
    left, right = a[i].astype(np.float64), b[j].astype(np.float64)
    sides = np.minimum(left[:, 2:], right[:, 2:]) - np.maximum(left[:, :2], right[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    union = _areas(left) + _areas(right) - shared
    return i, j, shared / np.maximum(union, 1e-9)


def _areas(xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
    return areas
