"""The losses of RetinaNet. `model.architecture.Losses` names their sources."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import (
    complete_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from scenesweep.model.architecture import Losses
from scenesweep.model.errors import ModelError
from scenesweep.model.losses.assign import IGNORED
from scenesweep.model.losses.truth import Truth
from scenesweep.model.private_apis.torchvision import BoxCoder

Scale = float | Tensor
USUAL_ALPHA = 0.25
_ALPHA_RANGE = (0.05, 0.95)
coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
"""Encodes boxes as deltas to anchors, as in Faster R-CNN, without weights. A decoded box is at most
62.5 times as wide or high as its anchor."""


@dataclass(frozen=True, slots=True)
class RawOutputs:
    """Raw outputs of a network for B chips and the A anchors of all levels that have any.

    `logits` is (B, A, classes), `deltas` (B, A, 4) and, with an IoU branch, `quality` (B, A).
    """

    logits: Tensor
    deltas: Tensor
    quality: Tensor | None

    def of(self, chip: int) -> RawOutputs:
        """Return the outputs for one chip, without the batch axis."""
        quality = None if self.quality is None else self.quality[chip]
        return RawOutputs(self.logits[chip], self.deltas[chip], quality)

    def some(self, chips: Tensor) -> RawOutputs:
        """Return the outputs for some chips, by their indices."""
        quality = None if self.quality is None else self.quality[chips]
        return RawOutputs(self.logits[chips], self.deltas[chips], quality)

    def cpu(self) -> RawOutputs:
        """Return the outputs as tensors on the CPU."""
        quality = None if self.quality is None else self.quality.cpu()
        return RawOutputs(self.logits.cpu(), self.deltas.cpu(), quality)


class Criterion(nn.Module):
    """Computes the losses of a batch, divided by its positive anchors (GHM: by all anchors).

    On a GPU, the host waits once in a batch: for the number of positive anchors.
    """

    gradient_counts: Tensor
    alpha: Tensor | None
    class_weights: Tensor | None

    def __init__(self, settings: Losses, *, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.classes = classes
        counts = torch.zeros(settings.ghm_bins)
        self.register_buffer("gradient_counts", counts, persistent=False)
        # Buffers move to the device once; a new tensor in each step would be copied each time.
        self.register_buffer("alpha", _alpha(settings), persistent=False)
        self.register_buffer("class_weights", _class_weights(settings), persistent=False)

    def forward(
        self, raw: RawOutputs, anchors: Tensor, match: Tensor, truth: Truth
    ) -> dict[str, Tensor]:
        """Return the scalars `classification`, `boxes` and, with an IoU branch, `iou`.

        `anchors` is (A, 4) xyxy in chip pixels. `match` is (B, A) as returned by
        `model.losses.assign`.
        """
        chip, anchor = torch.nonzero(match >= 0, as_tuple=True)  # the host waits here
        row = match[chip, anchor]
        boxes, labels, near = truth.boxes[chip, row], truth.labels[chip, row], anchors[anchor]
        scale = 1.0 / _positives(len(chip), raw.logits.device)
        deltas = raw.deltas[chip, anchor]
        predicted = coder.decode_single(deltas, near)
        overlap = _paired_iou(predicted.detach(), boxes)
        target = torch.zeros_like(raw.logits)
        soft = self.settings.classification == "quality_focal"
        target[chip, anchor, labels] = overlap if soft else 1.0
        counted = match != IGNORED
        losses = {
            "classification": self._classification(raw.logits, target, counted, scale),
            "boxes": self._boxes(deltas, predicted, boxes, near)
            * (scale * self.settings.box_weight),
        }
        if raw.quality is not None:
            losses["iou"] = F.binary_cross_entropy_with_logits(
                raw.quality[chip, anchor], overlap, reduction="sum"
            ) * (scale * self.settings.iou_weight)
        return losses

    def _classification(
        self, logits: Tensor, target: Tensor, counted: Tensor, scale: Scale
    ) -> Tensor:
        """Return the loss of the anchors that are `counted` (B, A); the others have weight 0."""
        settings = self.settings
        if settings.classification == "ghm":
            return self._ghm(logits, target, counted)
        if settings.classification == "quality_focal":
            terms = quality_focal_loss(logits, target, beta=settings.gamma)
        elif settings.classification == "class_balanced_focal":
            terms = focal_loss(logits, target, alpha=None, gamma=settings.gamma)
            terms = terms * _needed(self.class_weights)
        elif isinstance(settings.alpha, float | int):  # torchvision's own is the fastest
            terms = sigmoid_focal_loss(logits, target, alpha=settings.alpha, gamma=settings.gamma)
        else:
            alpha = None if settings.alpha is None else _needed(self.alpha)
            terms = focal_loss(logits, target, alpha=alpha, gamma=settings.gamma)
        return (terms * counted[..., None]).sum() * scale

    def _ghm(self, logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        weights, counts = ghm_weights(
            logits.detach(),
            target,
            self.gradient_counts,
            counted=counted[..., None].expand_as(logits),
            momentum=self.settings.ghm_momentum,
        )
        # In place: DistributedDataParallel knows this tensor and would not see another.
        self.gradient_counts.copy_(counts)
        terms = F.binary_cross_entropy_with_logits(logits, target, weights, reduction="sum")
        return terms / _mean_over_workers((counted.sum() * self.classes).float())

    def _boxes(self, deltas: Tensor, predicted: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
        kind = self.settings.boxes
        if kind == "giou":
            return generalized_box_iou_loss(predicted, boxes, reduction="sum")
        if kind == "ciou":
            return complete_box_iou_loss(predicted, boxes, reduction="sum")
        target = coder.encode_single(boxes, anchors)
        if kind == "l1":
            return F.l1_loss(deltas, target, reduction="sum")
        return F.smooth_l1_loss(deltas, target, beta=self.settings.beta, reduction="sum")


def _needed(value: Tensor | None) -> Tensor:
    if value is None:
        raise ModelError(
            "losses.class_counts: expected the number of objects of each class, got none"
        )
    return value


def _alpha(settings: Losses) -> Tensor | None:
    """Return an alpha for each class; None if it is one number, or if a class has no count yet."""
    if isinstance(settings.alpha, tuple):
        return torch.tensor(settings.alpha)
    if settings.alpha == "frequency" and settings.class_counts:
        return inverse_frequency_alpha(torch.tensor(settings.class_counts, dtype=torch.float32))
    return None


def _class_weights(settings: Losses) -> Tensor | None:
    if settings.classification != "class_balanced_focal" or not settings.class_counts:
        return None
    counts = torch.tensor(settings.class_counts, dtype=torch.float32)
    return class_balanced_weights(counts, beta=settings.class_balance)


def focal_loss(
    logits: Tensor, target: Tensor, *, alpha: float | Tensor | None, gamma: float
) -> Tensor:
    """Return -alpha_t (1 - p_t)^gamma log(p_t), elementwise (Lin et al. 2017, equation 5).

    `logits` and `target` (0 or 1) are (..., classes). `alpha` is one number, one number for each
    class, or None for no weight.
    """
    terms = sigmoid_focal_loss(logits, target, alpha=-1, gamma=gamma, reduction="none")
    if alpha is None:
        return terms
    alpha = torch.as_tensor(alpha).to(logits)
    return terms * (alpha * target + (1 - alpha) * (1 - target))


def quality_focal_loss(logits: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Return |y - p|^beta times the cross-entropy of p with y in 0..1, elementwise.

    Generalized Focal Loss (Li et al. 2020), equation 3. y is the IoU of the predicted box with its
    object.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (target - logits.sigmoid()).abs().pow(beta) * entropy


def class_balanced_weights(counts: Tensor, *, beta: float) -> Tensor:
    """Return weights by the effective number of objects (Cui et al. 2019, equations 3 and 8).

    `counts` is (classes,). The weight of class c is (1 - beta) / (1 - beta^n_c), scaled so that
    the sum of all weights is the number of classes. It multiplies every term of the class's
    binary problem, for objects and background alike.
    """
    weights = (1 - beta) / (1 - beta ** counts.double().clamp(min=1))
    return (weights * len(counts) / weights.sum()).float()


def inverse_frequency_alpha(counts: Tensor) -> Tensor:
    """Return an alpha for each class, inverse to how often it occurs (Lin et al., section 3.1).

    A class of mean frequency has 0.25. All values are clipped to 0.05..0.95.
    """
    counts = counts.clamp(min=1)
    return (USUAL_ALPHA * counts.mean() / counts).clamp(*_ALPHA_RANGE)


def ghm_weights(
    logits: Tensor,
    target: Tensor,
    counts: Tensor,
    *,
    momentum: float,
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return GHM-C's weight of every term and the updated counts (Li et al. 2019, section 3.3).

    The gradient norm g = |p - p*| of every term falls into one of len(counts) equal bins.
    The weight of a term is the number of terms, divided by the number in its bin and by the number
    of bins in use. `counts`, the numbers in the bins, are exponential moving averages (`momentum`).
    Terms that are not `counted` (same shape, bool) have weight 0. Numbers of terms are sums over
    all workers, so the counts are the same on each.
    """
    bins = len(counts)
    bin_of = ((logits.sigmoid() - target).abs() * bins).long().clamp(max=bins - 1)
    weight = torch.ones_like(logits) if counted is None else counted.to(logits)
    number = torch.where(weight > 0, bin_of, bins).flatten()  # the last bin: not counted
    # `bincount` would do, but on a GPU it reads the largest value back to the host.
    here = (number[:, None] == torch.arange(bins, device=number.device)).sum(dim=0)
    here = _sum_over_workers(here).to(counts)
    average = torch.where(counts > 0, momentum * counts + (1 - momentum) * here, here)
    updated = torch.where(here > 0, average, counts)
    used = (here > 0).sum().clamp(min=1)
    per_bin = torch.where(here > 0, here.sum() / updated.clamp(min=1e-9), 0.0)
    return per_bin[bin_of] * weight / used, updated


