"""Decode a batch with fixed shapes: on a GPU, nothing waits for the host, and a CUDA graph fits.

The definition is the docstring of `decode.py`. Two numbers bound the work: `capacity`, the number
of candidates of a chip, and `rounds`, the number of NMS rounds. They never change a result: a chip
that needs more is marked, and `unpack` decodes it again with `decode`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.card import Inference
from scenesweep.model.losses.criterion import RawOutputs
from scenesweep.model.networks.decode import decode_boxes, float_below, logistic

_LOW = 0xFFFFFFFF
CAPPED, OVERFLOW, UNSETTLED = range(3)
"""Columns of `Packed.flags`."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The detections of B chips in tensors of fixed shape.

    `rows` is (B, D, 6) float32: x0, y0, x1, y1, score, label; the best first. Only the first
    `count` (B,) rows of a chip are detections. `flags` is (B, 3) bool: a limit of the card removed
    candidates; there were more candidates than the capacity; NMS needs more rounds. With one of
    the last two, the rows of the chip are not valid.
    """

    rows: Tensor
    count: Tensor
    flags: Tensor


@dataclass(frozen=True, slots=True)
class _Best:
    """The T best candidates of B chips, best first.

    `key` is (B, T) int64, see `_keys`; -1 is no candidate. `boxes` is (B, T, 4), `labels` (B, T),
    `capped` and `overflow` are (B,) bool.
    """

    key: Tensor
    boxes: Tensor
    labels: Tensor
    capped: Tensor
    overflow: Tensor


def decode_batch(
    outputs: list[RawOutputs],
    level_anchors: list[Tensor],
    inference: Inference,
    shape: tuple[int, int],
    *,
    capacity: int,
    rounds: int,
) -> Packed:
    """Decode raw outputs and anchors, one of each per level, of B chips of `shape` (H, W).

    Runs on any device. On a CPU, `decode` is faster: this function compares all pairs of `capacity`
    boxes.
    """
    first = 0
    levels = []
    for raw, anchors in zip(outputs, level_anchors, strict=True):
        levels.append(_of_level(raw, anchors, inference, first=first, capacity=capacity))
        first += raw.logits.shape[1] * raw.logits.shape[2]
    best = _join(levels, capacity)
    boxes = _clip(best.boxes, shape)
    valid = (best.key >= 0) & ~boxes.isnan().any(-1)
    labels = torch.zeros_like(best.labels) if inference.class_agnostic else best.labels
    keep, settled = _nms(_suppressions(boxes, labels, valid, inference.nms_iou), valid, rounds)
    score = (best.key >> 32).int().view(torch.float32)  # -1 where there is no candidate: NaN
    columns = [boxes, score[..., None], best.labels[..., None].float()]
    most = inference.max_detections_per_chip
    rows, count = _pack(torch.cat(columns, -1), keep, min(most, keep.shape[1]))
    flags = torch.stack([best.capped | (keep.sum(1) > most), best.overflow, ~settled], 1)
    return Packed(rows, count, flags)


def unpack(packed: Packed, again: Callable[[int], ChipBoxes]) -> list[ChipBoxes]:
    """Return the boxes of each chip. `packed` is on the CPU.

    `again` decodes the chip of that index with `decode`; it is called for chips whose flags ask for
    it.
    """
    chips = []
    for chip, (count, flags) in enumerate(
        zip(packed.count.tolist(), packed.flags.tolist(), strict=True)
    ):
        if flags[OVERFLOW] or flags[UNSETTLED]:
            chips.append(again(chip))
        else:
            rows = packed.rows[chip, :count]
            chips.append(ChipBoxes(rows[:, :4], rows[:, 4], rows[:, 5].long(), flags[CAPPED]))
    return chips


def _of_level(
    raw: RawOutputs, anchors: Tensor, inference: Inference, *, first: int, capacity: int
) -> _Best:
    """Return a level's best candidates. `first` is the place of its first candidate."""
    batch, _, classes = raw.logits.shape
    score = logistic(raw.logits)
    if raw.quality is not None:
        score = score * logistic(raw.quality)[..., None]
    score = score.flatten(1)
    above = score > float_below(inference.score_threshold)
    found = above.sum(1)
    most = min(inference.topk_per_level, score.shape[1])
    slots = min(most, capacity)
    key = _keys(score, above, first).topk(slots, dim=1).values
    place = torch.where(key >= 0, _LOW - (key & _LOW) - first, 0)
    anchor = place // classes
    deltas = raw.deltas.gather(1, anchor[..., None].expand(batch, slots, 4))
    return _Best(
        key,
        decode_boxes(deltas, anchors[anchor]),
        place % classes,
        capped=found > inference.topk_per_level,
        overflow=found.clamp(max=most) > slots,
    )


