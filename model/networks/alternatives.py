"""torchvision's FCOS, Faster R-CNN and SSD, built from the same card, for comparison.

Heads, targets, losses and decoding are torchvision's. Chips are not resized.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from scenesweep.model.architecture import Architecture
from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.card import Inference, ModelCard
from scenesweep.model.losses.truth import Truth
from scenesweep.model.networks.anchors import generator
from scenesweep.model.networks.backbone import FrozenStages, build_backbone
from scenesweep.model.private_apis.torchvision import keep_proposals


class NoResize(nn.Module):
    """Replaces torchvision's own transform, which resizes and normalises images."""

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        size = cast(tuple[int, int], tuple(images[0].shape[-2:]))
        return ImageList(torch.stack(images), [size] * len(images)), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], _sizes: Any, _original_sizes: Any
    ) -> list[dict[str, Tensor]]:
        return result


class PyramidForSsd(nn.Module):
    """A backbone with a list of the channels of each level, which SSD needs."""

    def __init__(self, backbone: FrozenStages, levels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_channels = [backbone.out_channels] * levels

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        return cast("OrderedDict[str, Tensor]", self.backbone(pixels))


class TorchvisionNetwork(nn.Module):
    """One of torchvision's detectors with the interface of `RetinaNet`."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.card = card
        self.first_label = 0 if card.architecture.kind == "fcos" else 1  # else 0 is background
        self.detector = _make(card)
        self.detector.transform = NoResize()

    def losses(self, pixels: Tensor, truth: Truth) -> dict[str, Tensor]:
        """Return torchvision's own losses of a batch. Arguments as in `RetinaNet.losses`."""
        targets = [
            {"boxes": boxes[:count], "labels": labels[:count] + self.first_label}
            for boxes, labels, count in zip(
                *truth, truth.is_object.sum(dim=1).tolist(), strict=True
            )
        ]
        return cast(dict[str, Tensor], self.detector(list(pixels), targets))

    def find(self, pixels: Tensor, inference: Inference) -> list[ChipBoxes]:
        """Detect boxes in a normalised batch (B, bands, H, W)."""
        _set_thresholds(self.detector, inference, self.card.architecture.kind)
        return [
            ChipBoxes(
                output["boxes"].float(),
                output["scores"].float(),
                output["labels"] - self.first_label,
                len(output["scores"]) >= inference.max_detections_per_chip,
            )
            for output in self.detector(list(pixels))
        ]


def _make(card: ModelCard) -> Any:
    architecture, classes = card.architecture, len(card.classes)
    backbone = build_backbone(architecture, len(card.bands))
    if architecture.kind == "fcos":
        first, last = architecture.levels
        strides = tuple((2**level,) for level in range(first, last + 1))
        points = AnchorGenerator(strides, ((1.0,),) * len(strides))
        return FCOS(backbone, classes, anchor_generator=points)
    levels = len(architecture.anchor_sizes_px)
    if architecture.kind == "ssd":
        size = (card.chip_px, card.chip_px)
        return SSD(PyramidForSsd(backbone, levels), generator(architecture), size, classes + 1)
    return FasterRCNN(
        backbone,
        classes + 1,
        rpn_anchor_generator=generator(architecture),
        box_roi_pool=_roi_pool(architecture),
    )


def _roi_pool(architecture: Architecture) -> Any:
    first, last = architecture.levels
    names = [str(i) for i in range(min(last, 5) - first + 1)]
    return MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)


def _set_thresholds(detector: Any, inference: Inference, kind: str) -> None:
    heads = detector.roi_heads if kind == "faster_rcnn" else detector
    heads.score_thresh = inference.score_threshold
    heads.nms_thresh = inference.nms_iou
    heads.detections_per_img = inference.max_detections_per_chip
    if kind == "faster_rcnn":
        keep_proposals(detector, max(1000, inference.max_detections_per_chip))
    else:
        heads.topk_candidates = inference.topk_per_level
