"""How many chips a GPU takes at a time: fixed by card, shape and memory, never by load."""

from __future__ import annotations

from scenesweep.model.card import ModelCard
from scenesweep.model.inference.arithmetic import flops_per_chip

_WORK = 4.1e12
"""Floating-point operations of a batch: with more, kernels of a large GPU are not faster."""
_ISLANDS = 4
"""Chips of a batch of any other shape than the card's: few windows of a scene share one."""
_BYTES_PER_PIXEL = 1024
"""Upper estimate of the memory of a pass; a ResNet-50 RetinaNet in bfloat16 takes about 250."""
_SHARE = 0.25
"""Share of the GPU's memory for a batch: graphs of several shapes hold theirs at the same time."""


def batch_on_gpu(card: ModelCard, size: tuple[int, int], memory: int) -> int:
    """Return the batch for chips of `size` (height, width) on a GPU with `memory` bytes.

    Kernels, and so the last bits of a score, may differ between batches. So the batch does not
    depend on how many chips there are.
    """
    height, width = size
    area = height * width
    of_work = _WORK / (flops_per_chip(card) * area / card.chip_px**2)
    of_memory = memory * _SHARE / (_BYTES_PER_PIXEL * area)
    most = min(of_work, of_memory)
    if size != (card.chip_px, card.chip_px):
        most = min(most, _ISLANDS)
    step = 16 if most >= 16 else 4
    return max(1, int(most) // step * step if most >= step else int(most))
