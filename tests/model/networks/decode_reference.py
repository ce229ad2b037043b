"""The definition in `model/networks/decode.py` once more, candidate by candidate, in numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.card import Inference

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Level:
    """One level of one chip: (A, classes), (A, 4), (A,) or None, anchors (A, 4); all float32."""

    logits: Floats
    deltas: Floats
    quality: Floats | None
    anchors: Floats


@dataclass(frozen=True, slots=True)
class Candidate:
    score: np.float32
    place: tuple[int, int, int]
    """Level, anchor and class: the order of equal scores."""
    box: Floats

    @property
    def label(self) -> int:
        return self.place[2]


def reference(
    levels: list[Level], inference: Inference, shape: tuple[int, int]
) -> tuple[list[tuple[float, ...]], bool]:
    """Return rows of x0, y0, x1, y1, score, label, the best first, and whether it is capped."""
    capped = False
    every: list[Candidate] = []
    with np.errstate(all="ignore"):
        for number, level in enumerate(levels):
            of_level = sorted(candidates(level, number, inference, shape), key=best_first)
            capped |= len(of_level) > inference.topk_per_level
            every += of_level[: inference.topk_per_level]
        kept: list[Candidate] = []
        for candidate in sorted(every, key=best_first):
            if np.isnan(candidate.box).any():
                continue
            rivals = [k for k in kept if inference.class_agnostic or k.label == candidate.label]
            if not any(float(iou(k.box, candidate.box)) > inference.nms_iou for k in rivals):
                kept.append(candidate)
    capped |= len(kept) > inference.max_detections_per_chip
    rows = [(*k.box.tolist(), float(k.score), k.label) for k in kept]
    return rows[: inference.max_detections_per_chip], capped


def best_first(candidate: Candidate) -> tuple[float, tuple[int, int, int]]:
    return -float(candidate.score), candidate.place


def candidates(
    level: Level, number: int, inference: Inference, shape: tuple[int, int]
) -> list[Candidate]:
    found: list[Candidate] = []
    for (anchor, label), logit in np.ndenumerate(level.logits):
        score = logistic(float(logit))
        if level.quality is not None:
            score = score * logistic(float(level.quality[anchor]))
        if float(score) > inference.score_threshold:
            box = clipped(moved(level.deltas[anchor], level.anchors[anchor]), shape)
            found.append(Candidate(score, (number, anchor, label), box))
    return found


def logistic(logit: float) -> np.float32:
    return np.float32(1 / (1 + np.exp(-np.float64(logit))))


def moved(deltas: Floats, anchor: Floats) -> Floats:
    half = np.float32(0.5)
    low, high = anchor[:2], anchor[2:]
    side = high - low
    centre = deltas[:2] * side + (low + half * side)
    logarithm = np.minimum(deltas[2:], np.float32(math.log(1000 / 16)))
    half_side = half * (np.exp(logarithm.astype(np.float64)).astype(np.float32) * side)
    return np.concatenate([centre - half_side, centre + half_side])


def clipped(box: Floats, shape: tuple[int, int]) -> Floats:
    height, width = shape
    return np.clip(box, np.float32(0), np.array([width, height] * 2, np.float32))


def iou(one: Floats, other: Floats) -> np.float32:
    side = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = np.prod(np.maximum(side, np.float32(0)))
    areas = np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])
    return np.float32(common / (areas - common))
