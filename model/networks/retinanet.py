"""RetinaNet (Lin et al. 2017, arXiv:1708.02002), built from its architecture.

Parts and parameter names are torchvision's where it has them, so its checkpoints load. Chips
are seen exactly as they are given: never resized.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image
from torchvision.ops.misc import Conv2dNormActivation

from scenesweep.model.architecture import GROUPS, Architecture
from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.card import Inference, ModelCard
from scenesweep.model.losses.assign import assign
from scenesweep.model.losses.losses import Criterion, Raw, coder
from scenesweep.model.networks.anchors import anchors
from scenesweep.model.networks.backbone import build_backbone


class Tower(nn.Module):
    """One of the two heads: its convolutions, then an output layer of each name."""

    def __init__(self, architecture: Architecture, outputs: dict[str, int]) -> None:
        super().__init__()
        width = architecture.head_channels or architecture.channels
        norm: Any = partial(nn.GroupNorm, GROUPS) if architecture.head_norm == "group" else None
        inputs = [architecture.channels] + [width] * (architecture.head_convs - 1)
        self.conv: nn.Module = nn.Sequential(
            *(Conv2dNormActivation(channels, width, norm_layer=norm) for channels in inputs)
        )
        self.outputs = tuple(outputs)
        for name, channels in outputs.items():
            self.add_module(name, nn.Conv2d(width, channels, 3, padding=1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)  # paper, section 4.1
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, level: Tensor) -> list[Tensor]:
        """Return one map (B, channels, H, W) for each output, in order."""
        features = self.conv(level)
        return [self.get_submodule(name)(features) for name in self.outputs]


class Heads(nn.Module):
    """The two heads, under torchvision's names."""

    def __init__(self, architecture: Architecture, *, classes: int) -> None:
        super().__init__()
        per_cell = architecture.anchors_per_cell
        boxes = {"bbox_reg": per_cell * 4}
        if architecture.iou_branch:
            boxes["iou_pred"] = per_cell
        self.classification_head = Tower(architecture, {"cls_logits": per_cell * classes})
        self.regression_head = Tower(architecture, boxes)


class RetinaNet(nn.Module):
    """Backbone, feature pyramid and the two heads shared by all searched levels."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        architecture = card.architecture
        self.card = card
        self.classes = len(card.classes)
        self.backbone = build_backbone(architecture, len(card.bands))
        self.head = Heads(architecture, classes=self.classes)
        set_prior(self, architecture.prior)
        self.criterion = Criterion(card.losses, classes=self.classes)

    def forward(self, chips: Tensor) -> list[Raw]:
        """Return the raw outputs of every searched level, rows in the order of `anchors`.

        `chips` is (B, bands, H, W), normalised.
        """
        pyramid = list(self.backbone(chips).values())
        return [self._search(pyramid[level]) for level in self.card.architecture.searched]

    def losses(self, pixels: Tensor, truth: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return the losses of a batch (B, bands, H, W), normalised; see `Criterion`.

        `truth` has for each chip its boxes (T, 4) xyxy and labels (T,) int64.
        """
        outputs = self(pixels)
        raw = Raw(
            torch.cat([level.logits for level in outputs], 1).float(),
            torch.cat([level.deltas for level in outputs], 1).float(),
            torch.cat([cast(Tensor, level.quality) for level in outputs], 1).float()
            if self.card.architecture.iou_branch
            else None,
        )
        places = self._anchors(pixels)
        per_cell = self.card.architecture.anchors_per_cell
        matches = [
            assign(places, boxes, self.card.assignment, per_cell=per_cell) for boxes, _ in truth
        ]
        return cast(dict[str, Tensor], self.criterion(raw, torch.cat(places), matches, truth))

    def find(self, pixels: Tensor, inference: Inference) -> list[ChipBoxes]:
        """Find boxes in a batch (B, bands, H, W), normalised.

        Levels on which no chip has an anchor above the score threshold are not regressed: they
        could not add a box.
        """
        pyramid = list(self.backbone(pixels).values())
        levels = [pyramid[level] for level in self.card.architecture.searched]
        logits = [self._classify(level) for level in levels]
        bound = lowest_logit(inference.score_threshold)
        busy = (torch.stack([one.amax() for one in logits]) > bound).tolist()
        outputs = [
            Raw(one, *self._regress(level))
            for one, level, due in zip(logits, levels, busy, strict=True)
            if due
        ]
        places = [place for place, due in zip(self._anchors(pixels), busy, strict=True) if due]
        height, width = pixels.shape[-2:]
        return [
            decode([level.of(chip) for level in outputs], places, inference, (height, width))
            for chip in range(len(pixels))
        ]

    def _search(self, level: Tensor) -> Raw:
        return Raw(self._classify(level), *self._regress(level))

    def _classify(self, level: Tensor) -> Tensor:
        return rows(self.head.classification_head(level)[0], self.classes)

    def _regress(self, level: Tensor) -> tuple[Tensor, Tensor | None]:
        deltas, *quality = self.head.regression_head(level)
        return rows(deltas, 4), rows(quality[0], 1).squeeze(-1) if quality else None

    def _anchors(self, pixels: Tensor) -> list[Tensor]:
        height, width = pixels.shape[-2:]
        return _anchors_on(self.card.architecture, (height, width), pixels.device)


