"""Merge what windows report into one detection for each object.

Definition (`tests/test_merge.py` has it as a slow, obvious loop). Order the candidates: whole
boxes before boxes cut by a window edge, then by falling score, then by coordinates and label.
Going down this order, keep a candidate unless one kept before it suppresses it. A kept box
suppresses a later one of the same class (of any class if `class_agnostic`) when their IoU is
above `iou` or they are the same box, or when the later one is cut, the kept one is whole, and
more than `containment` of the cut box's area lies inside the kept one.

The result depends on the set of candidates alone: not on their order, nor on how windows were
grouped or who detected them. A detection that is still cut was larger than the margin: it is
`truncated`, and `stitch` joins such fragments.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.detect import Candidates
from pipeline.settings import MergeSettings

_SEAM_OVERLAP = 0.5


def merge(candidates: Candidates, settings: MergeSettings) -> Candidates:
    """Return the detections of a scene, in the definition's order; `settings.iou` must be set."""
    assert settings.iou is not None
    ordered = candidates.take(_order(candidates))
    if len(ordered) == 0:
        return ordered
    winner, loser = _suppressions(ordered, settings)
    kept = ordered.take(_survivors(len(ordered), winner, loser))
    return stitch(kept) if settings.stitch else kept


def stitch(detections: Candidates) -> Candidates:
    """Join truncated boxes of one class that continue each other across a window seam.

    Two fragments belong together when they overlap and, along one axis, the overlap of their
    spans is at least half of the spans' union. The joined box spans all its fragments, has
    their highest score, and stays marked as cut.
    """
    rows = np.nonzero(detections.cut)[0]
    if len(rows) < 2:
        return detections
    parts = detections.take(rows)
    a, b = _overlapping(parts.xyxy)
    same = parts.label[a] == parts.label[b]
    a, b = a[same], b[same]
    along = np.maximum(*(_span_iou(parts.xyxy[a], parts.xyxy[b], axis) for axis in (0, 1)))
    joined = along >= _SEAM_OVERLAP
    graph = coo_array((np.ones(joined.sum()), (a[joined], b[joined])), shape=(len(rows),) * 2)
    count, group = connected_components(graph, directed=False)
    xyxy = np.tile([np.inf, np.inf, -np.inf, -np.inf], (count, 1))
    np.minimum.at(xyxy[:, :2], group, parts.xyxy[:, :2])
    np.maximum.at(xyxy[:, 2:], group, parts.xyxy[:, 2:])
    score = np.zeros(count, np.float32)
    np.maximum.at(score, group, parts.score)
    label = np.zeros(count, np.int16)
    label[group] = parts.label
    whole = Candidates(xyxy, score, label, np.ones(count, np.bool_))
    both = Candidates.join(detections.take(~detections.cut), whole)
    return both.take(_order(both))


def _order(candidates: Candidates) -> NDArray[np.intp]:
    x0, y0, x1, y1 = candidates.xyxy.T
    keys = (candidates.label, y1, x1, y0, x0, -candidates.score, candidates.cut)
    return np.lexsort(keys)  # the last key is the first to decide


def _suppressions(
    boxes: Candidates, settings: MergeSettings
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return pairs (earlier, later) in which a kept earlier box suppresses the later one."""
    earlier, later = _overlapping(boxes.xyxy)
    if not settings.class_agnostic:
        same = boxes.label[earlier] == boxes.label[later]
        earlier, later = earlier[same], later[same]
    a, b = boxes.xyxy[earlier], boxes.xyxy[later]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    area_a = (a[:, 2:] - a[:, :2]).prod(axis=1)
    area_b = (b[:, 2:] - b[:, :2]).prod(axis=1)
    one = shared > settings.iou * (area_a + area_b - shared)
    one |= (a == b).all(axis=1)
    fragment = boxes.cut[later] & ~boxes.cut[earlier] & (shared > settings.containment * area_b)
    suppress = one | fragment
    return earlier[suppress], later[suppress]


def _overlapping(xyxy: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return all pairs (i, j), i < j, of boxes that touch."""
    boxes = np.asarray(shapely.box(*xyxy.T), dtype=object)
    i, j = shapely.STRtree(boxes).query(boxes)
    forward = i < j
    return i[forward], j[forward]


def _survivors(count: int, winner: NDArray[np.intp], loser: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Resolve suppressions between rows in rank order, in rounds over all pairs at once.

    In each round, rows that no undecided row can suppress are kept, and what they suppress is
    out. The first undecided row is always kept, so every round makes progress.
    """
    kept = np.zeros(count, np.bool_)
    undecided = np.ones(count, np.bool_)
    while undecided.any():
        threatened = np.zeros(count, np.bool_)
        threatened[loser] = True
        new = undecided & ~threatened
        kept |= new
        undecided &= ~new
        undecided[loser[kept[winner]]] = False
        open_pairs = undecided[winner] & undecided[loser]
        winner, loser = winner[open_pairs], loser[open_pairs]
    return kept


def _span_iou(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    shared = np.minimum(a[:, axis + 2], b[:, axis + 2]) - np.maximum(a[:, axis], b[:, axis])
    union = np.maximum(a[:, axis + 2], b[:, axis + 2]) - np.minimum(a[:, axis], b[:, axis])
    return shared / np.maximum(union, 1e-9)
