"""What a GPU computes for one batch: windows are cut, normalised, searched, and decoded.

Each function has fixed shapes, waits for nothing and reads nothing from the host, so that a CUDA
graph can hold all of it. It runs on a CPU too, for tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scenesweep.model.card import Inference
from scenesweep.model.losses.criterion import RawOutputs
from scenesweep.model.networks.batched_decode import Packed, Room
from scenesweep.model.networks.retinanet import ROOM, RetinaNet


@dataclass(frozen=True, slots=True)
class GpuPass:
    """A network on a device, with its thresholds and normalisation (each (1, bands, 1, 1))."""

    network: RetinaNet
    inference: Inference
    mean: Tensor
    std: Tensor
    dtype: torch.dtype
    room: Room = ROOM

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def __call__(
        self, pixels: Tensor, starts: Tensor, size: tuple[int, int], level_anchors: list[Tensor]
    ) -> tuple[list[RawOutputs], Packed]:
        """Detect boxes in B windows of `size` (height, width).

        `pixels` (L,) uint8 and `starts` (B, 3) int64 are as in `Windows`; `level_anchors` are those
        of `size`. The raw outputs serve to decode a chip again if its flags ask for it.
        """
        chips = cut(pixels, starts, size, bands=self.mean.shape[1])
        normal = normalise(
            chips, self.mean, self.std, dtype=self.dtype, channels=self.network.input_channels
        )
        return self.network.find_packed(normal, self.inference, level_anchors, self.room)


def cut(pixels: Tensor, starts: Tensor, size: tuple[int, int], *, bands: int) -> Tensor:
    """Return windows (B, bands, height, width) uint8 of a flat block; see `Windows`."""
    height, width = size
    start, band_step, row_step = (step[:, None, None] for step in starts.unbind(1))
    band = torch.arange(bands, device=pixels.device)[:, None]
    row = torch.arange(height, device=pixels.device)
    first = start + band * band_step + row * row_step  # (B, bands, height)
    # Row i of this view is the `width` pixels from pixel i on: one index copies a row.
    return pixels.unfold(0, width, 1)[first]


def normalise(
    chips: Tensor, mean: Tensor, std: Tensor, *, dtype: torch.dtype, channels: int
) -> Tensor:
    """Return (chips - mean) / std, computed in float32, as `dtype` in channels-last order.

    Further channels, up to `channels`, are zero.
    """
    batch, bands, height, width = chips.shape
    normal = torch.empty(
        (batch, channels, height, width),
        dtype=dtype,
        device=chips.device,
        memory_format=torch.channels_last,
    )
    normal[:, bands:].zero_()
    torch.div(chips - mean, std, out=normal[:, :bands])  # divides and rounds in one pass
    return normal
