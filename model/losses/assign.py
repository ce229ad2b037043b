"""Assign each anchor its target: the index of a true box, background, or ignored.

On a GPU, all chips of a batch are assigned together, and no step reads a value back to the host:
each such read stops the GPU's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from scenesweep.model.architecture import Assignment
from scenesweep.model.losses.truth import Truth

BACKGROUND = -1
IGNORED = -2
_NO_OVERLAP = -1.0
_PAIRS_AT_ONCE = 2**27
"""Pairs of a box and an anchor that are compared at once: half a gigabyte in float32."""
_READS_ARE_FREE = {"cpu"}
"""Devices on which each chip is assigned alone, without its padding: there is nothing to wait for,
and smaller tensors stay in the cache."""


def assign(
    anchors: Sequence[Tensor], truth: Truth, settings: Assignment, *, per_cell: int
) -> Tensor:
    """Assign the anchors of each chip to its true boxes by the method in `settings`.

    `anchors` has (A_l, 4) xyxy for each level, `per_cell` of them in each cell. Returns (B, A)
    int64 over all levels: the row of a box in `truth`, `BACKGROUND` or `IGNORED`.
    """
    parts = _parts(truth, sum(map(len, anchors)))
    if settings.kind == "atss":
        candidates = settings.atss_candidates * per_cell
        return torch.cat(
            [_atss(anchors, boxes, is_object, candidates) for boxes, is_object in parts]
        )
    together = torch.cat(list(anchors))
    return torch.cat([_max_iou(together, boxes, is_object, settings) for boxes, is_object in parts])


def _parts(truth: Truth, anchors: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield boxes (b, T, 4) and which of them are objects, (b, T), of some chips at a time."""
    if truth.boxes.device.type in _READS_ARE_FREE:
        for boxes, is_object in zip(truth.boxes, truth.is_object, strict=True):
            rows = max(1, int(is_object.sum()))
            yield boxes[None, :rows], is_object[None, :rows]
        return
    chips = max(1, _PAIRS_AT_ONCE // (truth.labels.shape[1] * anchors))
    yield from zip(truth.boxes.split(chips), truth.is_object.split(chips), strict=True)


def _max_iou(anchors: Tensor, boxes: Tensor, is_object: Tensor, settings: Assignment) -> Tensor:
    """Assign anchors (A, 4) to boxes (B, T, 4) by highest IoU (RetinaNet paper, section 4).

    An anchor is assigned to the box with the highest IoU if that is at least `foreground_iou`. It
    is background below `background_iou`, and ignored between the two. With `low_quality_matches`,
    the best anchors of each box are assigned to it even when their IoU is lower. Equal to
    torchvision's `Matcher` on each chip.
    """
    overlap = _overlap(boxes, anchors).masked_fill_(~is_object[..., None], _NO_OVERLAP)
    best, owner = overlap.max(dim=1)
    match = torch.where(best < settings.foreground_iou, IGNORED, owner)
    match = torch.where(best < settings.background_iou, BACKGROUND, match)
    if not settings.low_quality_matches:
        return match
    highest = overlap.amax(dim=2).masked_fill_(~is_object, 2.0)  # no IoU: padding claims nothing
    claimed = (overlap == highest[..., None]).any(dim=1)
    return torch.where(claimed, owner, match)


def _atss(anchors: Sequence[Tensor], boxes: Tensor, is_object: Tensor, candidates: int) -> Tensor:
    """Assign by adaptive selection (ATSS: Zhang et al. 2020, arXiv:1912.02424, algorithm 1).

    For each box, the candidates are the `candidates` anchors of each level whose centres are
    nearest to the centre of the box. A candidate is positive when its centre lies in the box and
    its IoU with the box is at least the mean plus the standard deviation over the candidates. An
    anchor that is positive for several boxes goes to the one that it overlaps most. All other
    anchors are background.
    """
    together = torch.cat(list(anchors))
    overlap = _overlap(boxes, together)  # (B, T, A)
    centres = (together[:, :2] + together[:, 2:]) / 2
    rows = _nearest(anchors, centres, boxes, candidates)
    values = overlap.gather(2, rows)
    threshold = values.mean(dim=2, keepdim=True) + values.std(dim=2, keepdim=True, correction=0)
    points = centres[rows]
    inside = ((points > boxes[..., None, :2]) & (points < boxes[..., None, 2:])).all(dim=3)
    chosen = (values >= threshold) & inside & is_object[..., None]
    positive = torch.zeros_like(overlap).scatter_(2, rows, torch.where(chosen, values, 0.0))
    best, owner = positive.max(dim=1)
    return torch.where(best > 0, owner, BACKGROUND)


def _nearest(anchors: Sequence[Tensor], centres: Tensor, boxes: Tensor, candidates: int) -> Tensor:
    """Return (B, T, n): the anchors of each level with the nearest centres, of all levels."""
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    distance = torch.cdist(middles, centres, compute_mode="donot_use_mm_for_euclid_dist")
    chosen = []
    start = 0
    for level in anchors:
        near = distance[..., start : start + len(level)].topk(
            min(candidates, len(level)), largest=False
        )
        chosen.append(near.indices + start)
        start += len(level)
    return torch.cat(chosen, dim=2)


def _overlap(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the IoU (B, T, A) of boxes (B, T, 4) with anchors (A, 4)."""
    return box_iou(boxes.flatten(0, 1), anchors).view(*boxes.shape[:2], len(anchors))
