"""Matching, figures at all thresholds, average precision, intervals, the threshold in the card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes
from scenesweep.model.card import noted
from scenesweep.model.errors import ModelError
from scenesweep.model.evaluate import (
    Comparison,
    Counts,
    Rule,
    average_precision,
    bootstrap,
    compare_chips,
    evaluate_comparisons,
    find_matches,
    in_blocks,
    match_boxes,
    match_chips,
    pairs_at,
)
from scenesweep.model.evaluate.evaluation import count_errors
from scenesweep.model.evaluate.threshold import Goal, Thresholds, choose_thresholds, with_threshold
from scenesweep.model.files.model_file import open_model, with_card
from scenesweep.model.labelled_chips import LabelledChips
from tests.rasters import SquareDetector, paint_squares

RECALLS = np.linspace(0, 1, 101)


def boxes_of(xyxy: NDArray[np.floating], score: NDArray[np.floating], label: object = 0) -> Boxes:
    n = len(xyxy)
    labels = np.broadcast_to(np.asarray(label, np.int16), (n,)).copy()
    return Boxes(xyxy.astype(np.float32), score.astype(np.float32), labels, np.zeros(n, np.int32))


def crowd(
    predicted: int, true: int, seed: int, *, side: float = 60.0, classes: int = 2
) -> Comparison:
    """Boxes of a few sizes, many of which overlap; scores come in twentieths, so they tie."""
    rng = np.random.default_rng(seed)

    def some(count: int) -> NDArray[np.float64]:
        corner = rng.integers(0, int(side), (count, 2)).astype(np.float64)
        return np.hstack([corner, corner + rng.integers(6, 16, (count, 2))])

    truth = some(true)
    near = truth[rng.permutation(true)[: predicted // 2]]
    found = np.vstack([near + rng.integers(-2, 3, near.shape), some(predicted - len(near))])
    score = rng.integers(1, 20, len(found)) / 20
    label = rng.integers(0, classes, len(found))
    return Comparison("crowd", boxes_of(found, score, label), truth, rng.integers(0, classes, true))


def without_ties(sample: Comparison, seed: int) -> Comparison:
    """Move the objects and scores a little: no two overlaps or scores are equal any more."""
    rng = np.random.default_rng(seed)
    score = rng.permutation(np.linspace(0.05, 0.95, len(sample.predicted))) + seed / 10_000
    return replace(
        sample,
        predicted=replace(sample.predicted, score=score.astype(np.float32)),
        xyxy=sample.xyxy + rng.uniform(-0.1, 0.1, sample.xyxy.shape),
    )


def slow_iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(width * height / (areas - width * height))


def slow_matches(sample: Comparison, iou: float) -> list[int]:
    """COCO's rule, word for word."""
    partner = [-1] * len(sample.predicted)
    for p in np.argsort(-sample.predicted.score, kind="stable"):
        best, chosen = iou, -1
        for t in range(len(sample.label)):
            if t in partner or sample.label[t] != sample.predicted.label[p]:
                continue
            overlap = slow_iou(sample.predicted.xyxy[p].astype(np.float64), sample.xyxy[t])
            if overlap > best or (overlap == best and chosen < 0):
                best, chosen = overlap, t
        partner[p] = chosen
    return partner


def slow_ap(samples: list[Comparison], iou: float, label: int) -> float:
    """Interpolated precision at 101 recalls, from the definition."""
    scores, hits, true = [], [], 0
    for sample in samples:
        partner = np.array(slow_matches(sample, iou), np.int64)
        mine = sample.predicted.label == label
        scores.append(sample.predicted.score[mine])
        hits.append(partner[mine] >= 0)
        true += int((sample.label == label).sum())
    hit = np.concatenate(hits)[np.argsort(-np.concatenate(scores), kind="stable")]
    recall = hit.cumsum() / true
    precision = hit.cumsum() / np.arange(1, len(hit) + 1)
    return float(np.mean([max(precision[recall >= r], default=0.0) for r in RECALLS]))


@given(st.integers(0, 14), st.integers(0, 10), st.integers(0, 2**32 - 1))
def test_boxes_are_matched_by_the_rule_of_coco(predicted: int, true: int, seed: int) -> None:
    sample = crowd(predicted, true, seed, side=25)
    fast = match_boxes(sample.predicted, sample.xyxy, sample.label, iou=0.3)
    assert fast.tolist() == slow_matches(sample, 0.3)


