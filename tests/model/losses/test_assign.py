"""Assignment against slow, obvious references, and fitting of anchors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from scenesweep.model.architecture import Architecture, Assignment
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.losses.assign import BACKGROUND, IGNORED, assign
from scenesweep.model.losses.truth import Truth
from scenesweep.model.networks.anchors import anchor_recall, anchors, fit_anchors

PYRAMID = Architecture(
    levels=(3, 4), anchor_sizes_px=((16.0, 22.0), (32.0, 44.0)), aspect_ratios=(0.5, 1.0)
)


def assign_one(places: list[Tensor], boxes: Tensor, settings: Assignment) -> Tensor:
    """Assign the anchors of one chip."""
    truth = Truth.pad([(boxes, torch.zeros(len(boxes), dtype=torch.int64))])
    return assign(places, truth, settings, per_cell=4)[0]


def some_boxes(seed: int, count: int = 5) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=random) * 90
    return torch.cat([corners, corners + 8 + torch.rand(count, 2, generator=random) * 40], 1)


@pytest.mark.parametrize("seed", range(4))
def test_atss_is_the_papers_algorithm(seed: int) -> None:
    places, boxes = anchors(PYRAMID, (128, 128)), some_boxes(seed)
    found = assign_one(places, boxes, Assignment(kind="atss", atss_candidates=3))
    everywhere = torch.cat(places)
    overlap = box_iou(boxes, everywhere)
    centres = (everywhere[:, :2] + everywhere[:, 2:]) / 2
    best: dict[int, tuple[float, int]] = {}
    for number, box in enumerate(boxes):
        middle = (box[:2] + box[2:]) / 2
        distance = ((centres - middle) ** 2).sum(1).sqrt()
        chosen: list[int] = []
        for start, level in ((0, places[0]), (len(places[0]), places[1])):
            near = torch.topk(distance[start : start + len(level)], 12, largest=False).indices
            chosen += (near + start).tolist()
        values = np.array([float(overlap[number, i]) for i in chosen])
        for i, value in zip(chosen, values, strict=True):
            x, y = centres[i].tolist()
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if inside and value >= values.mean() + values.std() - 1e-7:
                best[i] = max(best.get(i, (0.0, 0)), (float(value), number))
    assert {i: int(found[i]) for i in torch.nonzero(found >= 0).flatten().tolist()} == {
        i: number for i, (_, number) in best.items()
    }
    assert set(found[found < 0].tolist()) <= {BACKGROUND}


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_max_iou_has_three_bands(seed: int, low: bool) -> None:
    places, boxes = anchors(PYRAMID, (128, 128)), some_boxes(seed)
    settings = Assignment(foreground_iou=0.6, background_iou=0.3, low_quality_matches=low)
    found = assign_one(places, boxes, settings)
    overlap = box_iou(boxes, torch.cat(places))
    best, owner = overlap.max(dim=0)
    expected = torch.where(best >= 0.6, owner, torch.where(best < 0.3, BACKGROUND, IGNORED))
    if low:
        own = (overlap == overlap.max(dim=1, keepdim=True).values).any(dim=0)
        expected = torch.where(own, owner, expected)
        assert set(range(len(boxes))) <= set(found.tolist())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["max_iou", "atss"])
def test_a_chip_without_objects_is_background(kind: str) -> None:
    settings = Assignment.model_validate({"kind": kind})
    found = assign_one(anchors(PYRAMID, (64, 64)), torch.zeros(0, 4), settings)
    assert (found == BACKGROUND).all()


@pytest.mark.parametrize(
    "settings",
    [
        Assignment(),
        Assignment(low_quality_matches=False),
        Assignment(background_iou=0.0),
        Assignment(kind="atss", atss_candidates=3),
    ],
    ids=["low", "high", "zero", "atss"],
)
@pytest.mark.parametrize("pairs", [1, 2**27], ids=["in parts", "together"])
def test_a_batch_is_assigned_as_each_chip_alone(
    settings: Assignment, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chips have 0 to 30 boxes; one box overlaps no anchor. torchvision's own class agrees."""
    monkeypatch.setattr("scenesweep.model.losses.assign._PAIRS_AT_ONCE", pairs)
    monkeypatch.setattr("scenesweep.model.losses.assign._READS_ARE_FREE", set())
    places = anchors(PYRAMID, (128, 128))
    chips = [some_boxes(seed, count) for seed, count in enumerate((5, 0, 30, 1))]
    chips.append(torch.cat([torch.tensor([[900.0, 900, 910, 910]]), some_boxes(9)]))
    truth = Truth.pad([(boxes, torch.zeros(len(boxes), dtype=torch.int64)) for boxes in chips])
    together = assign(places, truth, settings, per_cell=4)
    for boxes, found in zip(chips, together, strict=True):
        assert torch.equal(found, assign_one(places, boxes, settings))
        with monkeypatch.context() as patch:
            patch.setattr("scenesweep.model.losses.assign._READS_ARE_FREE", {"cpu"})
            assert torch.equal(together, assign(places, truth, settings, per_cell=4))
        if settings.kind == "max_iou" and len(boxes):
            matcher = Matcher(
                settings.foreground_iou, settings.background_iou, settings.low_quality_matches
            )
            assert torch.equal(found, matcher(box_iou(boxes, torch.cat(places))))


def long_boxes() -> LabelledChips:
    """Boxes of about 60 x 12 px, which square anchors miss."""
    random = np.random.default_rng(0)
    boxes = []
    for _ in range(20):
        corner = random.uniform(0, 60, (4, 2))
        size = np.array([60, 12]) * random.uniform(0.9, 1.1, (4, 2))
        boxes.append(np.hstack([corner, corner + size]).astype(np.float32))
    labels = tuple(np.zeros(4, np.int64) for _ in boxes)
    names = tuple(map(str, range(20)))
    return LabelledChips(names, np.zeros((20, 1, 128, 128), np.uint8), tuple(boxes), labels)


def test_anchors_are_fitted_to_the_boxes() -> None:
    given = Architecture(levels=(2, 3), anchor_sizes_px=((80.0,), ()), aspect_ratios=(1.0,))
    fit = fit_anchors(given, long_boxes())
    assert fit.before < 0.1
    assert fit.after > 0.9
    assert fit.architecture.anchor_sizes_px[0][0] == pytest.approx(np.sqrt(60 * 12), rel=0.1)
    assert fit.architecture.anchor_sizes_px[1] == ()
    assert fit.architecture.aspect_ratios[0] == pytest.approx(12 / 60, rel=0.1)
    assert anchor_recall(fit.architecture, long_boxes()) == fit.after


def test_good_anchors_are_left_alone() -> None:
    given = Architecture(levels=(2, 2), anchor_sizes_px=((26.83,),), aspect_ratios=(0.2,))
    fit = fit_anchors(given, long_boxes())
    assert fit.after >= fit.before > 0.9
    nothing = LabelledChips((), np.zeros((0, 1, 64, 64), np.uint8), (), ())
    assert fit_anchors(given, nothing).architecture == given
