"""Backbone and feature pyramid of every kind of network.

Backbones are torchvision's ResNets or networks of timm, with their parameter names. The pyramid is
torchvision's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from scenesweep.model.architecture import GROUPS, TIMM, Architecture
from scenesweep.model.networks.timm_backbone import make_body, parts_up_to


class FrozenStages(nn.Module):
    """A backbone (`body`) with a pyramid. Its first stages may be frozen: they are not trained, and
    their statistics do not change.

    `frozen` holds the names of these parts, not the modules: training on several GPUs replaces
    batch norms by synchronised ones (`synchronise_norms`).
    """

    def __init__(self, body: nn.Module, fpn: FeaturePyramidNetwork, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.out_channels = out_channels
        self.frozen: tuple[str, ...] = ()

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return one map (B, C, H, W) for each level, finest first."""
        maps = self.body(pixels)
        if not isinstance(maps, dict):  # timm's networks return a list
            maps = OrderedDict((str(number), level) for number, level in enumerate(maps))
        return cast("OrderedDict[str, Tensor]", self.fpn(maps))

    def train(self, mode: bool = True) -> FrozenStages:
        super().train(mode)
        for name in self.frozen:
            self.body.get_submodule(name).eval()
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


class P6P7WithoutRelu(LastLevelP6P7):  # type: ignore[misc]
    """P6 and P7 as in mmdetection: P7 is a convolution of P6, without ReLU between them."""

    def forward(
        self, p: list[Tensor], c: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to the pyramid `p`; `c` are the backbone's outputs."""
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


def build_backbone(architecture: Architecture, bands: int) -> FrozenStages:
    """Build backbone and pyramid. The result maps chips to one tensor (B, C, H, W) for each level.

    A level without anchors has no output convolution.

    Raises:
        MissingExtra: when the backbone is timm's, and timm is not installed.
        ModelError: when timm has no such backbone with maps for these levels.
    """
    from_timm = architecture.backbone.startswith(TIMM)
    network = (_on_timm if from_timm else _on_resnet)(architecture, bands)
    if architecture.levels[1] <= 5:
        network.fpn.extra_blocks = None  # torchvision would add a max-pooled level
    _drop_unused_outputs(network, architecture)
    _freeze(network, architecture)
    return network


def _on_resnet(architecture: Architecture, bands: int) -> FrozenStages:
    body = torchvision.models.get_model(
        architecture.backbone, weights=None, norm_layer=_norm(architecture)
    )
    if architecture.stride_in_1x1:
        _move_strides(body)
    if bands != 3:
        body.conv1 = nn.Conv2d(bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    first, last = architecture.levels
    layers = range(first - 1, min(last, 5))
    widest = body.inplanes  # channels of layer4; each earlier layer has half as many
    network = BackboneWithFPN(
        body,
        {f"layer{layer}": str(i) for i, layer in enumerate(layers)},
        [widest // 2 ** (4 - layer) for layer in layers],
        architecture.channels,
        _extra_levels(architecture, widest),
    )
    return FrozenStages(network.body, network.fpn, architecture.channels)


def _move_strides(body: nn.Module) -> None:
    """Exchange the strides of the first two convolutions of bottleneck blocks."""
    for block in body.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _on_timm(architecture: Architecture, bands: int) -> FrozenStages:
    body, channels = make_body(architecture, bands)
    extra = _extra_levels(architecture, channels[-1])
    pyramid = FeaturePyramidNetwork(channels, architecture.channels, extra)
    return FrozenStages(body, pyramid, architecture.channels)


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
        without_relu = architecture.conventions == "mmdetection"
        block = (P6P7WithoutRelu if without_relu else LastLevelP6P7)(source, channels)
        block.use_P5 = use_p5  # torchvision infers it from the numbers of channels
        return block
    return None


def _drop_unused_outputs(network: FrozenStages, architecture: Architecture) -> None:
    if architecture.kind != "retinanet":
        return
    needed = set(architecture.searched)
    if architecture.extra_levels_from == "p5" and architecture.levels[1] > 5:
        needed.add(5 - architecture.levels[0])
    for level in range(len(network.fpn.layer_blocks)):
        if level not in needed:
            network.fpn.layer_blocks[level] = nn.Identity()


def _freeze(network: FrozenStages, architecture: Architecture) -> None:
    """Freeze the stem (1) and the layers (2 to 5) up to `frozen_stages`."""
    body, stages = network.body, architecture.frozen_stages
    if architecture.backbone.startswith(TIMM):
        network.frozen = parts_up_to(body, architecture, stages)
    else:
        parts = [["conv1", "bn1"], *([f"layer{i}"] for i in range(1, 5))]
        present = dict(body.named_children())
        network.frozen = tuple(
            name for names in parts[:stages] for name in names if name in present
        )
    for name in network.frozen:
        body.get_submodule(name).requires_grad_(False)


def synchronise_norms(network: nn.Module) -> None:
    """Replace the batch norms of a network by synchronised ones, in place, to train on GPUs.

    Those of timm may contain an activation, which torch's own function would drop.
    """
    with_activation = any(
        isinstance(layer, nn.BatchNorm2d) and type(layer) is not nn.BatchNorm2d
        for layer in network.modules()
    )
    if with_activation:
        from timm.layers import convert_sync_batchnorm

        convert_sync_batchnorm(network)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)


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
