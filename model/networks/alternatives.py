"""torchvision's FCOS, Faster R-CNN and SSD behind the same card, for comparison.

They keep torchvision's own heads, targets, losses and decoding. Chips are not resized.
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
from scenesweep.model.networks.anchors import generator
from scenesweep.model.networks.backbone import FrozenStages, build_backbone
from scenesweep.model.private_apis.torchvision import keep_proposals


class AsGiven(nn.Module):
    """Stands in the place of torchvision's transform, which resizes and normalises."""

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
    """A backbone that says how many channels each of its levels has, as SSD asks."""

    def __init__(self, backbone: FrozenStages, levels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_channels = [backbone.out_channels] * levels

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        return cast("OrderedDict[str, Tensor]", self.backbone(pixels))


class TorchvisionNetwork(nn.Module):
    """One of torchvision's detectors, as a network of ours."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.card = card
        self.first_label = 0 if card.architecture.kind == "fcos" else 1  # 0 is background
        self.detector = _make(card)
        self.detector.transform = AsGiven()

    def losses(self, pixels: Tensor, truth: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return torchvision's own losses of a batch; arguments as `RetinaNet.losses`."""
        targets = [
            {"boxes": boxes.reshape(-1, 4), "labels": labels + self.first_label}
            for boxes, labels in truth
        ]
        return cast(dict[str, Tensor], self.detector(list(pixels), targets))

    def find(self, pixels: Tensor, inference: Inference) -> list[ChipBoxes]:
        """Find boxes in a batch (B, bands, H, W), normalised."""
        _set_thresholds(self.detector, inference, self.card.architecture.kind)
        return [
            ChipBoxes(
                one["boxes"].float(),
                one["scores"].float(),
                one["labels"] - self.first_label,
                len(one["scores"]) >= inference.max_detections_per_chip,
            )
            for one in self.detector(list(pixels))
        ]


def _make(card: ModelCard) -> Any:
    architecture, classes = card.architecture, len(card.classes)
    backbone = build_backbone(architecture, len(card.bands))
    if architecture.kind == "fcos":
        first, last = architecture.levels
        strides = tuple((2**level,) for level in range(first, last + 1))
        places = AnchorGenerator(strides, ((1.0,),) * len(strides))
        return FCOS(backbone, classes, anchor_generator=places)
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
    place = detector.roi_heads if kind == "faster_rcnn" else detector
    place.score_thresh = inference.score_threshold
    place.nms_thresh = inference.nms_iou
    name = "detections_per_img"
    setattr(place, name, inference.max_detections_per_chip)
    if kind == "faster_rcnn":
        keep_proposals(detector, max(1000, inference.max_detections_per_chip))
    else:
        place.topk_candidates = inference.topk_per_level
