"""Turn what the heads give for a chip into boxes: threshold, top k, NMS."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.card import Inference
from scenesweep.model.losses.criterion import RawOutputs, coder


def decode(
    outputs: list[RawOutputs],
    level_anchors: list[Tensor],
    inference: Inference,
    shape: tuple[int, int],
) -> ChipBoxes:
    """Turn one chip's raw outputs and anchors, one of each per level, into boxes.

    `shape` is the chip's height and width. The steps are those of torchvision, in its order: score
    threshold, top k of every level, decoding, clipping to the chip, NMS. Without outputs there are
    no boxes.
    """
    if not outputs:
        none = torch.zeros(0)
        return ChipBoxes(none.reshape(0, 4), none, none.long(), capped=False)
    boxes, scores, labels = [], [], []
    capped = False
    bound = lowest_logit(inference.score_threshold)
    for raw, anchors_there in zip(outputs, level_anchors, strict=True):
        flat = raw.logits.flatten()
        above = torch.nonzero(flat > bound).squeeze(1)
        anchor = above // raw.logits.shape[1]
        score = flat[above].float().sigmoid()
        if raw.quality is not None:
            score = score * raw.quality[anchor].float().sigmoid()
        confident = torch.nonzero(score > inference.score_threshold).squeeze(1)
        if len(confident) > inference.topk_per_level:
            capped = True
            confident = confident[score[confident].topk(inference.topk_per_level).indices]
        anchor = anchor[confident]
        boxes.append(coder.decode_single(raw.deltas[anchor].float(), anchors_there[anchor]))
        scores.append(score[confident])
        labels.append(above[confident] % raw.logits.shape[1])
    inside = clip_boxes_to_image(torch.cat(boxes), shape)
    score, label = torch.cat(scores), torch.cat(labels)
    group = torch.zeros_like(label) if inference.class_agnostic else label
    kept = batched_nms(inside, score, group, inference.nms_iou)
    if len(kept) > inference.max_detections_per_chip:
        capped = True
        kept = kept[: inference.max_detections_per_chip]
    return ChipBoxes(inside[kept], score[kept], label[kept], capped)


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
