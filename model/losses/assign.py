"""Assign each anchor its target: the index of a true box, background, or ignored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from scenesweep.model.architecture import Assignment
from scenesweep.model.private_apis.torchvision import Matcher

BACKGROUND = Matcher.BELOW_LOW_THRESHOLD
IGNORED = Matcher.BETWEEN_THRESHOLDS


def assign(
    anchors: Sequence[Tensor], boxes: Tensor, settings: Assignment, *, per_cell: int
) -> Tensor:
    """Assign the anchors of one chip to its true boxes by the method in `settings`.

    `anchors` has (A_l, 4) for each level, `per_cell` of them in each cell; `boxes` is (T, 4). Both
    are xyxy. Returns (A,) int64 over all levels: the index of a box, `BACKGROUND` or `IGNORED`.
    """
    all_anchors = torch.cat(list(anchors))
    if len(boxes) == 0:
        return all_anchors.new_full((len(all_anchors),), BACKGROUND, dtype=torch.int64)
    if settings.kind == "atss":
        return assign_atss(anchors, boxes, candidates=settings.atss_candidates * per_cell)
    return assign_max_iou(all_anchors, boxes, settings)


def assign_max_iou(anchors: Tensor, boxes: Tensor, settings: Assignment) -> Tensor:
    """Assign anchors to true boxes by highest IoU (RetinaNet paper, section 4).

    An anchor is assigned to the box with the highest IoU if that is at least `foreground_iou`. It
    is background below `background_iou`, and ignored between the two. With `low_quality_matches`,
    the best anchors of each box are assigned to it even when their IoU is lower.
    """
    matcher = Matcher(
        settings.foreground_iou,
        settings.background_iou,
        allow_low_quality_matches=settings.low_quality_matches,
    )
    return matcher(box_iou(boxes, anchors))


def assign_atss(anchors: Sequence[Tensor], boxes: Tensor, *, candidates: int) -> Tensor:
    """Assign by adaptive selection (ATSS: Zhang et al. 2020, arXiv:1912.02424, algorithm 1).

    For each box, the candidates are the `candidates` anchors of each level whose centres are
    nearest to the centre of the box. A candidate is positive when its centre lies in the box and
    its IoU with the box is at least the mean plus the standard deviation over the candidates. An
    anchor that is positive for several boxes goes to the one that it overlaps most. All other
    anchors are background.
    """
    all_anchors = torch.cat(list(anchors))
    overlap = box_iou(boxes, all_anchors)  # (T, A)
    centres = (all_anchors[:, :2] + all_anchors[:, 2:]) / 2
    box_centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = torch.cdist(box_centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    chosen = []
    start = 0
    for level in anchors:
        near = distance[:, start : start + len(level)].topk(
            min(candidates, len(level)), largest=False
        )
        chosen.append(near.indices + start)
        start += len(level)
    rows = torch.cat(chosen, dim=1)  # (T, candidates of all levels)
    values = overlap.gather(1, rows)
    threshold = values.mean(dim=1, keepdim=True) + values.std(dim=1, keepdim=True, correction=0)
    points = centres[rows]
    inside = ((points > boxes[:, None, :2]) & (points < boxes[:, None, 2:])).all(dim=2)
    positive = torch.zeros_like(overlap).scatter_(
        1, rows, torch.where((values >= threshold) & inside, values, 0.0)
    )
    best, owner = positive.max(dim=0)
    return torch.where(best > 0, owner, BACKGROUND)
