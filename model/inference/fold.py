"""Fold batch normalisation into the convolution before it, to save passes over memory."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from scenesweep.model.architecture import TIMM
from scenesweep.model.networks.backbone import FrozenStages
from scenesweep.model.networks.network import Network

_log = logging.getLogger(__name__)
_CHECK_PX = 64
_TOLERANCE = 1e-3
"""Largest difference of a map, as a share of its largest value."""


class FoldedNorm(nn.Sequential):
    """What is left of a normalisation of timm that was folded: its activation."""


def fold(network: Network) -> Network:
    """Fold the batch norms of a network in evaluation mode; return it.

    In a network of timm, a normalisation is assumed to follow the convolution before it in the
    definition of the block. Therefore both networks see one chip of noise. If their maps differ,
    a warning is logged and the network is returned as it was.
    """
    card = network.card
    if not card.architecture.backbone.startswith(TIMM):
        fold_batch_norms(network)
        return network
    folded = copy.deepcopy(network)
    fold_batch_norms(folded)
    noise = torch.Generator().manual_seed(0)
    chip = torch.randn((1, len(card.bands), _CHECK_PX, _CHECK_PX), generator=noise)
    if _are_equal(_maps(network, chip), _maps(folded, chip)):
        return folded
    _log.warning(
        "detector: the batch norms of %s are not folded, because its maps would change; the "
        "detector is slower",
        card.architecture.backbone,
    )
    return network


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> int:
    """Fold every batch normalisation that follows a convolution, in place; return their number.

    It follows a convolution if it is the next layer in the definition of their parent, and has as
    many channels. The convolution may also be the last layer of a sequence. With fixed statistics,
    convolution and normalisation are one affine map (Jacob et al. 2018, arXiv:1712.05877, section
    3.2). The results are equal up to rounding. Group normalisation cannot be folded and stays.
    """
    folded = 0
    for parent in list(network.modules()):
        before: nn.Module | None = None
        for name, layer in list(parent.named_children()):
            if isinstance(before, nn.Conv2d) and _is_batch_norm(layer, before.out_channels):
                _fold(before, layer)
                parent.add_module(name, _left_of(layer))
                folded += 1
            before = before if isinstance(layer, nn.Identity) else _last_of(layer)
    return folded


def _last_of(layer: nn.Module) -> nn.Module:
    """Return the last layer of a sequence; other layers as they are."""
    while isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[-1]
    return layer


def _is_batch_norm(layer: nn.Module, channels: int) -> bool:
    """Say whether a layer is a batch norm: torch's, torchvision's frozen one, or one of timm's."""
    if isinstance(layer, nn.InstanceNorm2d):
        return False
    values = (getattr(layer, name, None) for name in ("running_mean", "running_var", "weight"))
    return all(isinstance(value, Tensor) and value.shape == (channels,) for value in values)


def _left_of(norm: Any) -> nn.Module:
    activation = getattr(norm, "act", None)
    if activation is None or isinstance(activation, nn.Identity):
        return nn.Identity()
    return FoldedNorm(activation)


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


@torch.inference_mode()
def _maps(network: nn.Module, chip: Tensor) -> list[Tensor]:
    """Return the maps of the pyramid."""
    backbone = next(layer for layer in network.modules() if isinstance(layer, FrozenStages))
    return list(backbone(chip.to(next(network.parameters()).device)).values())


def _are_equal(plain: list[Tensor], folded: list[Tensor]) -> bool:
    return all(
        bool((a - b).abs().max() <= _TOLERANCE * a.abs().max())
        for a, b in zip(plain, folded, strict=True)
    )