def _paired_iou(predicted: Tensor, boxes: Tensor) -> Tensor:
    """Return the IoU (P,) of each row of `predicted` (P, 4) with the same row of `boxes`."""
    left_top = torch.maximum(predicted[:, :2], boxes[:, :2])
    right_bottom = torch.minimum(predicted[:, 2:], boxes[:, 2:])
    common = (right_bottom - left_top).clamp(min=0).prod(dim=1)
    areas = _areas(predicted) + _areas(boxes)
    return common / (areas - common).clamp(min=1e-9)


def _areas(xyxy: Tensor) -> Tensor:
    return (xyxy[:, 2:] - xyxy[:, :2]).prod(dim=1)


def _positives(count: int, device: torch.device) -> Scale:
    """Return the number of positive anchors in the batch, averaged over workers, at least 1.

    With several workers it stays on the device.
    """
    if not _has_workers():
        return float(max(1, count))
    return _mean_over_workers(torch.full((), float(count), device=device)).clamp(min=1.0)


def _mean_over_workers(value: Tensor) -> Tensor:
    if not _has_workers():
        return value
    return _sum_over_workers(value) / torch.distributed.get_world_size()


def _sum_over_workers(value: Tensor) -> Tensor:
    """Add up a tensor over all workers, in place."""
    if _has_workers():
        torch.distributed.all_reduce(value)
    return value


def _has_workers() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
