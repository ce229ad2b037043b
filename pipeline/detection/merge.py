"""Merge the candidates of all windows into one detection for each object.

Definition (tests/pipeline/detection/test_merge.py has it as a slow, obvious loop). Sort the
candidates: uncut boxes before boxes cut by a window edge, then by falling score, then by
coordinates and label. Go through them in this order, and keep a candidate unless a kept one
suppresses it. A kept box suppresses a later box of the same class (of any class if
`class_agnostic`) when their IoU is above `iou` or the boxes are equal. An uncut box also suppresses
a later cut box when more than `containment` of the cut box's area lies inside it.

The result depends only on the set of candidates: not on their order, on the grouping of windows, or
on the worker. A detection that is still cut was larger than the margin: it is `truncated`, and
`stitch` joins such fragments.

Other places that drop detections: the network drops boxes under its score threshold, beyond its
caps, and by NMS within a chip (`RetinaNet.find`). `detection.detect` drops boxes with a centre
outside the window's core and slack, or on nodata. `pipeline.publish.publish.merged` drops
candidates under `merge.min_scores` before the merge, and detections with a centre outside the area
of interest after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.settings import ResolvedMerge

_SEAM_OVERLAP = 0.5
_BLOCK = 1_000_000
"""Pairs in one step: enough for numpy, and few enough for the processor's cache."""

Pairs = tuple[NDArray[np.integer], NDArray[np.integer]]


def merge(candidates: Candidates, settings: ResolvedMerge) -> Candidates:
    """Return the detections of a scene, in the order of the definition."""
    ordered = in_order(candidates)
    if len(ordered) == 0:
        return ordered
    kept = ordered.take(_survivors(len(ordered), *_suppressions(ordered, settings)))
    return stitch(kept) if settings.stitch else kept


def in_order(candidates: Candidates) -> Candidates:
    """Sort candidates or detections into the order of the definition."""
    return candidates.take(_order(candidates))


@dataclass(frozen=True, slots=True)
class Settled:
    """A merged strip of a scene.

    `detections` are final. `open` are candidates that candidates of other strips may change:
    those of all strips are merged together.
    """

    detections: Candidates
    open: Candidates


def settle(
    candidates: Candidates, settings: ResolvedMerge, *, above: float, below: float
) -> Settled:
    """Merge the candidates of a strip as far as other strips cannot change the result.

    Candidates of other strips end at or above the scene row `above`, or begin at or below the row
    `below`. A candidate is open if it reaches these rows, or is linked, directly or through
    others, to one that does. Two candidates are linked if one can suppress the other, or if they
    can be stitched. So no link leads from a settled candidate to an open one or to another strip,
    and the settled detections of all strips and the merged open ones are those of one merge.
    """
    ordered = in_order(candidates)
    if len(ordered) == 0:
        return Settled(ordered, ordered)
    winner, loser = _suppressions(ordered, settings)
    is_open = (ordered.xyxy[:, 1] <= above) | (ordered.xyxy[:, 3] >= below)
    links = [(winner, loser)]
    if settings.stitch:
        links.append(_fragments(ordered))
    is_open = _linked_to(is_open, *_joined(links))
    inside = ~is_open[winner]
    kept = _survivors(len(ordered), winner[inside], loser[inside]) & ~is_open
    detections = ordered.take(kept)
    return Settled(stitch(detections) if settings.stitch else detections, ordered.take(is_open))


