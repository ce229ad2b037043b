"""Predictions and true boxes of one chip or scene, and the rule by which they match."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes, ChipDetector
from scenesweep.model.labelled_chips import LabelledChips


@dataclass(frozen=True, slots=True)
class Rule:
    """When a prediction matches an object of its class.

    With a `radius`: when their centres can be paired within it, in an assignment with as many
    pairs as possible. Without one: when their boxes have an IoU of at least `iou`, by COCO's rule.
    """

    iou: float = 0.5
    radius: float | None = None
    """In the unit of the frame of the comparisons."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Predictions and true boxes of one chip or scene, in one frame.

    `xyxy` is (T, 4), the true boxes, and `label` (T,) their class indices. `predicted.chip` is not
    used. `capped` is True where a limit of the card removed predictions.
    """

    name: str
    predicted: Boxes
    xyxy: NDArray[np.floating]
    label: NDArray[np.int64]
    capped: bool = False

    def centres(self) -> NDArray[np.float64]:
        """Return (T, 2) float64 x, y of the centres of the true boxes."""
        xyxy = self.xyxy.astype(np.float64)
        return (xyxy[:, :2] + xyxy[:, 2:]) / 2


def compare_chips(detector: ChipDetector, chips: LabelledChips) -> list[Comparison]:
    """Detect on all chips and return the predictions of each with its true boxes."""
    output = detector.detect(chips.chips)
    boxes = output.boxes
    starts = np.searchsorted(boxes.chip, np.arange(len(chips) + 1)).tolist()
    return [
        Comparison(
            chips.names[chip],
            boxes.take(np.arange(starts[chip], starts[chip + 1])),
            chips.boxes[chip],
            chips.labels[chip],
            bool(output.capped[chip]),
        )
        for chip in range(len(chips))
    ]
