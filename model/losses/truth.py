"""The true boxes of a batch as tensors of one shape, so that a GPU needs no step for each chip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PADDING = -1
"""Label of a row that is no object."""


class Truth(NamedTuple):
    """True boxes of B chips, padded to the same number T >= 1.

    `boxes` is (B, T, 4) float32 xyxy in chip pixels, `labels` (B, T) int64. A row that is no object
    has the label `PADDING` and an empty box at the origin; such rows follow the objects. A tuple,
    because torch pins and moves tuples.
    """

    boxes: Tensor
    labels: Tensor

    @property
    def is_object(self) -> Tensor:
        """(B, T) bool: which rows are objects."""
        return self.labels != PADDING

    @classmethod
    def pad(cls, chips: Sequence[tuple[Tensor, Tensor]]) -> Truth:
        """Collect boxes (T, 4) and labels (T,) of each chip."""
        rows = max([1, *(len(labels) for _, labels in chips)])
        boxes = torch.zeros(len(chips), rows, 4)
        labels = torch.full((len(chips), rows), PADDING, dtype=torch.int64)
        for chip, (chip_boxes, chip_labels) in enumerate(chips):
            boxes[chip, : len(chip_labels)] = chip_boxes
            labels[chip, : len(chip_labels)] = chip_labels
        return cls(boxes, labels)

    def to(self, device: torch.device) -> Truth:
        """Copy to a device. From pinned memory, the host does not wait for the copy."""
        return Truth(*(tensor.to(device, non_blocking=True) for tensor in self))
