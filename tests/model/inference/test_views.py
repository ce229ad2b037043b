"""Views of a chip: where boxes come back to, and how those of several views become one set."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes, DetectorOutput
from scenesweep.model.card import Inference, ModelCard
from scenesweep.model.inference.detector import Detector, load_detector
from scenesweep.model.inference.views import View, ViewsDetector, combine, load_with_views
from scenesweep.model.inference.windows import chips_of
from scenesweep.model.settings import SYMMETRIES, DetectorSettings, Rule, Views
from tests.rasters import make_card
from tests.small_models import a_model, noise

RULES: tuple[Rule, ...] = ("weighted", "highest")
CPU = DetectorSettings(device="cpu", precision="float32")


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("scale", ["", "@2", "@0.5"])
@pytest.mark.parametrize("shape", [(64, 64), (32, 96)])
def test_a_box_comes_back_to_its_pixels(symmetry: str, scale: str, shape: tuple[int, int]) -> None:
    chips = np.zeros((1, 1, *shape), np.uint8)
    chips[0, 0, 8:20, 40:48] = 255
    view = View.named(symmetry + scale)
    seen = view.of(chips, 8)
    rows, columns = np.nonzero(seen[0, 0] > 127)
    box = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    back = view.back(np.array(box, np.float32), (seen.shape[-2], seen.shape[-1]), shape)
    assert back.tolist() == [[40, 8, 48, 20]]


def test_turns_are_clockwise() -> None:
    chips = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)
    for name, times in {"turn-90": -1, "turn-180": 2, "turn-270": 1}.items():
        seen = View.named(name).of(chips, 1)[0, 0]
        assert np.array_equal(seen, np.rot90(chips[0, 0], times))


def test_sides_of_a_view_are_multiples_of_the_stride() -> None:
    seen = View.named("plain@0.75").of(np.zeros((2, 3, 512, 96), np.uint8), 32)
    assert seen.shape == (2, 3, 384, 64)


def some_boxes(rng: np.random.Generator, count: int) -> Boxes:
    low = rng.integers(0, 24, (count, 2)).astype(np.float32)
    return Boxes(
        np.concatenate([low, low + rng.integers(4, 12, (count, 2))], axis=1).astype(np.float32),
        rng.choice(np.array([0.25, 0.5, 0.75, 0.875], np.float32), count),
        rng.integers(0, 2, count).astype(np.int16),
        np.zeros(count, np.int32),
    )


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)


def by_definition(boxes: Boxes, rule: Rule, views: int, inference: Inference) -> list[list[float]]:
    """The definition of the module's docstring as a slow, obvious loop."""
    order = sorted(
        range(len(boxes)),
        key=lambda i: (-boxes.score[i], *boxes.xyxy[i].tolist(), boxes.label[i]),
    )
    clusters: list[list[int]] = []
    fused: list[NDArray[np.float64]] = []
    for i in order:
        box, best, most = boxes.xyxy[i].astype(np.float64), None, inference.nms_iou
        for number, members in enumerate(clusters):
            same = inference.class_agnostic or boxes.label[members[0]] == boxes.label[i]
            if same and overlap(fused[number], box) > most:
                best, most = number, overlap(fused[number], box)
        if best is None:
            clusters.append([i])
            fused.append(box)
        elif rule == "weighted":
            clusters[best].append(i)
            weights = boxes.score[clusters[best]].astype(np.float64)
            fused[best] = np.average(boxes.xyxy[clusters[best]], axis=0, weights=weights)
    found = []
    for members, box in zip(clusters, fused, strict=True):
        score = float(boxes.score[members[0]])
        if rule == "weighted":
            score = float(boxes.score[members].sum()) / max(views, len(members))
        if rule == "highest" or score > inference.score_threshold:
            found.append([*box.tolist(), score, int(boxes.label[members[0]])])
    return sorted(found)


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 2**32 - 1), views=st.integers(1, 5), agnostic=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_rules_are_their_definition(rule: Rule, seed: int, views: int, agnostic: bool) -> None:
    rng = np.random.default_rng(seed)
    boxes = some_boxes(rng, int(rng.integers(0, 25)))
    inference = Inference(score_threshold=0.3, nms_iou=0.4, class_agnostic=agnostic)
    result = combine(boxes, rule, views=views, inference=inference)
    columns = np.column_stack([result.xyxy, result.score, result.label])
    assert np.array(sorted(columns.tolist())).reshape(-1, 6) == pytest.approx(
        np.array(by_definition(boxes, rule, views, inference)).reshape(-1, 6), abs=1e-4
    )
    assert (np.diff(result.score) <= 0).all()
    again = combine(boxes.take(rng.permutation(len(boxes))), rule, views=views, inference=inference)
    assert np.array_equal(again.xyxy, result.xyxy)
    assert np.array_equal(again.score, result.score)


