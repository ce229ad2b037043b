"""Build a RetinaNet (Lin et al. 2017, arXiv:1708.02002) from its architecture.

The parts are torchvision's, under torchvision's parameter names. The forward pass stops at the
raw outputs: anchors, decoding and suppression belong to `model.detector`, targets and losses to
`model.train`, so the network sees chips exactly as they are given, never resized.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from model.card import Architecture, ModelCard


class RetinaNet(nn.Module):
    """Backbone, feature pyramid and the two heads shared by all searched levels."""

    def __init__(self, architecture: Architecture, *, bands: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.searched = architecture.searched
        self.backbone = _backbone(architecture, bands)
        norm: Any = partial(nn.GroupNorm, 32) if architecture.head_norm == "group" else None
        self.head = RetinaNetHead(
            architecture.channels, architecture.anchors_per_cell, classes, norm_layer=norm
        )
        for half in (self.head.classification_head, self.head.regression_head):
            half.conv = half.conv[: architecture.head_convs]  # torchvision always builds four
        _set_prior(self.head.classification_head.cls_logits, architecture.prior)

    def forward(self, chips: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return class logits and box deltas, one tensor each for every searched level.

        `chips` is (B, bands, H, W), normalised. The logits are (B, cells * anchors, classes)
        and the deltas (B, cells * anchors, 4), rows in the order of `anchors`.
        """
        pyramid = list(self.backbone(chips).values())
        levels = [pyramid[i] for i in self.searched]
        logits = [self._classify(level) for level in levels]
        deltas = [self._regress(level) for level in levels]
        return logits, deltas

    def _classify(self, level: Tensor) -> Tensor:
        head = self.head.classification_head
        return _rows(head.cls_logits(head.conv(level)), self.classes)

    def _regress(self, level: Tensor) -> Tensor:
        head = self.head.regression_head
        return _rows(head.bbox_reg(head.conv(level)), 4)


def build(card: ModelCard) -> RetinaNet:
    """Build the network of `card` with random weights."""
    return RetinaNet(card.architecture, bands=len(card.bands), classes=len(card.classes))


def anchors(architecture: Architecture, chip_px: int) -> list[Tensor]:
    """Return the anchors of every searched level for a square chip.

    Each is (cells * anchors per cell, 4) float32 xyxy in chip pixels, cells row by row.
    """
    sizes = tuple(architecture.anchor_sizes_px[i] for i in architecture.searched)
    generator = AnchorGenerator(sizes, (architecture.aspect_ratios,) * len(sizes))
    first = architecture.levels[0]
    cells = [-(-chip_px // 2 ** (first + i)) for i in architecture.searched]
    images = ImageList(torch.zeros(1, 1, chip_px, chip_px), [(chip_px, chip_px)])
    together = generator(images, [torch.zeros(1, 1, n, n) for n in cells])[0]
    per_cell = architecture.anchors_per_cell
    return list(together.split([n * n * per_cell for n in cells]))


def normalisation(card: ModelCard) -> tuple[Tensor, Tensor]:
    """Return mean and std, (1, bands, 1, 1) float32, of chips in 0..255."""
    bands = len(card.bands)
    mean = torch.tensor(card.scaling.mean or (0.5,) * bands).reshape(1, bands, 1, 1)
    std = torch.tensor(card.scaling.std or (0.25,) * bands).reshape(1, bands, 1, 1)
    return mean * 255, std * 255


def _backbone(architecture: Architecture, bands: int) -> BackboneWithFPN:
    body = torchvision.models.get_model(architecture.backbone, weights=None)
    if bands != 3:
        body.conv1 = nn.Conv2d(bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    first, last = architecture.levels
    layers = range(first - 1, min(last, 5))
    base = body.inplanes // 8
    in_channels = [base * 2 ** (layer - 1) for layer in layers]
    channels = architecture.channels
    extra = LastLevelP6P7(channels, channels) if last == 7 else None
    with_fpn = BackboneWithFPN(
        body,
        {f"layer{layer}": str(i) for i, layer in enumerate(layers)},
        in_channels,
        channels,
        extra_blocks=extra,
    )
    if extra is None:
        with_fpn.fpn.extra_blocks = None  # torchvision would add a max-pooled level
    return with_fpn


def _rows(output: Tensor, width: int) -> Tensor:
    """(B, A * width, H, W) -> (B, H * W * A, width), torchvision's order."""
    batch, _, height, columns = output.shape
    rows = output.view(batch, -1, width, height, columns).permute(0, 3, 4, 1, 2)
    return rows.reshape(batch, -1, width)


def _set_prior(logits: nn.Module, prior: float) -> None:
    bias = cast(Tensor, logits.bias)
    nn.init.constant_(bias, -float(torch.log(torch.tensor((1 - prior) / prior))))
