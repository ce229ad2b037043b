"""Group normalisation (Wu & He 2018, arXiv:1803.08494) with ReLU that keeps channels last.

Before version 2.15, torch's CUDA kernel first copies channels-last maps to NCHW, and the next
convolution copies them back: 9 passes over the map with its ReLU. The operations here take 6 and
change no layout.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHANNELS_LAST_SINCE = (2, 15)  # https://github.com/pytorch/pytorch/pull/191945


class ChannelsLastGroupNorm(nn.Module):
    """A group normalisation, then an optional residual and an optional ReLU. May change its input.

    The way is chosen by device and torch's version only: torch's kernel where it keeps the layout,
    else `normalise_groups`.
    """

    def __init__(self, norm: nn.GroupNorm, *, relu: bool = True) -> None:
        super().__init__()
        self.norm = norm
        self.relu = relu

    def forward(self, maps: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise (B, C, H, W). `residual` has the same shape."""
        if maps.is_cuda and not torch_keeps_channels_last(torch.__version__):
            output = normalise_groups(maps, self.norm)
        else:
            norm = self.norm
            output = F.group_norm(maps, norm.num_groups, norm.weight, norm.bias, norm.eps)
        if residual is not None:
            output = output.add_(residual)
        return output.relu_() if self.relu else output


def torch_keeps_channels_last(version: str) -> bool:
    """Say whether this version of torch normalises groups on CUDA without a copy to NCHW."""
    major, minor = re.findall(r"\d+", version)[:2]
    return (int(major), int(minor)) >= _CHANNELS_LAST_SINCE


def normalise_groups(maps: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Normalise channels-last maps (B, C, H, W) in place: 10 kernels, 3 of which read the maps.

    Sums are float32. The variance is the mean of squares minus the square of the mean: its error is
    about 1e-7 of the mean of squares.
    """
    batch, channels, height, width = maps.shape
    groups = norm.num_groups
    split = maps.view(batch, groups, channels // groups, height, width)
    cells = channels // groups * height * width
    mean = split.mean((2, 3, 4), keepdim=True, dtype=torch.float32)
    length = torch.linalg.vector_norm(split, dim=(2, 3, 4), keepdim=True, dtype=torch.float32)
    negative_variance = torch.addcmul(mean * mean, length, length, value=-1 / cells).clamp_max_(0)
    scale = torch.rsub(negative_variance, norm.eps).rsqrt_() * norm.weight.view(1, groups, -1, 1, 1)
    shift = torch.addcmul(norm.bias.view(1, groups, -1, 1, 1), mean, scale, value=-1)
    torch.addcmul(shift, split, scale, out=split)
    return maps
