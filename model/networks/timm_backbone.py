"""Backbones of timm, the library "PyTorch Image Models".

Any of its networks that gives maps (B, C, H, W) of strides 4 to 32 for chips of any size. timm is
imported when a card names one of its networks, and never otherwise: it takes about two seconds.
Parameters have timm's names. No weights are downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from scenesweep.model.architecture import GROUPS, TIMM, Architecture
from scenesweep.model.errors import ModelError, needs_extra

_CHECK_PX = 64


@dataclass(frozen=True, slots=True)
class Maps:
    """The maps of a network, finest first: stride, channels, and the name of the part they leave.

    `parts` names all parts in the order of computation.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    modules: tuple[str, ...]
    parts: tuple[str, ...]


def make_body(architecture: Architecture, bands: int) -> tuple[nn.Module, list[int]]:
    """Make a network that maps chips to one map for each level up to P5; and their channels.

    Raises:
        MissingExtra: when timm is not installed.
        ModelError: when timm has no such network, or it has no maps of these strides.
    """
    name = architecture.backbone.removeprefix(TIMM)
    first, last = architecture.levels
    strides = [2**level for level in range(first, min(last, 5) + 1)]
    maps = maps_of(name)
    if not set(strides) <= set(maps.strides):
        raise ModelError(
            f"architecture.levels: expected levels with strides that {architecture.backbone} has "
            f"({', '.join(map(str, maps.strides))}), got P{first} to P{last}, which need "
            f"{', '.join(map(str, strides))}"
        )
    indices = tuple(maps.strides.index(stride) for stride in strides)
    body = _create(name, bands, indices)
    _cut_after(body, maps.modules[indices[-1]])
    _check_shapes(name, bands, indices)
    _set_norms(body, architecture)
    return body, [maps.channels[index] for index in indices]


def parts_up_to(body: nn.Module, architecture: Architecture, stages: int) -> tuple[str, ...]:
    """Name the parts of a body that compute the maps with strides up to 2**stages.

    Raises:
        ModelError: when the network is not a sequence of parts.
    """
    if not stages:
        return ()
    maps = maps_of(architecture.backbone.removeprefix(TIMM))
    # A network without a map of stride 2 has a stem: all that comes before its first stage.
    with_end = 2**stages in maps.strides
    last = maps.modules[maps.strides.index(2**stages)] if with_end else maps.modules[0]
    if last not in maps.parts:
        raise ModelError(
            f"architecture.frozen_stages: expected 0, because {architecture.backbone} is not a "
            f"sequence of stages, got {stages}"
        )
    present = dict(_parts(body))
    end = maps.parts.index(last) + (1 if with_end else 0)
    return tuple(name for name in maps.parts[:end] if name in present)


@lru_cache(maxsize=32)
def maps_of(name: str) -> Maps:
    """Return which maps a network of timm has. It is built without values.

    Raises:
        MissingExtra: when timm is not installed.
        ModelError: when timm has no such network, or it gives no maps of several strides.
    """
    with torch.device("meta"):
        body = _create(name, 3, None)
    info, parts = body.feature_info, tuple(part for part, _ in _parts(body))
    # Some of timm's feature extractors rename `stages.0` to `stages_0`.
    modules = (m if m in parts else m.replace(".", "_") for m in info.module_name())
    return Maps(tuple(info.reduction()), tuple(info.channels()), tuple(modules), parts)


def _create(name: str, bands: int, indices: tuple[int, ...] | None) -> Any:
    with needs_extra("timm"):
        import timm
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        hint = f"; similar names: {', '.join(TIMM + n for n in near)}" if near else ""
        raise ModelError(
            f"architecture.backbone: expected a network of timm {timm.__version__}, got "
            f"{TIMM}{name}{hint}"
        )
    chosen: dict[str, Any] = {} if indices is None else {"out_indices": indices}
    try:
        body = timm.create_model(
            name, pretrained=False, features_only=True, in_chans=bands, **chosen
        )
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError) as error:
        raise _unsuitable(name, str(error)) from error
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in body.modules()):
        raise _unsuitable(name, "its maps are taken by hooks, which a copy of it does not have")
    return body


def _unsuitable(name: str, reason: str) -> ModelError:
    return ModelError(
        f"architecture.backbone: expected a network with maps of strides 4 to 32, {TIMM}{name} "
        f"cannot be used: {reason}"
    )


@lru_cache(maxsize=64)
def _check_shapes(name: str, bands: int, indices: tuple[int, ...]) -> None:
    """Check that a network takes chips of any size and gives (B, C, H, W), without values."""
    maps = maps_of(name)
    with torch.device("meta"):
        body = _create(name, bands, indices).eval()
        try:
            outputs: Sequence[Tensor] = body(torch.zeros(1, bands, _CHECK_PX, _CHECK_PX))
        except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
            raise _unsuitable(name, str(error).splitlines()[0]) from error
    sides = [_CHECK_PX // maps.strides[index] for index in indices]
    expected = [
        (1, maps.channels[index], side, side) for index, side in zip(indices, sides, strict=True)
    ]
    shapes = [tuple(output.shape) for output in outputs]
    if shapes != expected:
        raise _unsuitable(name, f"it gives maps {shapes} instead of {expected}")


def _parts(body: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a body in the order of computation; each stage is one part."""
    for name, child in body.named_children():
        if name == "blocks" and isinstance(child, nn.Sequential):
            yield from ((f"{name}.{inner}", block) for inner, block in child.named_children())
        else:
            yield name, child


def _cut_after(body: nn.Module, last: str) -> None:
    """Remove the blocks after the last map, which would compute what nobody reads."""
    blocks = dict(body.named_children()).get("blocks")
    if isinstance(blocks, nn.Sequential) and last.startswith("blocks."):
        del blocks[int(last.removeprefix("blocks.")) + 1 :]


def _set_norms(body: nn.Module, architecture: Architecture) -> None:
    norms = [layer for layer in body.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.eps = architecture.norm_eps
    kind = architecture.backbone_norm
    if kind in ("batch", "sync"):
        return
    if not norms:
        raise ModelError(
            f"architecture.backbone_norm: expected batch, because {architecture.backbone} has no "
            f"batch normalisation, got {kind}"
        )
    if kind == "frozen":
        from timm.layers import freeze_batch_norm_2d

        freeze_batch_norm_2d(body)
        return
    for parent in list(body.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                parent.add_module(name, _group_norm(layer))


def _group_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """Return a group norm with the activation, if any, of timm's batch norm."""
    channels = norm.num_features
    group = nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps=norm.eps)
    activation = getattr(norm, "act", None)
    return group if activation is None else nn.Sequential(group, activation)
