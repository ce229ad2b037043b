"""Decode a batch with fixed shapes: on a GPU, nothing waits for the host, and a CUDA graph fits.

The definition is the docstring of `decode.py`. `Room` bounds the work. It never changes a result: a
chip that needs more is marked and decoded again, first with more room, then with `decode`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.card import Inference
from scenesweep.model.losses.criterion import RawOutputs
from scenesweep.model.networks.batched_nms import nms_of_all, nms_of_near
from scenesweep.model.networks.decode import decode_boxes, float_below, logistic

_LOW = 0xFFFFFFFF
CAPPED, OVERFLOW, UNSETTLED = range(3)
"""Columns of `Packed.flags`."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bounds of the work on a chip. They never change a result.

    `capacity` is the most candidates, `rounds` the most rounds of NMS, at least 1. NMS compares a
    box with the `band` boxes that follow from left to right; None compares all pairs.
    """

    capacity: int
    rounds: int
    band: int | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """The detections of B chips in tensors of fixed shape.

    `rows` is (B, D, 6) float32: x0, y0, x1, y1, score, label; the best first. Only the first
    `count` (B,) rows of a chip are detections. `flags` is (B, 3) bool: a limit of the card removed
    candidates; there were more candidates than the capacity; NMS needs more rounds or pairs. With
    one of the last two, the rows of the chip are not valid.
    """

    rows: Tensor
    count: Tensor
    flags: Tensor

    def cpu(self) -> Packed:
        """Return the same on the CPU. Waits for the device."""
        return Packed(self.rows.cpu(), self.count.cpu(), self.flags.cpu())


def decode_batch(
    outputs: list[RawOutputs],
    level_anchors: list[Tensor],
    inference: Inference,
    shape: tuple[int, int],
    *,
    room: Room,
) -> Packed:
    """Decode raw outputs and anchors, one of each per level, of B chips of `shape` (H, W).

    Runs on any device. On a CPU, `decode` is faster: it compares only boxes that are there.
    """
    raw = _join(outputs)
    classes = raw.logits.shape[2]
    sizes = [level.logits.shape[1] * classes for level in outputs]
    key, capped, overflow = _best(_keys(raw, inference), sizes, inference, capacity=room.capacity)
    place = torch.where(key >= 0, _LOW - (key & _LOW), 0)
    anchor, label = place // classes, place % classes
    deltas = raw.deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
    boxes = _clip(decode_boxes(deltas, torch.cat(level_anchors)[anchor]), shape)
    valid = (key >= 0) & ~boxes.isnan().any(-1)
    group = torch.zeros_like(label) if inference.class_agnostic else label
    keep, final = _nms(boxes, group, valid, inference.nms_iou, room)
    score = (key >> 32).int().view(torch.float32)  # NaN where there is no candidate
    most = inference.max_detections_per_chip
    columns = torch.cat([boxes, score[..., None], label[..., None].float()], -1)
    rows, count = _pack(columns, keep, min(most, keep.shape[1]))
    flags = torch.stack([capped | (keep.sum(1) > most), overflow, ~final], 1)
    return Packed(rows, count, flags)


def needs_more(packed: Packed) -> list[int]:
    """Return the chips whose rows are not valid. `packed` is on the CPU."""
    flags = packed.flags
    return (flags[:, OVERFLOW] | flags[:, UNSETTLED]).nonzero()[:, 0].tolist()


def unpack(packed: Packed, again: Callable[[int], ChipBoxes]) -> list[ChipBoxes]:
    """Return the boxes of each chip. `packed` is on the CPU.

    `again` returns the boxes of the chip of that index, for chips that `needs_more` names.
    """
    more = set(needs_more(packed))
    capped = packed.flags[:, CAPPED].tolist()
    chips = []
    for chip, count in enumerate(packed.count.tolist()):
        if chip in more:
            chips.append(again(chip))
        else:
            rows = packed.rows[chip, :count]
            chips.append(ChipBoxes(rows[:, :4], rows[:, 4], rows[:, 5].long(), capped[chip]))
    return chips


def _join(outputs: list[RawOutputs]) -> RawOutputs:
    """Return the outputs of all levels: indices are then in the order of places."""
    quality = [raw.quality for raw in outputs if raw.quality is not None]
    return RawOutputs(
        torch.cat([raw.logits for raw in outputs], 1),
        torch.cat([raw.deltas for raw in outputs], 1),
        torch.cat(quality, 1) if quality else None,
    )


def _keys(raw: RawOutputs, inference: Inference) -> Tensor:
    """Return int64 numbers (B, candidates) in the order of candidates: the best is the largest.

    The upper half has the bits of the score, which order as positive floats do. The lower half
    falls with the place. So no two candidates are equal, and every device sorts them alike. What
    is not above the threshold has -1.
    """
    score = logistic(raw.logits)
    if raw.quality is not None:
        score = score * logistic(raw.quality)[..., None]
    score = score.flatten(1)
    place = torch.arange(score.shape[1], device=score.device)
    key = (score.view(torch.int32).long() << 32) | (_LOW - place)
    return torch.where(score > float_below(inference.score_threshold), key, -1)


def _best(
    keys: Tensor, sizes: list[int], inference: Inference, *, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best keys of all levels (B, T), best first, and two flags (B,): see `Packed`.

    `sizes` are the numbers of candidates of the levels.
    """
    topk = inference.topk_per_level
    levels = keys.split(sizes, dim=1)
    found = torch.stack([(level >= 0).sum(1) for level in levels], 1)
    best = torch.cat(
        [level.topk(min(topk, capacity, level.shape[1])).values for level in levels], 1
    )
    slots = min(capacity, best.shape[1])
    taken = found.clamp(max=topk)
    overflow = (taken > capacity).any(1) | (taken.sum(1) > slots)
    return best.topk(slots).values, (found > topk).any(1), overflow


def _clip(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    height, width = shape
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def _nms(
    boxes: Tensor, group: Tensor, valid: Tensor, iou: float, room: Room
) -> tuple[Tensor, Tensor]:
    if room.band is None or room.band >= boxes.shape[1]:
        return nms_of_all(boxes, group, valid, iou=iou, rounds=room.rounds)
    return nms_of_near(boxes, group, valid, iou=iou, rounds=room.rounds, band=room.band)


def _pack(columns: Tensor, keep: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Move the kept rows of (B, T, 6) to the front: (B, most, 6), and their numbers (B,)."""
    rank = keep.cumsum(1)
    taken = keep & (rank <= most)
    target = torch.where(taken, rank - 1, most)  # all other rows go to one row that is cut off
    rows = columns.new_zeros(len(columns), most + 1, columns.shape[2])
    rows.scatter_(1, target[..., None].expand_as(columns), columns)
    return rows[:, :most], taken.sum(1)
