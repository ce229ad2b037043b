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
_UNIT = 2.0**8
"""The value of a valid pixel in the mask of uint8: `BYTES.unit` of the definition."""
_LEAST_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class AxisTaps:
    """The taps of N grid pixels along one axis: `index` (N, T) int64, `weight` (N, T).

    The weights are float32 for uint8 pixels and float64 for others. They sum to one.
    """

    index: Tensor
    weight: Tensor

    def times(self, factor: float) -> AxisTaps:
        """Return taps with each weight multiplied by a power of two, which is exact."""
        return AxisTaps(self.index, self.weight * factor)


def resample_bytes(
    pixels: Tensor, valid: Tensor | None, *, rows: AxisTaps, columns: AxisTaps
) -> tuple[Tensor, Tensor]:
    """Resample (bands, H, W) uint8 to the grid pixels of the taps: uint8, and bool (rows, columns).

    `valid` is (H, W) bool; None if all pixels are valid. Result pixels that are not valid have any
    value.
    """
    if valid is None:
        values = _sums_of_bytes(pixels, rows, columns)
        return values.round_().to(torch.uint8), _on_raster(rows, columns)
    share = _sums_of_bytes(valid[None], rows, columns, unit=_UNIT)[0]
    values = _sums_of_bytes(pixels.masked_fill(~valid, 0), rows, columns)
    values.div_(share.clamp(min=_LEAST_SHARE)).clamp_(max=255.0).round_()
    return values.to(torch.uint8), share >= 0.5


def resample_wide(
    pixels: Tensor, valid: Tensor | None, *, rows: AxisTaps, columns: AxisTaps
) -> tuple[Tensor, Tensor]:
    """Resample (bands, H, W) of another type: float32 values, and bool (rows, columns)."""
    exact = not pixels.is_floating_point()
    if valid is None:
        values = _sums_of_wide(pixels, rows, columns, exact=exact)
        return values.to(torch.float32), _on_raster(rows, columns)
    share = _sums_of_wide(valid[None], rows, columns)[0]
    known = pixels.masked_fill(~valid, 0)  # NaN as well: 0 times NaN is not 0
    values = _sums_of_wide(known, rows, columns, exact=exact).div_(share.clamp(min=_LEAST_SHARE))
    return values.to(torch.float32), share >= 0.5


def table_of(low: Tensor, factor: Tensor, *, unsigned: bool) -> Tensor:
    """Return what `stretch` gives for each value of 16 bits, (bands, 65,536) uint8.

    Its index is the value's bits as an unsigned integer.
    """
    values = torch.arange(65_536, dtype=torch.int32, device=low.device)
    values = values if unsigned else values.to(torch.int16)  # from 32,768 on: negative
    return stretch(values.float().expand(len(low), 1, -1), low, factor)[:, 0]


def look_up(pixels: Tensor, tables: Tensor) -> Tensor:
    """Stretch (bands, H, W) int16, or uint16 with the same bits, with a table for each band."""
    index = pixels.int().bitwise_and_(0xFFFF).flatten(1)
    mapped = torch.empty(index.shape, dtype=torch.uint8, device=pixels.device)
    for table, places, into in zip(tables, index, mapped, strict=True):
        torch.index_select(table, 0, places, out=into)
    return mapped.view(pixels.shape)


def stretch(values: Tensor, low: Tensor, factor: Tensor) -> Tensor:
    """Map (bands, H, W) float32 to 0..255: `(values - low) * factor`, rounded; NaN becomes 0.

    `low` and `factor` are (bands,) float32; `factor` is `255 / (high - low)`.
    """
    mapped = (values - low[:, None, None]).mul_(factor[:, None, None])
    return mapped.clamp_(0, 255).nan_to_num_(nan=0.0).round_().to(torch.uint8)


def _on_raster(rows: AxisTaps, columns: AxisTaps) -> Tensor:
    """Return which grid pixels have their centre on the raster: the others have no weights."""
    return rows.weight.any(1)[:, None] & columns.weight.any(1)


def _sums_of_bytes(
    layers: Tensor, rows: AxisTaps, columns: AxisTaps, *, unit: float = 1.0
) -> Tensor:
    """Weigh layers of `unit`, rounded to 1/16 after the rows."""
    down = _weighted(layers, rows.times(_KEPT * unit), dim=1).round_()
    return _weighted(down, columns.times(1 / (_KEPT * unit)), dim=2)


def _sums_of_wide(
    layers: Tensor, rows: AxisTaps, columns: AxisTaps, *, exact: bool = True
) -> Tensor:
    """Weigh layers of any type in float64. A product of float32 and a weight is still exact."""
    return _weighted(_weighted(layers, rows, dim=1), columns, dim=2, exact=exact)


def _weighted(layers: Tensor, taps: AxisTaps, *, dim: int, exact: bool = True) -> Tensor:
    """Sum the taps of (layers, H, W) along a dimension, one after the other.

    Gathered integers become floating-point numbers only inside the kernel that weighs them: they
    have fewer bytes. Products that are not exact are rounded before the sum, as on CPUs.
    """
    shape = [1, 1, 1]
    shape[dim] = taps.index.shape[0]
    total: Tensor | None = None
    for index, weight in zip(taps.index.unbind(1), taps.weight.unbind(1), strict=True):
        piece, weights = layers.index_select(dim, index), weight.view(shape)
        if total is None:
            total = piece * weights
        elif exact:
            total.addcmul_(piece, weights)
        else:
            total.add_(piece * weights)
    assert total is not None
    return total
