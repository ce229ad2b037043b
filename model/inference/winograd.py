"""3 x 3 convolutions with fewer multiplications, for CPUs in float32.

torch contains NNPACK, which implements Winograd's minimal filtering (Lavin & Gray 2016,
arXiv:1509.09308): a tile of 6 x 6 outputs takes 64 multiplications per channel instead of 324. The
relative rounding error in float32 is about 1e-4. On one thread, RetinaNets run 1.2 to 1.5 times as
fast. With more threads there is no gain, because memory is the limit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scenesweep.model.private_apis.torch import nnpack_convolution

_CHANNELS = 96  # with fewer channels, the transforms cost more than they save
_CELLS = 1000  # with fewer cells too: NNPACK transforms the filters again for each map


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution that uses NNPACK for large maps and torch's own for small ones."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W). Only H and W decide which implementation runs."""
        if input.shape[-2] * input.shape[-1] < _CELLS:
            return super().forward(input)
        outputs = [
            nnpack_convolution(maps[None].contiguous(), self.weight, self.bias) for maps in input
        ]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def use_winograd(network: nn.Module) -> int:
    """Replace the suitable convolutions of a network in place; return their number.

    The number is 0 if torch was built without NNPACK, or if the processor's vector instructions
    are not AVX2, the only ones of x86 that NNPACK supports.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return 0
    if not torch.backends.nnpack.is_available():  # this call also initialises NNPACK
        return 0
    replaced = 0
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and _is_suitable(layer):
                parent.add_module(name, _winograd_copy(layer))
                replaced += 1
    return replaced


def _winograd_copy(layer: nn.Conv2d) -> WinogradConv2d:
    """Return a Winograd convolution that shares the weights of `layer`."""
    with torch.device("meta"):  # the new layer allocates no weights of its own
        other = WinogradConv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    other.weight, other.bias = layer.weight, layer.bias
    return other.train(layer.training).to(memory_format=torch.contiguous_format)


def _is_suitable(layer: nn.Conv2d) -> bool:
    return (
        type(layer) is nn.Conv2d  # not a subclass, which may compute something else
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == layer.padding == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and min(layer.in_channels, layer.out_channels) >= _CHANNELS
    )
