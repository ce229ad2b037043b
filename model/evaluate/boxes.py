"""Match boxes with true boxes."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes


def match_boxes(
    found: Boxes, xyxy: NDArray[np.floating], label: NDArray[np.int64], *, iou: float
) -> NDArray[np.int64]:
    """Return for each prediction the index (P,) of the true box it matches, or -1.

    COCO's rule: predictions choose in descending order of score, each the free true box of its
    class that it overlaps most, by `iou` or more. What a prediction gets does not depend on
    those after it, so dropping the lowest scores changes no other match.
    """
    i, j, overlap = overlaps(found.xyxy, xyxy)
    near = (overlap >= iou) & (found.label[i] == label[j])
    i, j, overlap = i[near], j[near], overlap[near]
    rank = np.empty(len(found), np.int64)
    rank[np.argsort(-found.score, kind="stable")] = np.arange(len(found))
    order = np.lexsort((j, -overlap, rank[i]))
    partner = [-1] * len(found)
    free = [True] * len(xyxy)
    for p, t in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if partner[p] < 0 and free[t]:
            partner[p], free[t] = t, False
    return np.array(partner, np.int64)


def overlaps(
    a: NDArray[np.floating], b: NDArray[np.floating]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Return the pairs (i, j) of boxes of `a` (N, 4) and `b` (M, 4) that touch, and their IoU."""
    tree = shapely.STRtree(np.asarray(shapely.box(*b.T), dtype=object))
    i, j = tree.query(np.asarray(shapely.box(*a.T), dtype=object))
    one, other = a[i].astype(np.float64), b[j].astype(np.float64)
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    union = _areas(one) + _areas(other) - shared
    return i, j, shared / np.maximum(union, 1e-9)


def _areas(xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
    return areas