def _keys(score: Tensor, above: Tensor, first: int) -> Tensor:
    """Return int64 numbers (B, N) in the order of candidates: the best is the largest.

    The upper half has the bits of the score, which order as positive floats do. The lower half
    falls with the place. So no two candidates are equal, and every device sorts them alike. What
    is not `above` the threshold has -1.
    """
    place = torch.arange(first, first + score.shape[1], device=score.device)
    return torch.where(above, (score.view(torch.int32).long() << 32) | (_LOW - place), -1)


def _join(levels: list[_Best], capacity: int) -> _Best:
    """Return the best candidates of all levels, at most `capacity`."""
    keys = torch.cat([level.key for level in levels], 1)
    slots = min(capacity, keys.shape[1])
    key, order = keys.topk(slots, dim=1)
    boxes = torch.cat([level.boxes for level in levels], 1)
    overflow = torch.stack([level.overflow for level in levels]).any(0)
    return _Best(
        key,
        boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        torch.cat([level.labels for level in levels], 1).gather(1, order),
        capped=torch.stack([level.capped for level in levels]).any(0),
        overflow=overflow | ((keys >= 0).sum(1) > slots),
    )


def _clip(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    height, width = shape
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def _suppressions(boxes: Tensor, labels: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Return (B, T, T) bool: box i removes box j if it is kept itself."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    width = torch.minimum(x1[:, :, None], x1[:, None]) - torch.maximum(x0[:, :, None], x0[:, None])
    height = torch.minimum(y1[:, :, None], y1[:, None]) - torch.maximum(y0[:, :, None], y0[:, None])
    common = width.clamp(min=0) * height.clamp(min=0)
    # In this order torchvision's NMS on CPUs rounds it too.
    above = common / (area[:, :, None] + area[:, None] - common) > float_below(iou)
    same = labels[:, :, None] == labels[:, None]
    return (above & same & valid[:, :, None] & valid[:, None]).triu(1)


def _nms(suppressions: Tensor, valid: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Return which boxes are kept, (B, T) bool, and whether that is final, (B,) bool.

    Greedy NMS is the only fixpoint of `keep[j] = valid[j] and no i < j with keep[i] removes j`.
    `rounds` is at least 1. After n rounds at least the first n boxes are final; 1,000 random boxes
    need 3 to 6 rounds.
    """
    keep = before = valid
    for _ in range(rounds):
        before, keep = keep, valid & ~(suppressions & keep[:, :, None]).any(1)
    return keep, (before == keep).all(1)


def _pack(columns: Tensor, keep: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Move the kept rows of (B, T, 6) to the front: (B, most, 6), and their numbers (B,)."""
    rank = keep.cumsum(1)
    taken = keep & (rank <= most)
    target = torch.where(taken, rank - 1, most)  # all other rows go to one row that is cut off
    rows = columns.new_zeros(len(columns), most + 1, columns.shape[2])
    rows.scatter_(1, target[..., None].expand_as(columns), columns)
    return rows[:, :most], taken.sum(1)
