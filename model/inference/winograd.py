"""Convolutions of 3 x 3 with fewer multiplications, on processors that compute in float32.

Winograd's minimal filtering (Lavin & Gray 2016, arXiv:1509.09308) by NNPACK, which comes inside
torch: tiles of 6 x 6 outputs take 64 multiplications a channel, not 324. In float32 its rounding
is about 1e-4 of a value. On one thread that makes RetinaNets 1.2 to 1.5 times as fast; more
threads wait for memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scenesweep.model.private_apis.torch import nnpack_convolution

_CHANNELS = 96  # with fewer, transforms cost what they save
_CELLS = 1000  # as above: filters are transformed anew for each map


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution that takes large maps through NNPACK, and small ones as before."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W); which way is taken depends on H and W alone."""
        if input.shape[-2] * input.shape[-1] < _CELLS:
            return super().forward(input)
        each = [
            nnpack_convolution(maps[None].contiguous(), self.weight, self.bias) for maps in input
        ]
        return torch.cat(each) if len(each) > 1 else each[0]


def use_winograd(network: nn.Module) -> int:
    """Replace suited convolutions of a network for inference, in place.

    Returns how many they are: none where torch comes without NNPACK, or the processor's vectors
    are not AVX2's, which are all that NNPACK knows of x86.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return 0
    if not torch.backends.nnpack.is_available():  # this also makes NNPACK ready
        return 0
    replaced = 0
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and _is_suited(layer):
                parent.add_module(name, _with_weights_of(layer))
                replaced += 1
    return replaced


def _with_weights_of(layer: nn.Conv2d) -> WinogradConv2d:
    """Return a Winograd convolution that shares the weights of `layer`."""
    with torch.device("meta"):  # its own weights are never needed
        other = WinogradConv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    other.weight, other.bias = layer.weight, layer.bias
    return other.train(layer.training).to(memory_format=torch.contiguous_format)


def _is_suited(layer: nn.Conv2d) -> bool:
    return (
        type(layer) is nn.Conv2d  # not a subclass, which may compute something else
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == layer.padding == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and min(layer.in_channels, layer.out_channels) >= _CHANNELS
    )
