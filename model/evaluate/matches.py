"""Settle once which predictions are right; every figure is then a sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.boxes import ChipDetector
from scenesweep.model.evaluate.boxes import match_boxes
from scenesweep.model.evaluate.curve import THRESHOLDS, Counts, ThresholdCurve
from scenesweep.model.evaluate.points import claim_points, match_points
from scenesweep.model.evaluate.sample import Rule, Sample, samples_of
from scenesweep.model.samples import Samples


@dataclass(frozen=True, slots=True)
class Matches:
    """What became of all predictions of some samples, and the objects there were to find.

    Of the predictions: `place` (P,) int64, `score` (P,) float32, `label` (P,) int64 and `hit`
    (P,) bool. At any threshold, the predictions that score as much or more and are hits are as
    many as a match of these predictions alone has pairs. Of the objects: `true_place` and
    `true_label` (T,) int64. Places are numbered up to `places`: at first each sample is one.
    """

    place: NDArray[np.int64]
    score: NDArray[np.float32]
    label: NDArray[np.int64]
    hit: NDArray[np.bool_]
    true_place: NDArray[np.int64]
    true_label: NDArray[np.int64]
    places: int

    def count(
        self, thresholds: NDArray[np.float64] = THRESHOLDS, *, label: int | None = None
    ) -> Counts:
        """Count predictions, hits and objects of each place, of one class or of all."""
        chosen = np.full(len(self.label), True) if label is None else self.label == label
        true = self.true_place if label is None else self.true_place[self.true_label == label]
        return Counts(
            thresholds,
            self._reaching(thresholds, chosen & self.hit),
            self._reaching(thresholds, chosen),
            np.bincount(true, minlength=self.places),
        )

    def _reaching(
        self, thresholds: NDArray[np.float64], chosen: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Return (places, thresholds): how many of the chosen predictions reach each."""
        steps = len(thresholds) + 1
        # Scores are float32, and so compare thresholds: 0.32 reaches 0.32.
        reached = np.searchsorted(
            thresholds.astype(np.float32), self.score[chosen].astype(np.float32), side="right"
        )
        cells = np.bincount(self.place[chosen] * steps + reached, minlength=self.places * steps)
        table = cells.reshape(self.places, steps)
        return table[:, :0:-1].cumsum(axis=1)[:, ::-1]


def find_matches(samples: Sequence[Sample], rule: Rule) -> Matches:
    """Match every sample; each is a place."""
    hits = [_hits(sample, rule) for sample in samples]
    found = [len(sample.found) for sample in samples]
    true = [len(sample.label) for sample in samples]
    numbers = np.arange(len(samples))
    none = np.zeros(0, np.int64)
    return Matches(
        np.repeat(numbers, found),
        np.concatenate([none.astype(np.float32), *(s.found.score for s in samples)]),
        np.concatenate([none, *(s.found.label for s in samples)]),
        np.concatenate([none.astype(np.bool_), *hits]),
        np.repeat(numbers, true),
        np.concatenate([none, *(s.label for s in samples)]),
        len(samples),
    )


def in_blocks(matches: Matches, samples: Sequence[Sample], *, side: int = 16) -> Matches:
    """Divide each sample into `side` x `side` blocks of ground and make these the places.

    Predictions and objects belong to the block of their centre. Blocks stand in for chips where
    there are few scenes: what lies near together errs together.
    """
    none = np.zeros(0, np.int64)
    place, true_place = [none], [none]
    for number, sample in enumerate(samples):
        centres = np.concatenate([sample.found.centres(), sample.centres()])
        blocks = number * side**2 + _blocks(centres, side)
        place.append(blocks[: len(sample.found)])
        true_place.append(blocks[len(sample.found) :])
    return replace(
        matches,
        place=np.concatenate(place),
        true_place=np.concatenate(true_place),
        places=len(samples) * side**2,
    )


def pairs_at(
    sample: Sample, rule: Rule, threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match the predictions that reach `threshold`: indices of predictions and of true boxes."""
    kept = np.flatnonzero(sample.found.score >= np.float32(threshold))
    found = sample.found.take(kept)
    if rule.radius is None:
        partner = match_boxes(found, sample.xyxy, sample.label, iou=rule.iou)
        return kept[partner >= 0], partner[partner >= 0]
    predicted, true = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    centres, truths = found.centres(), sample.centres()
    for label in np.unique(sample.label):
        a, b = np.flatnonzero(found.label == label), np.flatnonzero(sample.label == label)
        left, right, _ = match_points(centres[a], truths[b], rule.radius)
        predicted.append(kept[a[left]])
        true.append(b[right])
    return np.concatenate(predicted), np.concatenate(true)


def match_chips(
    detector: ChipDetector, samples: Samples, *, iou: float = 0.5, radius_px: float | None = None
) -> ThresholdCurve:
    """Detect on labelled chips and count at every threshold, all classes together.

    Objects labelled as points are judged by their centres within `radius_px`, boxes by `iou`.
    The detector's own threshold should be under the lowest of `THRESHOLDS`.
    """
    if samples.points and radius_px is None:
        raise ValueError("points are judged by distance: radius_px is needed")
    rule = Rule(iou, radius_px if samples.points else None)
    return find_matches(samples_of(detector, samples), rule).count().curve()


def _blocks(points: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    """Number the points (N, 2) by the cell of a `side` x `side` grid over them all."""
    if len(points) == 0:
        return np.zeros(0, np.int64)
    low, high = points.min(axis=0), points.max(axis=0)
    cells = ((points - low) / np.maximum(high - low, 1e-9) * side).astype(np.int64)
    columns, rows = np.minimum(cells, side - 1).T
    numbers: NDArray[np.int64] = rows * side + columns
    return numbers


def _hits(sample: Sample, rule: Rule) -> NDArray[np.bool_]:
    if rule.radius is None:
        return match_boxes(sample.found, sample.xyxy, sample.label, iou=rule.iou) >= 0
    return claim_points(sample.found, sample.centres(), sample.label, radius=rule.radius)
