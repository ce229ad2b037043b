"""Fold batch normalisation into the convolution before it, to save passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> int:
    """Fold every batch normalisation that follows a convolution, in place; return their number.

    In a ResNet, `bn1` follows `conv1`; in a sequence, each layer follows the one before. With
    fixed statistics, convolution and normalisation are one affine map (Jacob et al. 2018,
    arXiv:1712.05877, section 3.2). The results are equal up to rounding. Group normalisation
    cannot be folded and stays.
    """
    folded = 0
    for parent in list(network.modules()):
        layers = dict(parent.named_children())
        for name, norm in layers.items():
            conv = layers.get(_before(name, parent))
            if isinstance(conv, nn.Conv2d) and _is_batch_norm(norm):
                _fold(conv, norm)
                parent.add_module(name, nn.Identity())
                folded += 1
    return folded


def _before(name: str, parent: nn.Module) -> str:
    if isinstance(parent, nn.Sequential):
        return str(int(name) - 1) if name.isdecimal() else ""
    return name.replace("bn", "conv") if name.startswith("bn") else ""


def _is_batch_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d)


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