@pytest.mark.parametrize("rule", [Rule(0.3), Rule(radius=9.0)], ids=["boxes", "centres"])
@given(predicted=st.integers(0, 30), true=st.integers(0, 20), seed=st.integers(0, 2**32 - 1))
def test_one_pass_counts_what_matching_at_each_threshold_finds(
    rule: Rule, predicted: int, true: int, seed: int
) -> None:
    sample = crowd(predicted, true, seed, side=40)
    thresholds = np.array([0.05, 0.2, 0.35, 0.6, 0.95])
    curve = find_matches([sample], rule).count(thresholds).curve()
    for k, threshold in enumerate(thresholds):
        kept, found = pairs_at(sample, rule, threshold)
        reaching = sample.predicted.score >= np.float32(threshold)
        assert len(set(kept)) == len(set(found)) == len(kept)
        assert (sample.predicted.label[kept] == sample.label[found]).all()
        assert reaching[kept].all()
        assert curve.tp[k] == len(kept)
        assert curve.tp[k] + curve.fp[k] == reaching.sum()
        assert curve.tp[k] + curve.fn[k] == true


@pytest.mark.parametrize("rule", [Rule(0.3), Rule(radius=9.0)], ids=["boxes", "centres"])
def test_places_and_classes_add_up_to_the_whole(rule: Rule) -> None:
    samples = [crowd(40, 25, seed) for seed in range(3)] + [crowd(0, 0, 0)]
    matches = find_matches(samples, rule)
    whole = matches.count().curve()
    assert matches.count().matched.shape == (4, len(whole))
    blocks = in_blocks(matches, samples, side=4).count()
    assert blocks.matched.shape == (64, len(whole))
    assert (blocks.predicted.sum(axis=1) > 0).sum() > 30
    by_class = [matches.count(label=label).curve() for label in range(2)]
    for name in ("tp", "fp", "fn"):
        assert (getattr(blocks.curve(), name) == getattr(whole, name)).all()
        assert (sum(getattr(one, name) for one in by_class) == getattr(whole, name)).all()
    alone = [find_matches([s], rule).count() for s in samples]
    assert (matches.count().matched == np.concatenate([one.matched for one in alone])).all()


def test_figures_of_a_curve() -> None:
    truth = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    found = boxes_of(truth[[0, 0, 1]] + 1, np.array([0.9, 0.5, 0.32]))
    sample = Comparison("one", found, truth, np.zeros(3, np.int64))
    curve = find_matches([sample], Rule(0.5)).count().curve()
    at = curve.at(0.32)
    assert (at.true_positives, at.false_positives, at.false_negatives) == (2, 1, 1)
    assert at.precision == at.recall == at.f_score == pytest.approx(2 / 3)
    assert curve.best() == curve.at(0.06)
    assert curve.at(0.34).true_positives == 1
    assert curve.at(0.92).precision == curve.at(0.92).f_score == 0
    with pytest.raises(ValueError, match=r"nearest is 0\.32"):
        curve.at(0.325)


def test_average_precision_is_that_of_the_definition() -> None:
    """Three classes, the third neither there nor found; the second is found but not there."""
    samples = [without_ties(crowd(30, 20, seed), seed) for seed in range(4)]
    samples = [
        Comparison(s.name, s.predicted, s.xyxy[s.label == 0], s.label[s.label == 0])
        for s in samples
    ]
    said = average_precision(samples, classes=3)
    assert said.ap50 == pytest.approx(slow_ap(samples, 0.5, 0), abs=1e-6)
    assert said.ap75 == pytest.approx(slow_ap(samples, 0.75, 0), abs=1e-6)
    every = [slow_ap(samples, iou, 0) for iou in np.linspace(0.5, 0.95, 10)]
    assert said.ap == pytest.approx(np.mean(every), abs=1e-6)
    assert said.class_ap50[0] == pytest.approx(said.ap50)
    assert said.class_ap50[1:] == (None, None)
    assert said.small == said.ap
    assert said.medium is said.large is None


def test_crowded_samples_are_judged_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's limit of 100 an image does not apply; cutting into pieces changes nothing."""
    corner = np.stack(np.meshgrid(np.arange(20), np.arange(12)), axis=-1).reshape(-1, 2) * 20.0
    truth = np.hstack([corner, corner + 12])
    exact = Comparison("grid", boxes_of(truth, np.full(240, 0.5)), truth, np.zeros(240, np.int64))
    assert average_precision([exact], classes=1).ap == pytest.approx(1)
    samples = [without_ties(crowd(300, 200, seed, side=900), seed) for seed in range(2)]
    whole = average_precision(samples, classes=2)
    monkeypatch.setattr("scenesweep.model.evaluate.coco._PIECE", 60)
    pieces = average_precision(samples, classes=2)
    assert whole.ap50 is not None
    assert 0.05 < whole.ap50 < 0.95
    assert pieces.ap50 == pytest.approx(whole.ap50, abs=1e-6)
    assert pieces.class_ap50 == pytest.approx(whole.class_ap50, abs=1e-6)
    nothing = Comparison("none", Boxes.none(), truth[:0], np.zeros(0, np.int64))
    assert average_precision([nothing], classes=1).ap is None
    missed = Comparison("missed", Boxes.none(), truth, np.zeros(240, np.int64))
    assert average_precision([missed], classes=1).ap50 == 0


