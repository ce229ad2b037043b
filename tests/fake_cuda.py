"""Run CUDA code without a GPU: fake tensors have shapes and layouts, but no values.

`count_kernels` counts the kernels that a function would launch. Operations whose result depends on
data (`nonzero`, `.item()`) raise an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = """_reshape_alias _unsafe_view alias as_strided detach expand lift_fresh narrow permute
    select slice split split_with_sizes squeeze t transpose unbind unfold unsqueeze view"""
_NO_KERNEL = {*_VIEWS.split(), "empty", "empty_like", "empty_strided", "new_empty"}
_FUSED = ("cudnn_convolution_relu", "cudnn_convolution_add_relu")


class KernelCount(TorchDispatchMode):
    """Counts the operations inside its block by name, without those that only make views.

    A convolution with a bias is two: cuDNN's kernel and `bias`, a pass of its own.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()

    @property
    def convolutions(self) -> int:
        return sum(self.kernels[name] for name in ("convolution", *_FUSED))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name not in _NO_KERNEL:
            self.kernels[name] += 1
        if name == "convolution" and args[2] is not None:
            self.kernels["bias"] += 1
        if name in _FUSED:  # torch does not know the shape of their result
            maps, weight, *rest = args
            stride, padding, dilation, groups = rest[-4:]
            output = torch.ops.aten.convolution.default(
                maps, weight, None, stride, padding, dilation, False, [0, 0], groups
            )
            assert name == "cudnn_convolution_relu" or rest[0].shape == output.shape
            return output
        return func(*args, **(kwargs or {}))


def count_kernels(work: Callable[[], object]) -> KernelCount:
    """Run `work`, which makes its tensors on `cuda` itself, and count its kernels."""
    with FakeTensorMode(), torch.inference_mode(), KernelCount() as count:
        work()
    return count
