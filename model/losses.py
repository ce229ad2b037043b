"""The losses of a dense detector, per chip batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import sigmoid_focal_loss

from model.assign import BACKGROUND, assign_max_iou


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Constants of the RetinaNet paper (sections 3.2 and 4.1): alpha 0.25, gamma 2.

    `beta` is where the smooth L1 of the box deltas turns from quadratic to linear.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    beta: float = 0.11


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars, normalised by the number of positive anchors in the batch."""

    classification: Tensor
    boxes: Tensor

    @property
    def total(self) -> Tensor:
        return self.classification + self.boxes


def detection_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    truth: list[tuple[Tensor, Tensor]],
    settings: LossSettings,
) -> Losses:
    """Return focal loss and smooth L1 of one batch.

    `logits` is (B, A, classes) and `deltas` (B, A, 4), float32; `anchors` (A, 4) xyxy in chip
    pixels; `truth` has for each chip its boxes (T, 4) xyxy and labels (T,) int64.
    """
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    classification = logits.new_zeros(())
    regression = logits.new_zeros(())
    positives = 0
    for chip_logits, chip_deltas, (boxes, labels) in zip(logits, deltas, truth, strict=True):
        match = assign_max_iou(anchors, boxes)
        positive = match >= 0
        positives += int(positive.sum())
        target = torch.zeros_like(chip_logits)
        target[positive, labels[match[positive]]] = 1.0
        counted = positive | (match == BACKGROUND)
        classification = classification + sigmoid_focal_loss(
            chip_logits[counted],
            target[counted],
            alpha=settings.alpha,
            gamma=settings.gamma,
            reduction="sum",
        )
        if positive.any():
            wanted = coder.encode_single(boxes[match[positive]], anchors[positive])
            regression = regression + F.smooth_l1_loss(
                chip_deltas[positive], wanted, beta=settings.beta, reduction="sum"
            )
    scale = 1.0 / max(1, positives)
    return Losses(classification * scale, regression * scale)
