"""NMS of a batch with fixed shapes: over all pairs of boxes, or over pairs that are near in x.

Greedy NMS is the only fixpoint of `keep[j] = valid[j] and no better i with keep[i] removes j`. It
is found in rounds: after n rounds at least the best n boxes are final, and 1,000 random boxes need
3 to 6 rounds. Both functions compute the same IoU of each pair, rounded as torchvision's NMS on
CPUs rounds it.

Boxes are (B, T, 4) float32, the best first, `group` (B, T) is equal where boxes compete, and
`valid` (B, T) says which boxes are candidates. The results are which boxes are kept, (B, T) bool,
and for which chips that is final, (B,) bool.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from scenesweep.model.networks.decode import float_below


def nms_of_all(
    boxes: Tensor, group: Tensor, valid: Tensor, *, iou: float, rounds: int
) -> tuple[Tensor, Tensor]:
    """Compare all T x T pairs."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    common = _overlap(x0, x1).mul_(_overlap(y0, y1))
    union = (area[:, :, None] + area[:, None]).sub_(common)
    above = common.div_(union) > float_below(iou)
    removes = above.logical_and_(group[:, :, None] == group[:, None]).triu_(1)
    keep = before = valid
    for _ in range(rounds):
        before, keep = keep, valid & ~(removes & keep[:, :, None]).any(1)
    return keep, (before == keep).all(1)


def nms_of_near(
    boxes: Tensor, group: Tensor, valid: Tensor, *, iou: float, rounds: int, band: int
) -> tuple[Tensor, Tensor]:
    """Compare each box with the `band` boxes whose left edges follow its own: T x band pairs.

    If the next box after these begins right of the box's right edge, then no pair is missing.
    """
    left = torch.where(valid, boxes[..., 0], torch.inf)
    order = left.argsort(1)
    x0, y0, x1, y1 = boxes.gather(1, order[..., None].expand_as(boxes)).unbind(-1)
    x0 = left.gather(1, order)
    valid, group = valid.gather(1, order), group.gather(1, order)
    beyond = pad(x0, (0, band + 1), value=torch.inf)[:, band + 1 :]
    compared = (~valid | ~(beyond < x1)).all(1)

    def later(values: Tensor) -> Tensor:
        """Return a view (B, T, band) of the `band` values after each one."""
        return pad(values, (0, band))[:, 1:].unfold(1, band, 1)

    area = (x1 - x0) * (y1 - y0)
    width = torch.minimum(x1[..., None], later(x1)).sub_(later(x0)).clamp_(min=0)
    height = torch.minimum(y1[..., None], later(y1)).sub_(torch.maximum(y0[..., None], later(y0)))
    common = width.mul_(height.clamp_(min=0))
    union = (area[..., None] + later(area)).sub_(common)
    above = common.div_(union) > float_below(iou)
    above &= group[..., None] == later(group)
    above &= valid[..., None] & later(valid)
    keep, settled = _settle(_removers(above, order[..., None] < later(order)), valid, rounds)
    return torch.zeros_like(keep).scatter_(1, order, keep), settled & compared


def _removers(above: Tensor, better: Tensor) -> Tensor:
    """Return (B, T, 2 band + 1) bool: which boxes around box t remove it. It is in the middle.

    `above` (B, T, band) says which of the boxes after box t overlap it enough, and `better` whether
    box t is better than they are.
    """
    batch, count, band = above.shape
    removers = above.new_zeros(batch, count, 2 * band + 1)
    torch.logical_and(above, ~better, out=removers[..., band + 1 :])
    padded = above.new_zeros(batch, band + count, band)
    torch.logical_and(above, better, out=padded[:, band:])
    # Element (t, e) is what box t - (band - e) does to box t: a diagonal of `padded`.
    before = padded.as_strided(
        above.shape, (padded.stride(0), band, band - 1), storage_offset=band - 1
    )
    removers[..., :band].copy_(before)
    return removers


def _settle(removers: Tensor, valid: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    around = removers.shape[2]
    keep = before = valid
    for _ in range(rounds):
        kept = pad(keep, (around // 2, around // 2)).unfold(1, around, 1)
        before, keep = keep, valid & ~(removers & kept).any(2)
    return keep, (before == keep).all(1)


def _overlap(low: Tensor, high: Tensor) -> Tensor:
    """Return by how much intervals (B, T) overlap pairwise, (B, T, T), at least 0."""
    end = torch.minimum(high[:, :, None], high[:, None])
    return end.sub_(torch.maximum(low[:, :, None], low[:, None])).clamp_(min=0)