def test_intervals_cover_what_they_estimate() -> None:
    """Of 200 sets of 60 chips drawn from one world, about 95 % of the intervals hold its F."""
    rng = np.random.default_rng(1)
    thresholds = np.array([0.2, 0.4])
    covered = 0
    for seed in range(200):
        true = rng.poisson(12, 60)
        share = rng.beta(8, 4, (60, 1))  # some chips are harder
        hits = rng.binomial(true[:, None], share * [1.0, 0.8])
        found = hits + rng.poisson([6.0, 1.0], (60, 2))
        interval = bootstrap(Counts(thresholds, hits, found, true), 0.2, resamples=300, seed=seed).f
        expected = 2 * 12 * (8 / 12) / (12 + 12 * (8 / 12) + 6)
        covered += interval.low <= expected <= interval.high
    assert 180 <= covered <= 199


def test_equal_chips_leave_no_doubt() -> None:
    one = find_matches([crowd(40, 25, 3)], Rule(0.3)).count()
    same = Counts(
        one.threshold, *(np.repeat(c, 20, axis=0) for c in (one.matched, one.predicted, one.true))
    )
    drawn = bootstrap(same, 0.2)
    best = one.curve().best()
    assert drawn.f.low == drawn.f.high == pytest.approx(one.curve().at(0.2).f_score)
    assert drawn.best_threshold.low == drawn.best_threshold.high == best.threshold
    mixed = find_matches([crowd(12, 9, seed) for seed in range(20)], Rule(0.3)).count()
    assert bootstrap(mixed, 0.2) == bootstrap(mixed, 0.2)
    assert bootstrap(mixed, 0.2) != bootstrap(mixed, 0.2, seed=1)


def test_counting_errors() -> None:
    counts = Counts(
        np.array([0.5]), np.zeros((3, 1), np.int64), np.array([[7], [3], [5]]), np.array([5, 6, 5])
    )
    errors = count_errors(counts, 0.5)
    assert errors.mean_absolute == pytest.approx(5 / 3)
    assert errors.bias == pytest.approx(-1 / 3)
    assert errors.relative == pytest.approx(-1 / 16)
    assert errors.samples == ((7, 5), (3, 6), (5, 5))


def painted(*, points: bool = False) -> LabelledChips:
    chips, boxes = zip(*(paint_squares(64, 64, largest=12, seed=s) for s in range(4)), strict=True)
    return LabelledChips(
        tuple(f"chip {i}" for i in range(4)),
        np.stack(chips),
        tuple(b.astype(np.float32) for b in boxes),
        tuple(np.zeros(len(b), np.int64) for b in boxes),
        points,
    )


def test_a_detector_is_judged_on_chips() -> None:
    data = painted()
    samples = compare_chips(SquareDetector(), data)
    assert [s.name for s in samples] == list(data.names)
    assert [len(s.predicted) for s in samples] == [len(b) for b in data.boxes]
    curve = match_chips(SquareDetector(), data, iou=1.0)
    assert (curve.tp == data.objects).all()
    assert (curve.f == 1).all()
    assert (match_chips(SquareDetector(), painted(points=True), radius_px=0.1).f == 1).all()
    with pytest.raises(ValueError, match="radius_px"):
        match_chips(SquareDetector(), painted(points=True))


def test_a_verdict_says_what_its_parts_say() -> None:
    samples = [crowd(30, 20, seed) for seed in range(5)]
    boxes = evaluate_comparisons(samples, Rule(0.3), classes=("a", "b"), threshold=0.25)
    assert boxes.own.threshold == 0.25
    assert boxes.own == find_matches(samples, Rule(0.3)).count(np.array([0.25])).curve().best()
    assert boxes.best.f_score == max(boxes.curve.f)
    assert boxes.average == average_precision(samples, classes=2)
    assert boxes.own_rmse is None
    assert sum(c.own.true_positives for c in boxes.classes) == boxes.own.true_positives
    assert boxes.units == 5
    centres = evaluate_comparisons(
        samples, Rule(radius=5.0), classes=("a", "b"), threshold=0.25, scenes=True
    )
    assert centres.average is None
    assert centres.curve.threshold[0] == 0.25
    assert centres.own_rmse is not None
    assert 0 < centres.own_rmse <= 5
    assert centres.units > 5


