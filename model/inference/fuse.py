"""Replace the layers of a network by those that use cuDNN's fused kernels, and check them."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork

from scenesweep.model.architecture import TIMM
from scenesweep.model.inference.fold import FoldedNorm
from scenesweep.model.inference.fused_layers import (
    ConvRelu,
    FusedBlock,
    FusedPyramid,
    FusedTower,
    PaddedConv,
)
from scenesweep.model.inference.group_norm import ChannelsLastGroupNorm
from scenesweep.model.networks.network import Network
from scenesweep.model.networks.retinanet import RetinaNet, Tower

_log = logging.getLogger(__name__)
_CHECK_PX = 128
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.1}
"""Largest root mean square of the differences, in standard deviations of the plain output."""
_POISON_SIZES = ((64, 2**16), (8, 2**22), (1, 2**26))  # (tensors, float32 values in each)


def place(network: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """Move a network with folded batch norms to a device; on CUDA, fuse its layers."""
    if device.type == "cuda":
        return move_and_fuse(network, device, dtype)
    move(network, device, dtype)
    return network


def move_and_fuse(network: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """Move a network with folded batch norms to a device, with fused layers if they work there.

    The fused network runs once on a small chip, in memory that was filled with NaN, and its outputs
    are compared with those of the plain layers. When they differ, or when cuDNN has no such
    kernel, a warning is logged and the plain network is returned. Only a RetinaNet is fused. The
    given network may change.
    """
    if not isinstance(network, RetinaNet):
        move(network, device, dtype)
        return network
    fused = copy.deepcopy(network)
    fuse(fused)
    move(fused, device, dtype)
    move(network, device, dtype)
    problem = difference(network, fused, _check_chip(network, device, dtype))
    if problem:
        _log.warning(
            "detector: cuDNN's fused convolutions are not used, plain ones take their place and "
            "are slower: %s (torch %s)",
            problem,
            torch.__version__,
        )
        return network
    return fused


def fuse(network: RetinaNet) -> int:
    """Replace the stem, blocks, pyramid and heads of a network in place; return their number.

    Its batch norms must have been folded. The parameters get other names.
    """
    if network.card.architecture.backbone.startswith(TIMM):
        replaced = _fuse_activations(network.backbone.body)
    else:
        network.input_channels = _fuse_stem(network.backbone.body)
        replaced = 1
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            other = _fused(layer)
            if other is not None:
                parent.add_module(name, other.train(layer.training))
                replaced += 1
    return replaced


def is_fused(network: nn.Module) -> bool:
    """Say whether `fuse` has changed this network."""
    return any(isinstance(layer, FusedTower | FusedBlock) for layer in network.modules())


def move(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a network to a device and precision; biases of fused output layers stay in float32."""
    towers = [layer for layer in network.modules() if isinstance(layer, FusedTower)]
    biases = [tower.output_bias for tower in towers]
    network.to(memory_format=torch.channels_last).to(device, dtype)
    for tower, bias in zip(towers, biases, strict=True):
        tower.output_bias = bias.to(device)


@torch.inference_mode()
def difference(plain: RetinaNet, fused: RetinaNet, chips: Tensor) -> str:
    """Compare the outputs of two networks; return what is wrong, or an empty text.

    Outputs differ because the plain network rounds after each operation. The limit is a share of
    the plain output's standard deviation plus one rounding step of its largest value.
    """
    expected = plain(chips)
    _fill_free_memory(chips.device)
    try:
        outputs = fused(chips)
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    for level, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
        for name in ("logits", "deltas", "quality"):
            a, b = getattr(ours, name), getattr(theirs, name)
            if b is not None and not _are_close(a, b):
                return f"{name} of level {level} differ from those of plain convolutions"
    return ""


def _are_close(fused: Tensor, plain: Tensor) -> bool:
    """Say whether the outputs are close; NaN is close to nothing."""
    a, b = fused.double(), plain.double()
    allowed = _TOLERANCE[plain.dtype] * b.std() + torch.finfo(plain.dtype).eps * b.abs().max()
    return bool((a - b).square().mean().sqrt() <= allowed)


def _check_chip(network: RetinaNet, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return two normalised chips of noise."""
    noise = torch.Generator().manual_seed(0)
    shape = (2, len(network.card.bands), _CHECK_PX, _CHECK_PX)
    chips = torch.randn(shape, generator=noise)
    return chips.to(device, dtype, memory_format=torch.channels_last)


def _fill_free_memory(device: torch.device) -> None:
    """Fill memory that torch will hand out next with NaN.

    `cudnn_convolution_relu` names its own output, which is not initialised, as a summand with
    weight 0. A kernel that reads it would turn NaN into NaN.
    """
    if device.type != "cuda":
        return
    filled = [
        torch.full((values,), torch.nan, device=device)
        for tensors, values in _POISON_SIZES
        for _ in range(tensors)
    ]
    filled.clear()


def _fuse_stem(body: nn.Module) -> int:
    """Put the stem's ReLU into its convolution or normalisation; return the channels it takes."""
    conv, norm = body.get_submodule("conv1"), body.get_submodule("bn1")
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"expected a Conv2d as conv1, got {type(conv).__name__}")
    if isinstance(norm, nn.GroupNorm):
        stem = PaddedConv(conv)
        body.add_module("bn1", ChannelsLastGroupNorm(norm))
    else:
        stem = ConvRelu(conv)
    body.add_module("conv1", stem)
    body.add_module("relu", nn.Identity())
    return stem.channels


def _fuse_activations(body: nn.Module) -> int:
    """Put the ReLUs of folded norms of timm into the convolutions; return their number.

    cuDNN has no fused kernel for other activations, and none that is faster for depthwise
    convolutions.
    """
    replaced = 0
    for parent in list(body.modules()):
        before = "", nn.Module()
        for name, layer in list(parent.named_children()):
            conv = before[1]
            relu = isinstance(layer, FoldedNorm) and type(layer[0]) is nn.ReLU
            if relu and type(conv) is nn.Conv2d and conv.groups == 1:
                parent.add_module(before[0], ConvRelu(conv))
                parent.add_module(name, nn.Identity())
                replaced += 1
            before = name, layer
    return replaced


def _fused(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, BasicBlock | Bottleneck):
        return FusedBlock(layer)
    if isinstance(layer, FeaturePyramidNetwork):
        return FusedPyramid(layer)
    return FusedTower(layer) if isinstance(layer, Tower) else None
