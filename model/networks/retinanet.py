"""RetinaNet (Lin et al. 2017, arXiv:1708.02002), built from its architecture.

Parts and parameter names are torchvision's where it has them, so that its checkpoints load. Chips
are never resized.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation

from scenesweep.model.architecture import GROUPS, Architecture
from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.card import Inference, ModelCard
from scenesweep.model.losses.assign import assign
from scenesweep.model.losses.criterion import Criterion, RawOutputs
from scenesweep.model.losses.truth import Truth
from scenesweep.model.networks.anchors import anchors
from scenesweep.model.networks.backbone import build_backbone
from scenesweep.model.networks.batched_decode import (
    Packed,
    Room,
    decode_batch,
    needs_more,
    unpack,
)
from scenesweep.model.networks.decode import decode, lowest_logit, rows

ROOM = Room(capacity=1024, rounds=12)
"""Bounds of the batched decode. A chip that needs more is decoded again, with the same result."""
_MORE_ROOM = Room(capacity=2048, rounds=24)
_AGAIN_AT_ONCE = 8
"""Chips that are decoded again with more room at a time: each takes some 60 MB."""


class Tower(nn.Module):
    """One of the two heads: convolutions, then one output layer for each name in `outputs`."""

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
        """Return one map (B, channels, H, W) for each output, in the order of `outputs`."""
        features = self.conv(level)
        return [self.get_submodule(name)(features) for name in self.outputs]


class Heads(nn.Module):
    """The two heads, with torchvision's names."""

    def __init__(self, architecture: Architecture, *, classes: int) -> None:
        super().__init__()
        per_cell = architecture.anchors_per_cell
        boxes = {"bbox_reg": per_cell * 4}
        if architecture.iou_branch:
            boxes["iou_pred"] = per_cell
        self.classification_head = Tower(architecture, {"cls_logits": per_cell * classes})
        self.regression_head = Tower(architecture, boxes)


