"""How many chips a GPU takes at a time, and how much room decoding has: fixed, never by load."""

from __future__ import annotations

import statistics

from scenesweep.model.card import ModelCard
from scenesweep.model.inference.arithmetic import flops_per_chip
from scenesweep.model.networks.batched_decode import Room
from scenesweep.model.networks.retinanet import ROOM

_WORK = 4.1e12
"""Floating-point operations of a batch: with more, kernels of a large GPU are not faster."""
_ISLANDS = 4
"""Chips of a batch of any other shape than the card's: few windows of a scene share one."""
_BYTES_PER_PIXEL = 1024
"""Upper estimate of the memory of a pass; a ResNet-50 RetinaNet in bfloat16 takes about 250."""
_SHARE = 0.25
"""Share of the GPU's memory for a batch: graphs of several shapes hold theirs at the same time."""
_ALL_PAIRS, _NEAR_PAIRS = 147, 240
"""Bytes that NMS moves for each pair of boxes, rounds included; counted on tensors without values
(`tests/model/networks/test_batched_decode_cuda.py`)."""
_FLOPS_PER_BYTE = 108
"""Of a GPU in a forward pass: an H200 has half of 790 TFLOP/s, and 0.85 of 4.3 TB/s."""
_DECODING = 0.07
"""Most share of NMS in the time of a forward pass."""
_BAND = 2.5
"""Boxes that may follow from left to right before a box ends, as a multiple of what evenly spread
boxes of the median anchor's width need. Painted suburbs, full of objects, need up to 2."""


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


def room_on_gpu(card: ModelCard) -> Room:
    """Return the room for decoding that costs little beside the network of this card.

    It never changes a result: a chip that needs more is decoded again.
    """
    sizes = [size for level in card.architecture.anchor_sizes_px for size in level]
    width = statistics.median(sizes) / card.chip_px
    most = flops_per_chip(card) / _FLOPS_PER_BYTE * _DECODING
    if ROOM.capacity**2 * _ALL_PAIRS <= most:
        return ROOM
    for capacity in (1024, 512):
        band = -(-int(_BAND * width * capacity) // 64) * 64
        if capacity * band * _NEAR_PAIRS <= most:
            return Room(capacity, 8, band)
    return Room(256, 8)