def test_a_fused_box_is_the_mean_weighted_by_scores() -> None:
    boxes = Boxes(
        np.array([[0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 50, 50]], np.float32),
        np.array([0.75, 0.25, 0.8], np.float32),
        np.zeros(3, np.int16),
        np.zeros(3, np.int32),
    )
    fused = combine(boxes, "weighted", views=2, inference=Inference(score_threshold=0.05))
    assert fused.xyxy.tolist() == [[0.25, 0, 10.25, 10], [40, 40, 50, 50]]
    assert fused.score == pytest.approx([0.5, 0.4])  # the second one is in one view of two
    highest = combine(boxes, "highest", views=2, inference=Inference(score_threshold=0.05))
    assert highest.score == pytest.approx([0.8, 0.75])


class Bright:
    """A detector that finds the bright rectangle of each chip, whatever its orientation."""

    runs_on = "cpu float32"

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self.sides: list[tuple[int, int]] = []

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        self.sides.append((chips.shape[-2], chips.shape[-1]))
        boxes = []
        for chip in chips:
            rows, columns = np.nonzero(chip[0] > 127)
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        count = len(chips)
        score = np.full(count, 0.6, np.float32)
        label = np.zeros(count, np.int16)
        found = Boxes(np.array(boxes, np.float32), score, label, np.arange(count, dtype=np.int32))
        return DetectorOutput(found, np.zeros(count, np.bool_))


@pytest.mark.parametrize("rule", RULES)
def test_all_views_agree_on_an_object(rule: Rule) -> None:
    chips = np.zeros((2, 1, 64, 64), np.uint8)
    chips[0, 0, 8:20, 40:48] = 255
    chips[1, 0, 16:24, 16:32] = 255
    card = make_card()
    bright: Any = Bright(card)
    views = Views(views=(*SYMMETRIES, "plain@2"), views_rule=rule)
    detector = ViewsDetector(bright, views, card.inference)
    output = detector.detect(chips)
    assert output.boxes.xyxy.tolist() == [[40, 8, 48, 20], [16, 16, 32, 24]]
    assert output.boxes.score == pytest.approx([0.6, 0.6])
    assert output.boxes.chip.tolist() == [0, 1]
    assert set(bright.sides) == {(64, 64), (128, 128)}
    assert detector.runs_on == "cpu float32"


def test_the_order_of_views_does_not_matter_and_chips_are_independent(tmp_path: Path) -> None:
    model, chips = a_model(tmp_path), noise(3)
    names = ("plain", "flip-x", "turn-90@1.5")
    inference = model.card.inference.model_copy(update={"score_threshold": 0.2})
    outputs = []
    for order in itertools.permutations(names):
        detector = load_with_views(model, CPU, Views(views=order), inference=inference)
        assert isinstance(detector, ViewsDetector)
        outputs.append(detector.detect(chips))
    first = outputs[0].boxes
    assert len(first)
    assert first.score.min() > 0.2
    for other in outputs[1:]:
        assert np.array_equal(other.boxes.xyxy, first.xyxy)
        assert np.array_equal(other.boxes.score, first.score)
    alone = detector.detect(chips[1:2]).boxes
    assert np.array_equal(alone.xyxy, first.xyxy[first.chip == 1])
    started = detector.collect(detector.submit(chips_of(chips[:1]), chips_of(chips[1:])))
    assert np.array_equal(started.boxes.xyxy, first.xyxy)


def test_one_plain_view_is_the_detector_itself(tmp_path: Path) -> None:
    model, chips = a_model(tmp_path), noise(2)
    plain = load_with_views(model, CPU, Views(), inference=model.card.inference)
    assert isinstance(plain, Detector)
    expected = load_detector(model, CPU).detect(chips).boxes
    assert np.array_equal(plain.detect(chips).boxes.xyxy, expected.xyxy)


def test_more_boxes_than_the_limit_are_said(tmp_path: Path) -> None:
    model = a_model(tmp_path)
    inference = model.card.inference.model_copy(update={"max_detections_per_chip": 2})
    views = Views(views=("plain", "flip-x"), views_rule="highest")
    output = load_with_views(model, CPU, views, inference=inference).detect(noise(1))
    assert len(output.boxes) == 2
    assert output.capped.tolist() == [True]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("mirror",), "expected one of plain, flip-x"),
        (("plain@9",), "a scale from 0.25 to 4"),
        (("plain@big",), "got 'plain@big'"),
        (("plain", "plain@1"), "expected one or more different views, got plain, plain@1"),
        ((), "got none"),
    ],
)
def test_views_that_are_none_are_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Views(views=names)
