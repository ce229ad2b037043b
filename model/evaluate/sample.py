"""What is compared, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes, ChipDetector
from scenesweep.model.samples import Samples


@dataclass(frozen=True, slots=True)
class Rule:
    """When a prediction counts as an object of its class.

    With a `radius`: when their centres can be paired within it, in an assignment that pairs as
    many as possible. Without one: when their boxes overlap by `iou` or more, by COCO's rule.
    """

    iou: float = 0.5
    radius: float | None = None
    """In the unit of the samples' frame."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Predictions and truth of one chip or scene, in one frame.

    `xyxy` is (T, 4) and `label` (T,): the true boxes and the classes' indices. `found.chip` is
    not looked at. `capped` says that a cap of the card cut predictions off.
    """

    name: str
    found: Boxes
    xyxy: NDArray[np.floating]
    label: NDArray[np.int64]
    capped: bool = False

    def centres(self) -> NDArray[np.float64]:
        """Return (T, 2) float64 x, y of the centres of the true boxes."""
        xyxy = self.xyxy.astype(np.float64)
        return (xyxy[:, :2] + xyxy[:, 2:]) / 2


def samples_of(detector: ChipDetector, samples: Samples) -> list[Sample]:
    """Detect on all chips and pair what is found with the truth of each chip."""
    detected = detector.detect(samples.chips)
    boxes = detected.boxes
    starts = np.searchsorted(boxes.chip, np.arange(len(samples) + 1)).tolist()
    return [
        Sample(
            samples.names[chip],
            boxes.take(np.arange(starts[chip], starts[chip + 1])),
            samples.boxes[chip],
            samples.labels[chip],
            bool(detected.capped[chip]),
        )
        for chip in range(len(samples))
    ]