def test_each_class_gets_the_threshold_of_its_goal() -> None:
    """Class 0 is right from 0.6 on, class 1 from 0.3 on; below, everything is wrong."""
    truth = np.array([[x, 0.0, x + 8, 8] for x in range(0, 200, 20)])
    far = truth + np.array([0.0, 500, 0, 500])
    score = np.linspace(0.61, 0.9, 10), np.linspace(0.31, 0.9, 10)
    right = [boxes_of(truth, s, label) for label, s in enumerate(score)]
    wrong = [boxes_of(far, s - 0.25, label) for label, s in enumerate(score)]
    every = Boxes.join(right[0], *right[1:], *wrong)
    labels = np.repeat([0, 1], len(truth))
    comparison = Comparison("a", every, np.vstack([truth, truth]), labels)
    classes = ("a", "b", "c")
    matches = find_matches([comparison], Rule(0.5))

    def f(thresholds: Thresholds) -> float:
        return evaluate_comparisons(
            [comparison],
            Rule(0.5),
            classes=classes,
            threshold=thresholds.score_threshold,
            class_thresholds=thresholds.by_class,
        ).own.f_score

    best = choose_thresholds(matches, classes, Goal())
    by_class = {name: best.by_class.get(name, best.score_threshold) for name in classes}
    for label, name in enumerate(classes[:2]):
        curve = matches.count(label=label).curve()
        assert by_class[name] == curve.best().threshold
    assert by_class["c"] == matches.count().curve().best().threshold
    assert f(best) > f(Thresholds(by_class["a"])) > f(Thresholds(0.06))
    for label, name in enumerate(classes[:2]):
        curve = matches.count(label=label).curve()
        precise = choose_thresholds(matches, classes, Goal("precision", 0.95))
        chosen = curve.at(precise.by_class.get(name, precise.score_threshold))
        assert chosen.precision >= 0.95
        assert (curve.precision[curve.threshold < chosen.threshold] < 0.95).all()
        complete = choose_thresholds(matches, classes, Goal("recall", 0.8))
        chosen = curve.at(complete.by_class.get(name, complete.score_threshold))
        assert chosen.recall >= 0.8
        assert (curve.recall[curve.threshold > chosen.threshold] < 0.8).all()


def test_a_goal_out_of_reach_says_how_far_it_goes() -> None:
    truth = np.array([[0.0, 0, 8, 8], [20, 0, 28, 8]])
    comparison = Comparison("a", boxes_of(truth[:1], np.array([0.7])), truth, np.zeros(2, np.int64))
    matches = find_matches([comparison], Rule(0.5))
    with pytest.raises(ModelError, match=r"^tree: expected a recall of at least 0.9, .* 0\.500$"):
        choose_thresholds(matches, ("tree",), Goal("recall", 0.9))
    none = find_matches([replace(comparison, label=np.ones(2, np.int64))], Rule(0.5))
    with pytest.raises(ModelError, match="expected correct detections"):
        choose_thresholds(none, ("tree", "bush"), Goal())


def test_figures_at_thresholds_of_classes_are_those_of_the_boxes_above_them() -> None:
    comparisons = [crowd(30, 20, seed) for seed in range(6)]
    rule, classes = Rule(0.3), ("a", "b")
    both = evaluate_comparisons(
        comparisons, rule, classes=classes, threshold=0.2, class_thresholds={"b": 0.6}
    )
    first, second = (find_matches(comparisons, rule).count(label=label).curve() for label in (0, 1))
    one, other = first.at(0.2), second.at(0.6)
    assert both.own.true_positives == one.true_positives + other.true_positives
    assert both.own.false_positives == one.false_positives + other.false_positives
    assert [c.own for c in both.classes] == [one, other]
    predicted = sum(p for p, _ in both.count.samples)
    assert predicted == both.own.true_positives + both.own.false_positives
    plain = evaluate_comparisons(comparisons, rule, classes=classes, threshold=0.2)
    assert both.best == plain.best
    assert plain.own.threshold == 0.2
    assert plain.resampled.best_threshold == both.resampled.best_threshold


def test_a_threshold_is_written_beside_the_same_weights(tmp_path: Path) -> None:
    model = open_model("naip-trees")
    path = tmp_path / "chosen.safetensors"
    chosen = noted(with_threshold(model.card, Thresholds(0.44)), validation={"f_score": 0.5})
    written = with_card(model, chosen)
    path.write_bytes(written.content)
    again = open_model(str(path))
    assert again == written
    starts = [8 + int.from_bytes(one.content[:8], "little") for one in (model, again)]
    assert again.content[starts[1] :] == model.content[starts[0] :]
    assert starts[1] % 8 == 0
    one, other = safetensors.torch.load(model.content), safetensors.torch.load(again.content)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    wanted = model.card.inference.model_copy(update={"score_threshold": 0.44})
    training = model.card.training | {"validation": {"f_score": 0.5}}
    assert again.card == model.card.model_copy(update={"inference": wanted, "training": training})