class RetinaNet(nn.Module):
    """Backbone, feature pyramid, and two heads that are shared by all levels with anchors."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        architecture = card.architecture
        self.card = card
        self.classes = len(card.classes)
        self.input_channels = len(card.bands)  # with fused layers 8: the rest is zero
        self.backbone = build_backbone(architecture, len(card.bands))
        self.head = Heads(architecture, classes=self.classes)
        set_prior(self, architecture.prior)
        self.criterion = Criterion(card.losses, classes=self.classes)

    def forward(self, chips: Tensor) -> list[RawOutputs]:
        """Return the raw outputs of every level with anchors, rows in the order of `anchors`.

        `chips` is (B, bands, H, W), normalised.
        """
        pyramid = list(self.backbone(chips).values())
        return [self._search(pyramid[level]) for level in self.card.architecture.searched]

    def losses(self, pixels: Tensor, truth: Truth) -> dict[str, Tensor]:
        """Return the losses of a normalised batch (B, bands, H, W); see `Criterion`."""
        outputs = self(pixels)
        raw = RawOutputs(
            torch.cat([level.logits for level in outputs], 1).float(),
            torch.cat([level.deltas for level in outputs], 1).float(),
            torch.cat([cast(Tensor, level.quality) for level in outputs], 1).float()
            if self.card.architecture.iou_branch
            else None,
        )
        level_anchors = self.anchors(shape_of(pixels), pixels.device)
        per_cell = self.card.architecture.anchors_per_cell
        match = assign(level_anchors, truth, self.card.assignment, per_cell=per_cell)
        losses = self.criterion(raw, torch.cat(level_anchors), match, truth)
        return cast(dict[str, Tensor], losses)

    def find(self, pixels: Tensor, inference: Inference) -> list[ChipBoxes]:
        """Detect boxes in a normalised batch (B, bands, H, W). The boxes are on the CPU."""
        if pixels.device.type == "cpu":
            return self._find_by_chip(pixels, inference)
        shape = shape_of(pixels)
        outputs, packed = self.find_packed(pixels, inference)
        return self.unpack(outputs, packed, inference, shape)

    def find_packed(
        self,
        pixels: Tensor,
        inference: Inference,
        level_anchors: list[Tensor] | None = None,
        room: Room = ROOM,
    ) -> tuple[list[RawOutputs], Packed]:
        """Detect boxes without waiting for the device: the raw outputs, and boxes as a table.

        `level_anchors` are those of the batch's shape, on its device. Without them, the first call
        with a shape copies them to the device, which waits. `room` never changes a result.
        """
        shape = shape_of(pixels)
        there = level_anchors or self.anchors(shape, pixels.device)
        outputs = self(pixels)
        packed = decode_batch(outputs, there, inference, shape, room=room)
        return outputs, packed

    def unpack(
        self,
        outputs: list[RawOutputs],
        packed: Packed,
        inference: Inference,
        shape: tuple[int, int],
    ) -> list[ChipBoxes]:
        """Return the boxes of each chip of `shape` (H, W) from the results of `find_packed`.

        Chips that need more room get it on the device; what is left is decoded on the CPU.
        """
        ready = packed.cpu()
        chips = needs_more(ready)
        again: dict[int, ChipBoxes] = {}
        for start in range(0, len(chips), _AGAIN_AT_ONCE):
            some = chips[start : start + _AGAIN_AT_ONCE]
            raw = [level.some(torch.tensor(some, device=level.logits.device)) for level in outputs]
            again |= zip(some, self._decode_again(raw, inference, shape), strict=True)
        return unpack(ready, again.__getitem__)

    def _decode_again(
        self, outputs: list[RawOutputs], inference: Inference, shape: tuple[int, int]
    ) -> list[ChipBoxes]:
        there = self.anchors(shape, outputs[0].logits.device)
        packed = decode_batch(outputs, there, inference, shape, room=_MORE_ROOM)
        level_anchors = self.anchors(shape, torch.device("cpu"))

        def on_cpu(chip: int) -> ChipBoxes:
            raw = [level.of(chip).cpu() for level in outputs]
            return decode(raw, level_anchors, inference, shape)

        return unpack(packed.cpu(), on_cpu)

    def _find_by_chip(self, pixels: Tensor, inference: Inference) -> list[ChipBoxes]:
        """Detect boxes on a CPU.

        The box head does not run on a level where no anchor of any chip scores above the
        threshold, because such a level cannot add a box.
        """
        pyramid = list(self.backbone(pixels).values())
        levels = [pyramid[level] for level in self.card.architecture.searched]
        logits = [self._classify(level) for level in levels]
        bound = lowest_logit(inference.score_threshold)
        # Not `amax > bound`: NaN in one chip makes amax NaN, and the other chips still need boxes.
        needed = (~(torch.stack([level.amax() for level in logits]) <= bound)).tolist()
        shape = shape_of(pixels)
        every = zip(logits, levels, self.anchors(shape, pixels.device), needed, strict=True)
        outputs, level_anchors = [], []
        for level_logits, level, anchors_there, has_candidates in every:
            if has_candidates:
                outputs.append(RawOutputs(level_logits, *self._regress(level)))
                level_anchors.append(anchors_there)
        return [
            decode([raw.of(chip) for raw in outputs], level_anchors, inference, shape)
            for chip in range(len(pixels))
        ]

    def _search(self, level: Tensor) -> RawOutputs:
        return RawOutputs(self._classify(level), *self._regress(level))

    def _classify(self, level: Tensor) -> Tensor:
        return rows(self.head.classification_head(level)[0], self.classes)

    def _regress(self, level: Tensor) -> tuple[Tensor, Tensor | None]:
        deltas, *quality = self.head.regression_head(level)
        return rows(deltas, 4), rows(quality[0], 1).squeeze(-1) if quality else None

    def anchors(self, shape: tuple[int, int], device: torch.device) -> list[Tensor]:
        """Return the anchors of each level with any, for chips of `shape` (H, W)."""
        return _anchors_on(self.card.architecture, shape, device)


def shape_of(pixels: Tensor) -> tuple[int, int]:
    """Return the height and width of a batch (B, bands, H, W)."""
    height, width = pixels.shape[-2:]
    return height, width


def set_prior(network: RetinaNet, prior: float) -> None:
    """Set the classification bias so that every anchor has the score `prior` (section 4.1)."""
    bias = network.head.classification_head.get_parameter("cls_logits.bias")
    nn.init.constant_(bias, -math.log((1 - prior) / prior))


@lru_cache(maxsize=32)
def _anchors_on(
    architecture: Architecture, shape: tuple[int, int], device: torch.device
) -> list[Tensor]:
    with torch.inference_mode(False):  # training may use the same tensors later
        return [level.to(device) for level in anchors(architecture, shape)]
