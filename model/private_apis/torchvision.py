"""Private parts of torchvision's detectors: box encoding and proposals."""

from __future__ import annotations

from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BoxCoder

__all__ = ["BoxCoder", "keep_proposals"]


def keep_proposals(detector: FasterRCNN, count: int) -> None:
    """Let the first stage of a Faster R-CNN pass on up to `count` proposals for each image."""
    for mode in ("training", "testing"):
        detector.rpn._post_nms_top_n[mode] = count