def _linked_to(
    marked: NDArray[np.bool_], first: NDArray[np.integer], second: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Return what is marked, or linked by pairs to something marked, through any number of them."""
    marked = marked.copy()
    while True:
        grows = marked[first] != marked[second]
        if not grows.any():
            return marked
        marked[first[grows]] = marked[second[grows]] = True
        left = ~(marked[first] & marked[second])
        first, second = first[left], second[left]


def _fragments(candidates: Candidates) -> Pairs:
    """Return the pairs of cut candidates that `stitch` would join."""
    rows = np.nonzero(candidates.cut)[0]
    a, b = _stitched_pairs(candidates.take(rows))
    return rows[a], rows[b]


def _stitched_pairs(parts: Candidates) -> Pairs:
    """Return the pairs of cut boxes that are fragments of one object."""
    a, b = _joined(list(touching(parts.xyxy, parts.label)))
    along = np.maximum(*(_span_iou(parts.xyxy[a], parts.xyxy[b], axis) for axis in (0, 1)))
    return a[along >= _SEAM_OVERLAP], b[along >= _SEAM_OVERLAP]


def stitch(detections: Candidates) -> Candidates:
    """Join truncated boxes of one class that are fragments of one object across a window seam.

    Two fragments belong together when they overlap and, along one axis, the overlap of their spans
    is at least half of the union of the spans. The joined box spans all its fragments, has their
    highest score, and stays marked as cut.
    """
    rows = np.nonzero(detections.cut)[0]
    if len(rows) < 2:
        return detections
    parts = detections.take(rows)
    a, b = _stitched_pairs(parts)
    from scipy.sparse import coo_array  # half a second to import, for stitching alone
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(a)), (a, b)), shape=(len(rows),) * 2)
    count, group = connected_components(graph, directed=False)
    xyxy = np.tile([np.inf, np.inf, -np.inf, -np.inf], (count, 1))
    np.minimum.at(xyxy[:, :2], group, parts.xyxy[:, :2])
    np.maximum.at(xyxy[:, 2:], group, parts.xyxy[:, 2:])
    score = np.zeros(count, np.float32)
    np.maximum.at(score, group, parts.score)
    label = np.zeros(count, np.int16)
    label[group] = parts.label
    stitched = Candidates(xyxy, score, label, np.ones(count, np.bool_))
    result = Candidates.join(detections.take(~detections.cut), stitched)
    return in_order(result)


def touching(xyxy: NDArray[np.float64], group: NDArray[np.integer]) -> Iterator[Pairs]:
    """Yield all pairs (i, j), i < j, of boxes of one group that overlap or touch, in blocks.

    It is a sweep over sorted left edges. The ground is divided into horizontal strips, and a box
    has an entry in each strip that it reaches. Entries of a strip are sorted by their left edges,
    so the partners of a box follow it and begin before its right edge. A pair that shares several
    strips counts only in the strip with the upper edge of its overlap.
    """
    if len(xyxy) == 0:
        return
    x0, y0, x1, y1 = (np.ascontiguousarray(edge) for edge in xyxy.T)
    left, top = x0.min(), y0.min()
    # Strips as high as a mean box: lower ones give a box many entries, higher ones many partners
    # that do not overlap. The second term bounds the number of strips by the number of boxes.
    height = max(float(np.mean(y1 - y0)), float(np.ptp(y1)) / len(xyxy), 1e-9)
    first = ((y0 - top) / height).astype(np.int32)
    reached = ((y1 - top) / height).astype(np.int32) - first + 1
    rows = np.repeat(np.arange(len(xyxy), dtype=np.int32), reached)
    strip = first[rows] + _counting(reached).astype(np.int32)
    strips = int(first.max()) + int(reached.max()) + 1
    # All strips of all groups lie end to end on one line, so that one sort serves them all. A gap
    # of at least 1 px between strips keeps the right edge of one from reaching the next.
    span = (x1.max() - left) * (1 + 1e-6) + 1

    def line() -> NDArray[np.float64]:
        return (group[rows].astype(np.int64) * strips + strip) * span - left

    begin = line() + x0[rows]
    order = np.argsort(begin, kind="stable")
    rows, strip, begin = rows[order], strip[order], begin[order]
    del order  # with millions of boxes, these arrays are most of the memory
    partners = np.searchsorted(begin, line() + x1[rows], side="right")
    partners -= np.arange(1, len(rows) + 1)
    del begin
    totals = np.cumsum(partners)
    start = 0
    while start < len(rows):
        before = totals[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(totals, before + _BLOCK, side="right")))
        entry = np.repeat(np.arange(start, stop), partners[start:stop])
        partner = entry + 1 + _counting(partners[start:stop])
        i, j = rows[entry], rows[partner]
        upper, lower = np.maximum(y0[i], y0[j]), np.minimum(y1[i], y1[j])
        # Exactly one strip holds the upper edge, so a pair counts once. Boxes of one strip need not
        # meet in it, and the sums in `line` round, so test both axes.
        counts = ((upper - top) / height).astype(np.int64) == strip[entry]
        counts &= (upper <= lower) & (x0[j] <= x1[i])
        i, j = i[counts], j[counts]
        yield np.minimum(i, j), np.maximum(i, j)
        start = stop


def _order(candidates: Candidates) -> NDArray[np.intp]:
    """Sort by cut, falling score, coordinates and label.

    Few scores are equal, so the other keys are only compared among equal scores.
    """
    rank = -candidates.score.astype(np.float64) + 2.0 * candidates.cut
    order = np.argsort(rank, kind="stable")
    equal = np.diff(rank[order]) == 0
    tied = np.flatnonzero(np.concatenate([[False], equal]) | np.concatenate([equal, [False]]))
    among = candidates.take(order[tied])
    x0, y0, x1, y1 = among.xyxy.T
    keys = (among.label, y1, x1, y0, x0, -among.score, among.cut)
    order[tied] = order[tied][np.lexsort(keys)]  # the last key is the first to decide
    return order


def _suppressions(boxes: Candidates, settings: ResolvedMerge) -> Pairs:
    """Return pairs (earlier, later): the earlier box, if kept, suppresses the later one."""
    group = np.zeros_like(boxes.label) if settings.class_agnostic else boxes.label
    x0, y0, x1, y1 = edges = np.ascontiguousarray(boxes.xyxy.T)  # `touching` copies none of them
    area = (x1 - x0) * (y1 - y0)
    some_cut = bool(boxes.cut.any())
    pairs = []
    for a, b in touching(edges.T, group):
        width = np.minimum(x1[a], x1[b]) - np.maximum(x0[a], x0[b])
        height = np.minimum(y1[a], y1[b]) - np.maximum(y0[a], y0[b])
        shared = width * height
        suppresses = shared > settings.iou * (area[a] + area[b] - shared)
        if some_cut:
            fragment = boxes.cut[b] & ~boxes.cut[a]
            suppresses |= fragment & (shared > settings.containment * area[b])
        # Equal boxes of no area, or with an `iou` of 1, do not exceed the IoU.
        equal = np.flatnonzero(~suppresses & (shared == area[a]) & (shared == area[b]))
        suppresses[equal] = (boxes.xyxy[a[equal]] == boxes.xyxy[b[equal]]).all(axis=1)
        pairs.append((a[suppresses], b[suppresses]))
    return _joined(pairs)


def _survivors(
    count: int, winner: NDArray[np.integer], loser: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Return which boxes stay: in order, each box that stays suppresses its losers.

    Most winners are losers of no pair, so numpy decides their pairs at once. Only pairs whose
    winner may itself be suppressed need the loop.
    """
    suppressed = np.zeros(count, np.bool_)
    suppressed[loser] = True
    free = ~suppressed[winner]  # nothing suppresses these winners
    suppressed[:] = False
    suppressed[loser[free]] = True
    contested = ~free & ~suppressed[winner]
    winner, loser = winner[contested], loser[contested]
    order = np.argsort(winner, kind="stable")
    out = bytearray(suppressed.tobytes())
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        for first, second in zip(winner[block].tolist(), loser[block].tolist(), strict=True):
            if not out[first]:
                out[second] = 1
    return np.frombuffer(out, np.bool_) == 0


def _joined(blocks: list[Pairs]) -> Pairs:
    """Concatenate blocks of pairs."""
    none = np.zeros(0, np.intp)
    first, second = ([none, *(block[side] for block in blocks)] for side in (0, 1))
    return np.concatenate(first), np.concatenate(second)


def _counting(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return 0, 1, … up to each length, one range after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _span_iou(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    shared = np.minimum(a[:, axis + 2], b[:, axis + 2]) - np.maximum(a[:, axis], b[:, axis])
    union = np.maximum(a[:, axis + 2], b[:, axis + 2]) - np.minimum(a[:, axis], b[:, axis])
    return shared / np.maximum(union, 1e-9)
