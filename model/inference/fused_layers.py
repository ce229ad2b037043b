"""Layers for CUDA that add bias and residual and apply ReLU inside cuDNN's convolution kernels.

In a plain network each of these is a pass over memory after the convolution. `fuse.py` replaces
the plain layers by these. On a CPU they compute the same with plain operations, so tests need no
GPU. They are for inference only: cuDNN's fused convolutions have no gradient.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork

from scenesweep.model.inference.group_norm import ChannelsLastGroupNorm
from scenesweep.model.networks.retinanet import Tower

_MULTIPLE = 8  # tensor cores need channels in multiples of 8; else cuDNN copies the maps first


class PaddedConv(nn.Module):
    """A convolution whose input channels are filled up with zeros to a multiple of 8.

    The weights of these channels are zeros too, so the values stay the same.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        missing = -conv.in_channels % _MULTIPLE if conv.groups == 1 else 0
        self.channels = conv.in_channels + missing
        weight = F.pad(conv.weight, (0, 0, 0, 0, 0, missing)) if missing else conv.weight
        self.weight = _parameter(weight)
        self.bias = None if conv.bias is None else _parameter(conv.bias)
        self.stride = cast(tuple[int, int], conv.stride)
        self.padding = cast(tuple[int, int], conv.padding)
        self.dilation = cast(tuple[int, int], conv.dilation)
        self.groups = conv.groups

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W); C may be filled up already."""
        maps = fill_channels(input, self.channels)
        return F.conv2d(
            maps, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class ConvRelu(PaddedConv):
    """A convolution with bias, an optional residual and ReLU: relu(conv(x) + bias + residual)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        if self.bias is None:
            self.bias = _parameter(conv.weight.new_zeros(conv.out_channels))

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve (B, C, H, W). `residual` has the shape of the output."""
        if input.is_cuda:
            return self._on_cuda(fill_channels(input, self.channels), residual)
        output = super().forward(input)
        return (output if residual is None else output.add_(residual)).relu_()

    def _on_cuda(self, maps: Tensor, residual: Tensor | None) -> Tensor:
        shape = (self.stride, self.padding, self.dilation, self.groups)
        if residual is None:
            return torch.cudnn_convolution_relu(maps, self.weight, self.bias, *shape)
        return torch.cudnn_convolution_add_relu(maps, self.weight, residual, 1.0, self.bias, *shape)


class ConvNormRelu(nn.Module):
    """A convolution, a group normalisation, an optional residual and ReLU."""

    def __init__(self, conv: nn.Conv2d, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.conv = conv
        self.norm = ChannelsLastGroupNorm(norm)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve (B, C, H, W). `residual` has the shape of the output."""
        return cast(Tensor, self.norm(self.conv(input), residual))


class FusedBlock(nn.Module):
    """A residual block of a ResNet (He et al. 2016, arXiv:1512.03385, figure 5)."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        count = 3 if isinstance(block, Bottleneck) else 2
        layers = [
            conv_relu(block.get_submodule(f"conv{i}"), block.get_submodule(f"bn{i}"))
            for i in range(1, count + 1)
        ]
        self.first = nn.Sequential(*layers[:-1])
        self.last = layers[-1]
        self.downsample = block.downsample
        if self.downsample is not None:
            self._simplify(self.downsample)

    def forward(self, input: Tensor) -> Tensor:
        """Return the block's output for (B, C, H, W)."""
        residual = input if self.downsample is None else self.downsample(input)
        return cast(Tensor, self.last(self.first(input), residual))

    def _simplify(self, downsample: nn.Sequential) -> None:
        """Add the bias of the shortcut's convolution to the bias of the last convolution."""
        conv, norm = downsample[0], downsample[1]
        if isinstance(norm, nn.GroupNorm):
            downsample[1] = ChannelsLastGroupNorm(norm, relu=False)
        elif isinstance(conv, nn.Conv2d) and conv.bias is not None:
            bias = cast(Tensor, self.last.bias)
            self.last.bias = _parameter(bias + conv.bias)
            conv.bias = None


class FusedPyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017, arXiv:1612.03144) that stores no enlarged maps.

    A coarser map is added to 2 x 2 cells of the finer one in one operation. The bias of the finer
    map is added to the coarser one before, which has a quarter of the cells.
    """

    def __init__(self, pyramid: FeaturePyramidNetwork) -> None:
        super().__init__()
        self.inner_blocks = pyramid.inner_blocks
        self.layer_blocks = pyramid.layer_blocks
        self.extra_blocks = pyramid.extra_blocks

    def forward(self, maps: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Return one map for each level; `maps` are those of the backbone, finest first."""
        inputs = list(maps.values())
        inner = self.inner_blocks[-1](inputs[-1])
        results = [self.layer_blocks[-1](inner)]
        for level in range(len(inputs) - 2, -1, -1):
            conv = cast(nn.Conv2d, cast(nn.Sequential, self.inner_blocks[level])[0])
            bias = cast(Tensor, conv.bias).view(1, -1, 1, 1)
            lateral = F.conv2d(inputs[level], conv.weight)
            inner = add_enlarged(lateral, inner + bias)
            results.insert(0, self.layer_blocks[level](inner))
        names = list(maps)
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, inputs, names)
        return OrderedDict(zip(names, results, strict=True))


class FusedTower(nn.Module):
    """A head: fused convolutions, then one convolution for all outputs.

    Zero weights fill up the output channels to a multiple of 8. `output_bias` stays in float32, and
    so the outputs are float32 in every precision of the network: a bias of -4.6 in bfloat16 would
    round each logit to steps of 0.03.
    """

    output_bias: Tensor

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        layers = (_layers_of(unit) for unit in tower.conv.children())
        self.conv = nn.Sequential(*(conv_relu(conv, norm) for conv, norm in layers))
        outputs = [cast(nn.Conv2d, tower.get_submodule(name)) for name in tower.outputs]
        self.channels = [conv.out_channels for conv in outputs]
        missing = -sum(self.channels) % _MULTIPLE
        weight = torch.cat([conv.weight for conv in outputs])
        self.weight = _parameter(F.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing)))
        bias = torch.cat([cast(Tensor, conv.bias) for conv in outputs]).detach().float()
        self.register_buffer("output_bias", bias.view(1, -1, 1, 1))

    def forward(self, level: Tensor) -> list[Tensor]:
        """Return one map (B, channels, H, W) float32 for each output."""
        maps = F.conv2d(self.conv(level), self.weight, padding=1)[:, : sum(self.channels)]
        return list((maps + self.output_bias).split(self.channels, dim=1))


def conv_relu(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """Return a layer for convolution, normalisation (folded, or a group norm) and ReLU."""
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"expected a Conv2d, got {type(conv).__name__}")
    if isinstance(norm, nn.GroupNorm):
        return ConvNormRelu(conv, norm)
    if isinstance(norm, nn.Identity):
        return ConvRelu(conv)
    raise TypeError(f"expected a folded or group normalisation, got {type(norm).__name__}")


def add_enlarged(maps: Tensor, coarse: Tensor) -> Tensor:
    """Add each cell of `coarse` (B, C, h, w) to its cells of `maps` (B, C, H, W), in place.

    The cells are those of nearest-neighbour interpolation.
    """
    batch, channels, height, width = coarse.shape
    if maps.shape[-2:] != (2 * height, 2 * width):
        return maps.add_(F.interpolate(coarse, size=maps.shape[-2:], mode="nearest"))
    maps.view(batch, channels, height, 2, width, 2).add_(coarse[:, :, :, None, :, None])
    return maps


def fill_channels(maps: Tensor, channels: int) -> Tensor:
    """Append channels of zeros to (B, C, H, W) up to `channels`."""
    missing = channels - maps.shape[1]
    return F.pad(maps, (0, 0, 0, 0, 0, missing)) if missing else maps


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)


def _layers_of(unit: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return convolution and normalisation of torchvision's Conv2dNormActivation."""
    conv, *rest = unit.children()
    return conv, rest[0] if isinstance(rest[0], nn.GroupNorm) else nn.Identity()