def decode(
    outputs: list[Raw], places: list[Tensor], inference: Inference, shape: tuple[int, int]
) -> ChipBoxes:
    """Turn one chip's raw outputs and anchors, a level each, into boxes; `shape` is its H, W.

    Threshold, top k of every level, decoding, clipping to the chip, NMS: torchvision's order.
    Without outputs, as when no level has a candidate, nothing is found.
    """
    if not outputs:
        none = torch.zeros(0)
        return ChipBoxes(none.reshape(0, 4), none, none.long(), capped=False)
    boxes, scores, labels = [], [], []
    capped = False
    bound = lowest_logit(inference.score_threshold)
    for raw, level in zip(outputs, places, strict=True):
        flat = raw.logits.flatten()
        above = torch.nonzero(flat > bound).squeeze(1)
        anchor = above // raw.logits.shape[1]
        score = flat[above].float().sigmoid()
        if raw.quality is not None:
            score = score * raw.quality[anchor].float().sigmoid()
        confident = torch.nonzero(score > inference.score_threshold).squeeze(1)
        if len(confident) > inference.topk_per_level:
            capped = True
            confident = confident[score[confident].topk(inference.topk_per_level).indices]
        anchor = anchor[confident]
        boxes.append(coder.decode_single(raw.deltas[anchor].float(), level[anchor]))
        scores.append(score[confident])
        labels.append(above[confident] % raw.logits.shape[1])
    inside = clip_boxes_to_image(torch.cat(boxes), shape)
    score, label = torch.cat(scores), torch.cat(labels)
    group = torch.zeros_like(label) if inference.class_agnostic else label
    kept = batched_nms(inside, score, group, inference.nms_iou)
    if len(kept) > inference.max_detections_per_chip:
        capped = True
        kept = kept[: inference.max_detections_per_chip]
    return ChipBoxes(inside[kept], score[kept], label[kept], capped)


def lowest_logit(threshold: float) -> float:
    """Return a logit below all those whose score is above a threshold.

    The margin is wide enough for the bound to be rounded to bfloat16.
    """
    if threshold <= 0:
        return -math.inf
    logit = math.log(threshold / (1 - threshold))
    return logit - 0.01 * abs(logit) - 1e-3


def rows(output: Tensor, width: int) -> Tensor:
    """(B, A * width, H, W) -> (B, H * W * A, width), torchvision's order."""
    batch, _, height, columns = output.shape
    split = output.view(batch, -1, width, height, columns).permute(0, 3, 4, 1, 2)
    return split.reshape(batch, -1, width)


def set_prior(network: RetinaNet, prior: float) -> None:
    """Set the classification bias so that every anchor scores `prior` (paper, section 4.1)."""
    bias = network.head.classification_head.get_parameter("cls_logits.bias")
    nn.init.constant_(bias, -math.log((1 - prior) / prior))


@lru_cache(maxsize=32)
def _anchors_on(
    architecture: Architecture, shape: tuple[int, int], device: torch.device
) -> list[Tensor]:
    with torch.inference_mode(False):  # training may take the same ones later
        return [level.to(device) for level in anchors(architecture, shape)]
