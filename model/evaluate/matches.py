"""Decide once which predictions match an object; every figure is then a sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.boxes import ChipDetector
from scenesweep.model.evaluate.boxes import match_boxes
from scenesweep.model.evaluate.comparison import Comparison, Rule, compare_chips
from scenesweep.model.evaluate.curve import THRESHOLDS, Counts, ThresholdCurve
from scenesweep.model.evaluate.points import claim_points, match_points
from scenesweep.model.labelled_chips import LabelledChips


@dataclass(frozen=True, slots=True)
class Matches:
    """All predictions of some comparisons, whether each matches, and all objects.

    Of the predictions: `unit` (P,) int64, `score` (P,) float32, `label` (P,) int64 and `matched`
    (P,) bool. Of the objects: `true_unit` and `true_label` (T,) int64. Units are numbered from 0
    to `units`; at first each comparison is one unit.

    For every threshold, the number of matched predictions with at least that score equals the
    number of pairs that a matching of these predictions alone would have.
    """

    unit: NDArray[np.int64]
    score: NDArray[np.float32]
    label: NDArray[np.int64]
    matched: NDArray[np.bool_]
    true_unit: NDArray[np.int64]
    true_label: NDArray[np.int64]
    units: int

    def count(
        self, thresholds: NDArray[np.float64] = THRESHOLDS, *, label: int | None = None
    ) -> Counts:
        """Count predictions, matched ones and objects of each unit, of one class or of all."""
        chosen = np.full(len(self.label), True) if label is None else self.label == label
        true = self.true_unit if label is None else self.true_unit[self.true_label == label]
        return Counts(
            thresholds,
            self._reaching(thresholds, chosen & self.matched),
            self._reaching(thresholds, chosen),
            np.bincount(true, minlength=self.units),
        )

    def _reaching(
        self, thresholds: NDArray[np.float64], chosen: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Return (units, thresholds): how many chosen predictions have at least each threshold."""
        steps = len(thresholds) + 1
        # Scores are float32. Thresholds are compared as float32 too, so that a score of 0.32 counts
        # at the threshold 0.32.
        reached = np.searchsorted(
            thresholds.astype(np.float32), self.score[chosen].astype(np.float32), side="right"
        )
        cells = np.bincount(self.unit[chosen] * steps + reached, minlength=self.units * steps)
        table = cells.reshape(self.units, steps)
        return table[:, :0:-1].cumsum(axis=1)[:, ::-1]


def find_matches(comparisons: Sequence[Comparison], rule: Rule) -> Matches:
    """Match the boxes of every comparison. Each comparison is one unit."""
    matched = [_matched(comparison, rule) for comparison in comparisons]
    predicted = [len(comparison.predicted) for comparison in comparisons]
    true = [len(comparison.label) for comparison in comparisons]
    numbers = np.arange(len(comparisons))
    none = np.zeros(0, np.int64)
    return Matches(
        np.repeat(numbers, predicted),
        np.concatenate([none.astype(np.float32), *(c.predicted.score for c in comparisons)]),
        np.concatenate([none, *(c.predicted.label for c in comparisons)]),
        np.concatenate([none.astype(np.bool_), *matched]),
        np.repeat(numbers, true),
        np.concatenate([none, *(c.label for c in comparisons)]),
        len(comparisons),
    )


def in_blocks(matches: Matches, comparisons: Sequence[Comparison], *, side: int = 16) -> Matches:
    """Divide each comparison into `side` x `side` blocks of ground and make these the units.

    A prediction or an object belongs to the block of its centre. Few scenes are too few units for
    a bootstrap. Blocks take the place of chips because errors close to each other are correlated.
    """
    none = np.zeros(0, np.int64)
    unit, true_unit = [none], [none]
    for number, comparison in enumerate(comparisons):
        count = len(comparison.predicted)
        centres = np.concatenate([comparison.predicted.centres(), comparison.centres()])
        blocks = number * side**2 + _blocks(centres, side)
        unit.append(blocks[:count])
        true_unit.append(blocks[count:])
    return replace(
        matches,
        unit=np.concatenate(unit),
        true_unit=np.concatenate(true_unit),
        units=len(comparisons) * side**2,
    )


def pairs_at(
    comparison: Comparison, rule: Rule, threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match the predictions with at least `threshold`: indices of predictions and true boxes."""
    kept = np.flatnonzero(comparison.predicted.score >= np.float32(threshold))
    boxes = comparison.predicted.take(kept)
    if rule.radius is None:
        partner = match_boxes(boxes, comparison.xyxy, comparison.label, iou=rule.iou)
        return kept[partner >= 0], partner[partner >= 0]
    predicted, true = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    centres, truths = boxes.centres(), comparison.centres()
    for label in np.unique(comparison.label):
        a, b = np.flatnonzero(boxes.label == label), np.flatnonzero(comparison.label == label)
        left, right, _ = match_points(centres[a], truths[b], rule.radius)
        predicted.append(kept[a[left]])
        true.append(b[right])
    return np.concatenate(predicted), np.concatenate(true)


def match_chips(
    detector: ChipDetector,
    chips: LabelledChips,
    *,
    iou: float = 0.5,
    radius_px: float | None = None,
) -> ThresholdCurve:
    """Detect on labelled chips and count at every threshold, all classes together.

    Objects labelled as points match by their centres within `radius_px`, boxes by `iou`. The
    detector's own score threshold must be lower than the lowest of `THRESHOLDS`.
    """
    if chips.points and radius_px is None:
        raise ValueError("radius_px: expected pixels, got None; points match by distance")
    rule = Rule(iou, radius_px if chips.points else None)
    return find_matches(compare_chips(detector, chips), rule).count().curve()


def _blocks(points: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    """Return (N,) for points (N, 2) the number of their cell in a `side` x `side` grid."""
    if len(points) == 0:
        return np.zeros(0, np.int64)
    low, high = points.min(axis=0), points.max(axis=0)
    cells = ((points - low) / np.maximum(high - low, 1e-9) * side).astype(np.int64)
    columns, rows = np.minimum(cells, side - 1).T
    numbers: NDArray[np.int64] = rows * side + columns
    return numbers


def _matched(comparison: Comparison, rule: Rule) -> NDArray[np.bool_]:
    predicted, label = comparison.predicted, comparison.label
    if rule.radius is None:
        return match_boxes(predicted, comparison.xyxy, label, iou=rule.iou) >= 0
    return claim_points(predicted, comparison.centres(), label, radius=rule.radius)
