"""Private functions of torch."""

from __future__ import annotations

import torch
from torch import Tensor


def cpu_computes_bfloat16() -> bool:
    """Say whether this CPU has instructions for bfloat16 (AVX-512 BF16 or AMX).

    Without them torch emulates bfloat16, which is slower than float32.
    """
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def nnpack_convolution(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (1, C, H, W) by 3 x 3 filters with padding 1 and stride 1, through NNPACK.

    `torch.backends.nnpack.is_available()` must have returned True before: it initialises NNPACK.
    """
    return torch._nnpack_spatial_convolution(maps, weight, bias, padding=[1, 1], stride=[1, 1])
