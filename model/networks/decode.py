"""Turn what the heads give for a chip into boxes. This docstring is the definition.

A *candidate* is a level, an anchor of that level and a class. It has a place in one order: by
level (fine levels first), then by anchor (rows, columns, anchors of a cell), then by class.

1. **Score**: `1 / (1 + exp(-logit))`; with an IoU branch, times the same function of `quality`.
   The function is computed in float64 and rounded to float32, so that its value depends neither on
   the device nor on the position in a tensor (`Tensor.sigmoid` on a CPU does).
2. **Threshold**: candidates whose score is above `score_threshold`. NaN is not above it.
3. **Top k**: of each level, the `topk_per_level` best. The higher score is better; of equal
   scores, the earlier place.
4. **Box**: the anchor moved and scaled by `deltas` (Girshick et al. 2014, arXiv:1311.2524, appendix
   C), in float32, clipped to the chip. `exp` is computed in float64 and rounded. A candidate with
   NaN in its box is dropped.
5. **NMS** in the order of 3, over all levels: a box is dropped if its IoU with a better box that
   was kept is above `nms_iou`, and both have one class (or `class_agnostic` is set). Boxes are not
   shifted to separate classes, because a shift in float32 rounds their coordinates.
6. The first `max_detections_per_chip` boxes are the chip's detections. `capped` is True if 3 or 6
   removed anything.

Whatever the precision of the network is, its outputs are widened to float32 before step 1. A number
of float32 is above a setting, a double, exactly if it is above `float_below(setting)`.

`decode` computes this for one chip on a CPU. `batched_decode.py` computes the same for a batch,
without a shape that depends on data. `tests/model/networks/decode_reference.py` is the definition
once more, candidate by candidate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms

from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.card import Inference
from scenesweep.model.losses.criterion import RawOutputs

_LARGEST_SCALE = math.log(1000 / 16)
"""Upper limit of the logarithm of a box's side over its anchor's side, as in torchvision."""


@dataclass(frozen=True, slots=True)
class _Candidates:
    """N candidates in the order of their places: (N, 4) xyxy, (N,) float32, (N,) int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    capped: bool


def decode(
    outputs: list[RawOutputs],
    level_anchors: list[Tensor],
    inference: Inference,
    shape: tuple[int, int],
) -> ChipBoxes:
    """Turn one chip's raw outputs and anchors, one of each per level, into boxes.

    `shape` is the chip's height and width. A level without candidates may be left out. All tensors
    are on a CPU: on a GPU, torchvision's NMS rounds IoUs in another way.
    """
    if not outputs:
        none = torch.zeros(0)
        return ChipBoxes(none.reshape(0, 4), none, none.long(), capped=False)
    levels = [
        _of_level(raw, anchors, inference)
        for raw, anchors in zip(outputs, level_anchors, strict=True)
    ]
    boxes = clip_boxes_to_image(torch.cat([level.boxes for level in levels]), shape)
    scores = torch.cat([level.scores for level in levels])
    labels = torch.cat([level.labels for level in levels])
    order = _best_first(scores)
    if boxes.isnan().any():
        order = order[~boxes[order].isnan().any(1)]
    order = order[_nms(boxes[order], labels[order], inference)]
    most = inference.max_detections_per_chip
    capped = any(level.capped for level in levels) or len(order) > most
    order = order[:most]
    return ChipBoxes(boxes[order], scores[order], labels[order], capped)


def _of_level(raw: RawOutputs, anchors: Tensor, inference: Inference) -> _Candidates:
    """Return a level's best candidates (steps 1 to 4, not clipped)."""
    logits, classes = raw.logits.flatten(), raw.logits.shape[1]
    place = torch.nonzero(logits > lowest_logit(inference.score_threshold)).squeeze(1)
    score = logistic(logits[place])
    if raw.quality is not None:
        score = score * logistic(raw.quality[place // classes])
    above = torch.nonzero(score > float_below(inference.score_threshold)).squeeze(1)
    capped = len(above) > inference.topk_per_level
    if capped:
        best = _best_first(score[above])[: inference.topk_per_level]
        above = above[best.sort().values]
    place = place[above]
    anchor = place // classes
    boxes = decode_boxes(raw.deltas[anchor], anchors[anchor])
    return _Candidates(boxes, score[above], place % classes, capped)


def _best_first(score: Tensor) -> Tensor:
    """Return the order of step 3 for scores in the order of their places."""
    return score.sort(descending=True, stable=True).indices


def _nms(boxes: Tensor, labels: Tensor, inference: Inference) -> Tensor:
    """Return the indices of the boxes that NMS keeps, ascending. The best box comes first."""
    # Falling numbers in place of the scores: equal scores must not change their order.
    rank = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    present = [] if inference.class_agnostic else labels.unique().tolist()
    if len(present) < 2:
        return nms(boxes, rank, inference.nms_iou)
    members = [torch.nonzero(labels == label).squeeze(1) for label in present]
    kept = [i[nms(boxes[i], rank[i], inference.nms_iou)] for i in members]
    return torch.cat(kept).sort().values


def logistic(logits: Tensor) -> Tensor:
    """Return `1 / (1 + exp(-logits))`, computed in float64, as float32."""
    return (1 / (1 + torch.exp(-logits.double()))).float()


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Move and scale anchors by deltas: both (..., 4), the result (..., 4) float32 xyxy.

    Equal to `decode_single` of torchvision's box coder but for the last bit of `exp`. That function
    copies a number from the host to the GPU at each call, which waits and breaks CUDA graphs.
    """
    dx, dy, dw, dh = deltas.float().unbind(-1)
    x0, y0, x1, y1 = anchors.unbind(-1)
    width, height = x1 - x0, y1 - y0
    centre_x, centre_y = dx * width + (x0 + 0.5 * width), dy * height + (y0 + 0.5 * height)
    half_width, half_height = 0.5 * (_scale(dw) * width), 0.5 * (_scale(dh) * height)
    return torch.stack(
        [
            centre_x - half_width,
            centre_y - half_height,
            centre_x + half_width,
            centre_y + half_height,
        ],
        dim=-1,
    )


def _scale(delta: Tensor) -> Tensor:
    return torch.exp(delta.clamp(max=_LARGEST_SCALE).double()).float()


def float_below(value: float) -> float:
    """Return the largest float32 that is not above `value`.

    For every float32 x, `x > float_below(value)` says the same as `x > value` in real numbers. A
    device that rounds `value` to float32 before it compares may say something else.
    """
    near = np.float32(value)
    return float(near if float(near) <= value else np.nextafter(near, np.float32(-np.inf)))


def lowest_logit(threshold: float) -> float:
    """Return a logit that is lower than every logit with a score above `threshold`.

    The margin is wide enough that the bound stays valid when it is rounded to bfloat16.
    """
    if threshold <= 0:
        return -math.inf
    logit = math.log(threshold / (1 - threshold))
    return logit - 0.01 * abs(logit) - 1e-3


def rows(output: Tensor, width: int) -> Tensor:
    """Reshape (B, A * width, H, W) to (B, H * W * A, width), in torchvision's order."""
    batch, _, height, columns = output.shape
    split = output.view(batch, -1, width, height, columns).permute(0, 3, 4, 1, 2)
    return split.reshape(batch, -1, width)
