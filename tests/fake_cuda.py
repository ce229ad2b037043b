"""Run CUDA code without a GPU: fake tensors have shapes and layouts, but no values.

`KernelCount` counts the kernels that its block would launch. Operations whose result depends on
data (`nonzero`, `.item()`) raise an error.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = """_reshape_alias _unsafe_view alias as_strided detach expand lift_fresh narrow permute
    select slice split split_with_sizes squeeze t transpose unbind unfold unsqueeze view"""
_NO_KERNEL = {*_VIEWS.split(), "empty", "empty_like", "empty_strided", "new_empty", "device"}
_FUSED = ("cudnn_convolution_relu", "cudnn_convolution_add_relu")


class KernelCount(TorchDispatchMode):
    """Counts the operations inside its block by name, without those that only make views.

    It fails if an operation reads a tensor of the host.

    A convolution with a bias is two: cuDNN's kernel and `bias`, a pass of its own. `bytes` is what
    the kernels read and write, if each reads its inputs and writes its results once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()
        self.bytes = 0

    @property
    def convolutions(self) -> int:
        return sum(self.kernels[name] for name in ("convolution", *_FUSED))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        tensors = [value for value in args if isinstance(value, Tensor)]
        assert all(tensor.device.type == "cuda" for tensor in tensors), name
        if name not in _NO_KERNEL:
            self.kernels[name] += 1
        if name == "convolution":
            self.kernels["bias"] += args[2] is not None
            return _convolved(*args[:2], *args[3:6])
        if name in _FUSED:
            output = _convolved(*args[:2], *args[-4:-1])
            assert name == "cudnn_convolution_relu" or args[2].stride() == output.stride()
            return output
        output = func(*args, **(kwargs or {}))
        if name not in _NO_KERNEL:
            self.bytes += sum(map(_bytes, [*tensors, *_results(output)]))
        return output


def _results(output: Any) -> list[Tensor]:
    results = output if isinstance(output, tuple | list) else [output]
    return [result for result in results if isinstance(result, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Return the bytes in memory: an expanded dimension is there once."""
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, stride in strides if stride)


def _convolved(maps: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """Return the result of a convolution as cuDNN makes it: channels last if its input is.

    Without a GPU, torch does not know cuDNN's fused operations, nor the layout of its results.
    """
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    groups = maps.shape[1] // weight.shape[1]
    output = torch.ops.aten.convolution.default(
        maps, weight, None, stride, padding, dilation, False, [0, 0], groups
    )
    return torch.empty_like(output, memory_format=torch.channels_last)


def put_on_fake_cuda(network: nn.Module) -> None:
    """Replace the parameters and buffers of a network by fake ones on `cuda`, in place.

    Call it under `FakeTensorMode`. Precision and memory layout stay.
    """
    for module in network.modules():
        for name, weight in [*module.named_parameters(recurse=False)]:
            module.register_parameter(name, nn.Parameter(_fake(weight), requires_grad=False))
        for name, values in [*module.named_buffers(recurse=False)]:
            module.register_buffer(name, _fake(values))


def _fake(values: Tensor) -> Tensor:
    return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device="cuda")
