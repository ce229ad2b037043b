"""Give each anchor its target."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

BACKGROUND = Matcher.BELOW_LOW_THRESHOLD
IGNORED = Matcher.BETWEEN_THRESHOLDS


def assign_max_iou(
    anchors: Tensor, boxes: Tensor, *, foreground: float = 0.5, background: float = 0.4
) -> Tensor:
    """Assign anchors to true boxes by highest IoU (RetinaNet paper, section 4).

    `anchors` is (A, 4) and `boxes` (T, 4), both xyxy. Returns (A,) int64: the index of a box,
    `BACKGROUND` below `background`, or `IGNORED` between the two thresholds. The best anchors
    of a box are its own even where their IoU is lower.
    """
    if len(boxes) == 0:
        return anchors.new_full((len(anchors),), BACKGROUND, dtype=torch.int64)
    matcher = Matcher(foreground, background, allow_low_quality_matches=True)
    return matcher(box_iou(boxes, anchors))
