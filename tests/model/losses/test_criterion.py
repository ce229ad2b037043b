"""Losses against the papers' examples and slow, obvious formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scenesweep.model.architecture import Losses
from scenesweep.model.errors import ModelError
from scenesweep.model.losses.assign import BACKGROUND, IGNORED
from scenesweep.model.losses.criterion import (
    Criterion,
    RawOutputs,
    class_balanced_weights,
    focal_loss,
    ghm_weights,
    inverse_frequency_alpha,
    quality_focal_loss,
)
from scenesweep.model.losses.truth import Truth


@pytest.mark.parametrize(
    ("p_t", "published"), [(0.9, 0.00026), (0.1, 0.4667), (0.99, 2.5e-7)], ids=str
)
@pytest.mark.parametrize("sign", [1, -1], ids=["object", "ground"])
def test_the_published_examples_of_focal_loss(p_t: float, published: float, sign: int) -> None:
    """At alpha 0.25 and gamma 2; 0.4667 is their rounding of 0.46627."""
    logit = torch.tensor([sign * math.log(p_t / (1 - p_t))], dtype=torch.float64)
    target = torch.tensor([1.0 if sign > 0 else 0.0], dtype=torch.float64)
    alpha = 0.25 if sign > 0 else 0.75  # alpha_t is 0.25 in the examples
    value = float(focal_loss(logit, target, alpha=alpha, gamma=2.0))
    assert value == pytest.approx(0.25 * (1 - p_t) ** 2 * -math.log(p_t), rel=1e-9)
    assert value == pytest.approx(published, rel=0.02)


def test_gamma_zero_is_cross_entropy_and_alpha_may_be_per_class() -> None:
    logits, target = torch.randn(50, 3), (torch.rand(50, 3) > 0.7).float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(focal_loss(logits, target, alpha=None, gamma=0), entropy)
    alpha = torch.tensor([0.1, 0.5, 0.9])
    weighted = focal_loss(logits, target, alpha=alpha, gamma=0)
    torch.testing.assert_close(weighted, entropy * torch.where(target > 0, alpha, 1 - alpha))


def test_quality_focal_loss_is_least_at_its_target() -> None:
    target = torch.full((99,), 0.7)
    p = torch.arange(1, 100) / 100
    losses = quality_focal_loss(torch.logit(p), target, beta=2)
    assert int(losses.argmin()) == 69
    expected = (0.7 - p).abs() ** 2 * -(0.7 * p.log() + 0.3 * (1 - p).log())
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)


def test_class_balanced_weights_follow_the_effective_number() -> None:
    weights = class_balanced_weights(torch.tensor([10, 1000, 100_000]), beta=0.999)
    raw = [(1 - 0.999) / (1 - 0.999**n) for n in (10, 1000, 100_000)]
    assert weights.tolist() == pytest.approx([3 * w / sum(raw) for w in raw], rel=1e-5)
    same = class_balanced_weights(torch.tensor([10, 1000]), beta=0.0)
    assert same.tolist() == [1.0, 1.0]


def test_alpha_from_class_frequencies() -> None:
    alpha = inverse_frequency_alpha(torch.tensor([100.0, 300.0]))
    assert alpha.tolist() == pytest.approx([0.5, 0.25 * 2 / 3])
    assert inverse_frequency_alpha(torch.tensor([1.0, 1e6])).tolist() == pytest.approx(
        [0.95, 0.125]
    )


def test_ghm_weights_are_inverse_to_the_density_of_gradients() -> None:
    p = torch.tensor([0.05, 0.05, 0.05, 0.95])  # targets 0: gradients 0.05 and 0.95
    weights, counts = ghm_weights(torch.logit(p), torch.zeros(4), torch.zeros(10), momentum=0.75)
    assert weights.tolist() == pytest.approx([4 / 3 / 2] * 3 + [4 / 1 / 2])
    assert counts.tolist() == [3, *[0] * 8, 1]
    _, moved = ghm_weights(torch.logit(p[:3]), torch.zeros(3), counts * 2, momentum=0.75)
    assert moved.tolist() == [0.75 * 6 + 0.25 * 3, *[0] * 8, 2]


ANCHORS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30], [20, 20, 30, 30]])
TRUTH = [
    (torch.tensor([[1.0, 1, 11, 9], [20, 18, 30, 31]]), torch.tensor([1, 0])),
    (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    (torch.tensor([[19.0, 1, 31, 10]]), torch.tensor([1])),
]
MATCHES = torch.stack(
    [
        torch.tensor([0, BACKGROUND, IGNORED, 1]),
        torch.full((4,), BACKGROUND),
        torch.tensor([BACKGROUND, 0, 0, BACKGROUND]),
    ]
)
PADDED = Truth.pad(TRUTH)


def slow_boxes(kind: str, delta: Tensor, anchor: Tensor, box: Tensor) -> float:
    size = anchor[2:] - anchor[:2]
    middle = (anchor[:2] + anchor[2:]) / 2
    if kind in ("smooth_l1", "l1"):
        want = torch.cat(
            [((box[:2] + box[2:]) / 2 - middle) / size, ((box[2:] - box[:2]) / size).log()]
        )
        apart = (delta - want).abs()
        if kind == "l1":
            return float(apart.sum())
        quadratic = 0.5 * apart**2 / 0.11
        return float(torch.where(apart < 0.11, quadratic, apart - 0.5 * 0.11).sum())
    at, half = middle + delta[:2] * size, delta[2:].exp() * size / 2
    found = torch.cat([at - half, at + half])
    common = (torch.minimum(found[2:], box[2:]) - torch.maximum(found[:2], box[:2])).clamp(0).prod()
    areas = (found[2:] - found[:2]).prod() + (box[2:] - box[:2]).prod()
    iou = common / (areas - common)
    hull = torch.maximum(found[2:], box[2:]) - torch.minimum(found[:2], box[:2])
    if kind == "giou":
        return float(1 - iou + (hull.prod() - (areas - common)) / hull.prod())
    apart = (((found[:2] + found[2:]) - (box[:2] + box[2:])) ** 2).sum() / 4
    shape = [math.atan(float((b[2] - b[0]) / (b[3] - b[1]))) for b in (found, box)]
    v = 4 / math.pi**2 * (shape[0] - shape[1]) ** 2
    return float(1 - iou + apart / (hull**2).sum() + v * v / (1 - float(iou) + v))


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou", "ciou"])
def test_box_losses_are_means_over_positive_anchors(kind: Any) -> None:
    torch.manual_seed(1)
    raw = RawOutputs(torch.randn(3, 4, 2), torch.randn(3, 4, 4) * 0.2, None)
    criterion = Criterion(Losses(boxes=kind, box_weight=2.0), classes=2)
    value = criterion(raw, ANCHORS, MATCHES, PADDED)["boxes"]
    terms = [
        slow_boxes(kind, raw.deltas[chip, anchor], ANCHORS[anchor], TRUTH[chip][0][match[anchor]])
        for chip, match in enumerate(MATCHES)
        for anchor in range(4)
        if match[anchor] >= 0
    ]
    assert float(value) == pytest.approx(2 * sum(terms) / 4, rel=1e-4)


def test_ignored_anchors_do_not_count_and_targets_are_per_class() -> None:
    torch.manual_seed(1)
    raw = RawOutputs(torch.randn(3, 4, 2), torch.zeros(3, 4, 4), None)
    value = Criterion(Losses(), classes=2)(raw, ANCHORS, MATCHES, PADDED)["classification"]
    total = 0.0
    for chip, match in enumerate(MATCHES):
        for anchor in range(4):
            for label in range(2):
                if match[anchor] == IGNORED:
                    continue
                hit = match[anchor] >= 0 and int(TRUTH[chip][1][match[anchor]]) == label
                p = float(raw.logits[chip, anchor, label].sigmoid())
                p_t, alpha = (p, 0.25) if hit else (1 - p, 0.75)
                total += alpha * (1 - p_t) ** 2 * -math.log(p_t)
    assert float(value) == pytest.approx(total / 4, rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"classification": "quality_focal"},
        {"classification": "class_balanced_focal", "class_counts": (5, 50)},
        {"classification": "ghm"},
        {"alpha": "frequency", "class_counts": (5, 50)},
        {"alpha": (0.2, 0.4)},
        {"alpha": None},
        {"gamma": 0},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_loss_falls_as_the_answer_gets_better(changes: dict[str, Any]) -> None:
    logits = torch.full((3, 4, 2), -1.0, requires_grad=True)
    deltas = torch.zeros(3, 4, 4, requires_grad=True)
    quality = torch.zeros(3, 4, requires_grad=True)
    criterion = Criterion(Losses(**changes), classes=2)
    optimiser = torch.optim.Adam([logits, deltas, quality], 0.05)
    seen = []
    for _ in range(150):
        losses = criterion(RawOutputs(logits, deltas, quality), ANCHORS, MATCHES, PADDED)
        total = sum(losses.values(), torch.zeros(()))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        seen.append(float(total.detach()))
    assert seen[-1] < seen[0] / 2
    assert logits[0, 0, 1] > 0 > logits[0, 0, 0]
    assert logits[0, 3, 0] > 0 > logits[0, 3, 1]
    assert (logits[1] < -1).all()
    assert logits[0, 2].tolist() == [-1, -1]  # ignored


def test_a_batch_without_objects_has_losses() -> None:
    nothing = Truth.pad([(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))])
    raw = RawOutputs(
        torch.randn(1, 4, 2), torch.randn(1, 4, 4, requires_grad=True), torch.zeros(1, 4)
    )
    match = torch.full((1, 4), BACKGROUND)
    for kind in ("smooth_l1", "giou", "ciou", "l1"):
        losses = Criterion(Losses(boxes=kind), classes=2)(raw, ANCHORS, match, nothing)
        assert float(losses["boxes"].detach()) == 0
        assert float(losses["iou"]) == 0
        assert float(losses["classification"]) > 0


def test_weights_by_frequency_need_counts() -> None:
    raw = RawOutputs(torch.randn(3, 4, 2), torch.zeros(3, 4, 4), None)
    with pytest.raises(ModelError, match=r"losses\.class_counts: expected the number"):
        Criterion(Losses(alpha="frequency"), classes=2)(raw, ANCHORS, MATCHES, PADDED)
