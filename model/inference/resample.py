"""Resample and stretch pixels on a device, equal to the bit to what readers do on CPUs.

`scenesweep.pipeline.raster.resample` has the definition and computes the taps: for each grid pixel
of an axis, the source pixels that contribute and their weights. These functions only take
tensors. They have no operation whose shape depends on data and copy nothing from the host, so
they can be part of a CUDA graph.

The values of uint8 are exact in float32, and those of integers of up to 16 bits in float64. So
the order of sums does not matter, nor whether a product and a sum are fused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_KEPT = 2.0**4
"""After the rows, uint8 is rounded to 1/16: `BYTES.kept_bits` of the definition."""
_LEAST_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class AxisTaps:
    """The taps of N grid pixels along one axis: `index` (N, T) int64, `weight` (N, T).

    The weights are float32 for uint8 pixels and float64 for others. They sum to one.
    """

    index: Tensor
    weight: Tensor


def resample_bytes(
    pixels: Tensor, valid: Tensor, *, rows: AxisTaps, columns: AxisTaps
) -> tuple[Tensor, Tensor]:
    """Resample (bands, H, W) uint8 to the grid pixels of the taps: uint8, and bool (rows, columns).

    `valid` is (H, W) bool. Result pixels that are not valid have any value.
    """
    layers = _with_mask(pixels.to(rows.weight.dtype), valid, unit=256.0)
    down = torch.round(_weighted(layers, rows, dim=1) * _KEPT)
    summed = _weighted(down, columns, dim=2) / _KEPT
    share = summed[-1] / 256.0
    values = (summed[:-1] / share.clamp(min=_LEAST_SHARE)).clamp(max=255.0)
    return torch.round(values).to(torch.uint8), share >= 0.5


def resample_wide(
    pixels: Tensor, valid: Tensor, *, rows: AxisTaps, columns: AxisTaps
) -> tuple[Tensor, Tensor]:
    """Resample (bands, H, W) of another type: float32 values, and bool (rows, columns)."""
    layers = _with_mask(pixels.to(rows.weight.dtype), valid, unit=1.0)
    summed = _weighted(_weighted(layers, rows, dim=1), columns, dim=2)
    share = summed[-1]
    values = summed[:-1] / share.clamp(min=_LEAST_SHARE)
    return values.to(torch.float32), share >= 0.5


def look_up(pixels: Tensor, tables: Tensor) -> Tensor:
    """Stretch (bands, H, W) int16 or uint16 to 0..255, with a table (bands, 65,536) for each band.

    A table's index is the value's bits as an unsigned integer.
    """
    index = pixels.view(torch.int16).to(torch.int64) & 0xFFFF
    return tables.gather(1, index.flatten(1)).view(index.shape)


def stretch(values: Tensor, low: Tensor, factor: Tensor) -> Tensor:
    """Map (bands, H, W) float32 to 0..255: `(values - low) * factor`, rounded; NaN becomes 0.

    `low` and `factor` are (bands,) float32; `factor` is `255 / (high - low)`.
    """
    mapped = (values - low[:, None, None]) * factor[:, None, None]
    return torch.round(torch.nan_to_num(mapped.clamp(0, 255), nan=0.0)).to(torch.uint8)


def _with_mask(layers: Tensor, valid: Tensor, unit: float) -> Tensor:
    """Clear invalid and infinite values, and add the mask as a last layer."""
    known = valid & torch.isfinite(layers)
    cleared = torch.where(known, layers, torch.zeros_like(layers))
    return torch.cat([cleared, (valid.to(layers.dtype) * unit)[None]])


def _weighted(layers: Tensor, taps: AxisTaps, *, dim: int) -> Tensor:
    """Sum the taps of (layers, H, W) along a dimension, one after the other."""
    shape = [1, 1, 1]
    shape[dim] = taps.index.shape[0]
    pieces = [
        layers.index_select(dim, index) * weight.view(shape)
        for index, weight in zip(taps.index.unbind(1), taps.weight.unbind(1), strict=True)
    ]
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    return total
