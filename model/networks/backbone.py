"""Backbone and feature pyramid of every kind of network.

The parts are torchvision's and have torchvision's parameter names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from scenesweep.model.architecture import GROUPS, Architecture


class FrozenStages(BackboneWithFPN):  # type: ignore[misc]
    """A backbone with a pyramid whose first stages are not trained; their statistics do not change.

    `frozen` holds the names of these parts, not the modules: training on several GPUs replaces
    batch norms by synchronised ones (`SyncBatchNorm.convert_sync_batchnorm`).
    """

    frozen: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> FrozenStages:
        super().train(mode)
        for name in self.frozen:
            self.body[name].eval()
        return self


class LastLevelP6(ExtraFPNBlock):  # type: ignore[misc]
    """P6 without P7: a convolution of stride 2 on C5 or P5. torchvision only has both together."""

    def __init__(self, in_channels: int, out_channels: int, *, use_p5: bool) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        nn.init.kaiming_uniform_(self.p6.weight, a=1)
        nn.init.zeros_(cast(Tensor, self.p6.bias))
        self._use_p5 = use_p5

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Append P6 to the pyramid `results`; `x` are the backbone's outputs."""
        source = results[-1] if self._use_p5 else x[-1]
        return [*results, self.p6(source)], [*names, "p6"]


def build_backbone(architecture: Architecture, bands: int) -> FrozenStages:
    """Build backbone and pyramid. The result maps chips to one tensor (B, C, H, W) for each level.

    A level without anchors has no output convolution.
    """
    body = torchvision.models.get_model(
        architecture.backbone, weights=None, norm_layer=_norm(architecture)
    )
    if bands != 3:
        body.conv1 = nn.Conv2d(bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    first, last = architecture.levels
    layers = range(first - 1, min(last, 5))
    widest = body.inplanes  # channels of layer4; each earlier layer has half as many
    network = FrozenStages(
        body,
        {f"layer{layer}": str(i) for i, layer in enumerate(layers)},
        [widest // 2 ** (4 - layer) for layer in layers],
        architecture.channels,
        _extra_levels(architecture, widest),
    )
    if last <= 5:
        network.fpn.extra_blocks = None  # torchvision would add a max-pooled level
    _drop_unused_outputs(network, architecture)
    _freeze(network, architecture.frozen_stages)
    return network


def _norm(architecture: Architecture) -> Callable[[int], nn.Module]:
    """Return a function that makes a normalisation layer.

    `sync` starts as plain batch norm; training on several GPUs converts it.
    """
    eps = architecture.norm_eps
    if architecture.backbone_norm == "group":
        return partial(nn.GroupNorm, GROUPS, eps=eps)
    if architecture.backbone_norm == "frozen":
        return partial(FrozenBatchNorm2d, eps=eps)
    return partial(nn.BatchNorm2d, eps=eps)


def _extra_levels(architecture: Architecture, widest: int) -> ExtraFPNBlock | None:
    channels, last = architecture.channels, architecture.levels[1]
    use_p5 = architecture.extra_levels_from == "p5"
    source = channels if use_p5 else widest
    if last == 6:
        return LastLevelP6(source, channels, use_p5=use_p5)
    if last == 7:
        block = LastLevelP6P7(source, channels)
        block.use_P5 = use_p5  # torchvision infers it from the numbers of channels
        return block
    return None


def _drop_unused_outputs(network: BackboneWithFPN, architecture: Architecture) -> None:
    if architecture.kind != "retinanet":
        return
    needed = set(architecture.searched)
    if architecture.extra_levels_from == "p5" and architecture.levels[1] > 5:
        needed.add(5 - architecture.levels[0])
    for level in range(len(network.fpn.layer_blocks)):
        if level not in needed:
            network.fpn.layer_blocks[level] = nn.Identity()


def _freeze(network: FrozenStages, stages: int) -> None:
    """Freeze the stem (1) and the layers (2 to 5) up to `stages`."""
    body = network.body
    parts = [["conv1", "bn1"], *([f"layer{i}"] for i in range(1, 5))]
    network.frozen = tuple(name for names in parts[:stages] for name in names if name in body)
    for name in network.frozen:
        body[name].requires_grad_(False)


def adapt_first_convolution(
    weight: Tensor, given: tuple[str, ...], needed: tuple[str, ...]
) -> Tensor:
    """Adapt a first convolution (64, len(given), 7, 7) to other bands: (64, len(needed), 7, 7).

    A band with the same name keeps its weights. Any other band gets the mean over the given bands.
    All weights are scaled so that the output for a grey chip, equal in all bands, stays the same.
    """
    mean = weight.mean(dim=1)
    parts = [weight[:, given.index(band)] if band in given else mean for band in needed]
    adapted = torch.stack(parts, dim=1)
    if all(band in given for band in needed) and len(needed) == len(given):
        return adapted
    return adapted * (len(given) / len(needed))
