"""Scores become probabilities: the map ascends, and agrees with what is correct."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from scenesweep.model.card import Calibration, ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.evaluate.calibration import (
    FOLDS,
    calibrate,
    cross_validate,
    fit_calibration,
    reliability,
    score_calibration,
)
from scenesweep.model.evaluate.matches import Matches
from tests.rasters import make_card

TWO = make_card(
    classes=("tree", "bush"),
    inference={"score_threshold": 0.3},
    class_thresholds={"bush": 0.6},
)


def drawn(count: int, seed: int, *, units: int = 40, classes: int = 1) -> Matches:
    """Draw detections of which the share score ** 2 is correct, a third of it for class 1."""
    rng = np.random.default_rng(seed)
    score = rng.uniform(0.05, 1, count).astype(np.float32)
    label = rng.integers(0, classes, count)
    matched = rng.random(count) < score.astype(np.float64) ** 2 / (1 + 2 * label)
    unit = np.sort(rng.integers(0, units, count))
    none = np.zeros(0, np.int64)
    return Matches(unit, score, label, matched, none, none, units)


scores = arrays.arrays(np.float32, st.integers(40, 400), elements=st.floats(0, 1, width=32))


@given(scores, st.integers(0, 2**32 - 1))
def test_a_map_ascends_and_is_a_probability(score: np.ndarray, seed: int) -> None:
    matched = np.random.default_rng(seed).random(len(score)) < 0.5
    fitted = fit_calibration(score, matched)
    assert len(fitted.score) <= 20
    asked = np.sort(np.concatenate([score, np.linspace(0, 1, 50, dtype=np.float32)]))
    probability = fitted.at(asked)
    assert (np.diff(probability) >= 0).all()
    assert ((probability > 0) & (probability < 1)).all()


def test_a_map_is_near_the_true_share() -> None:
    matches = drawn(40_000, seed=1)
    asked = np.linspace(0.1, 0.95, 18)
    fitted = fit_calibration(matches.score, matches.matched)
    np.testing.assert_allclose(fitted.at(asked), asked**2, atol=0.04)


def test_the_order_of_detections_does_not_matter() -> None:
    matches = drawn(500, seed=2)
    turned = np.random.default_rng(0).permutation(500)
    again = fit_calibration(matches.score[turned], matches.matched[turned])
    whole = fit_calibration(matches.score, matches.matched)
    assert again.score == whole.score
    np.testing.assert_allclose(again.probability, whole.probability, atol=2e-4)


def test_each_class_has_its_map_and_a_rare_one_that_of_all() -> None:
    matches = drawn(20_000, seed=3, classes=2)
    maps = calibrate(matches, TWO.classes)
    at = np.array([0.9])
    assert maps["tree"].at(at)[0] == pytest.approx(0.81, abs=0.05)
    assert maps["bush"].at(at)[0] == pytest.approx(0.27, abs=0.05)
    three = calibrate(matches, ("tree", "bush", "rock"))
    assert three["rock"] == fit_calibration(matches.score, matches.matched)


def slow_error(probability: np.ndarray, matched: np.ndarray, bins: int) -> float:
    """Compute the expected calibration error as Guo et al. 2017 write it, bin by bin."""
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        here = (probability >= low) & ((probability < high) | (number == bins - 1))
        if here.any():
            total += here.sum() * abs(probability[here].mean() - matched[here].mean())
    return total / len(probability)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_error_is_that_of_the_paper(bins: int) -> None:
    rng = np.random.default_rng(4)
    probability, matched = rng.random(300), rng.random(300) < 0.4
    told = reliability(probability, matched, bins=bins)
    assert told.error == pytest.approx(slow_error(probability, matched, bins))
    assert told.detections.sum() == 300
    assert reliability(np.ones(5), np.ones(5, bool)).error == 0
    chance = [
        reliability(probability, rng.random(300) < probability, bins=bins) for _ in range(200)
    ]
    assert told.by_chance == pytest.approx(np.mean([one.error for one in chance]), rel=0.15)
    assert np.isnan(reliability(np.zeros(0), np.zeros(0, bool)).error)


def test_a_cross_validation_is_about_detections_at_the_thresholds() -> None:
    matches = drawn(20_000, seed=5, classes=2)
    told = cross_validate(matches, TWO)
    published = matches.score >= np.where(matches.label == 0, np.float32(0.3), np.float32(0.6))
    assert told.folds == FOLDS
    assert told.published.detections.sum() == published.sum()
    assert told.every.detections.sum() == len(matches.score)
    assert told.published.error < 0.03


def test_a_group_does_not_judge_itself() -> None:
    """Of two chips, one has only correct detections and the other none: both maps are wrong."""
    matches = drawn(200, seed=6, units=2)
    opposite = replace(matches, matched=matches.unit == 0)
    assert cross_validate(opposite, make_card()).every.error > 0.9


def test_the_calibration_of_a_card_is_judged() -> None:
    matches = drawn(5_000, seed=7)
    card = make_card()
    assert score_calibration(matches, card) is None
    good = card.model_copy(update={"calibration": calibrate(drawn(5_000, seed=8), card.classes)})
    bad = card.model_copy(
        update={"calibration": {"square": Calibration(score=(0,), probability=(0.9,))}}
    )
    told, other = score_calibration(matches, good), score_calibration(matches, bad)
    assert told is not None
    assert other is not None
    assert told.every.error < 0.04 < 0.3 < other.every.error
    assert told.folds == 0


def test_too_little_is_refused() -> None:
    with pytest.raises(ModelError, match="expected at least 40 detections"):
        calibrate(drawn(39, seed=9), ("square",))
    with pytest.raises(ModelError, match="expected at least two chips"):
        cross_validate(drawn(90, seed=9, units=1), make_card())


def test_probabilities_of_classes_without_calibration_are_unknown() -> None:
    halves = Calibration(score=(0.2, 0.4), probability=(0.5, 0.7))
    card = TWO.model_copy(update={"calibration": {"bush": halves}})
    told = card.probability(np.array([0.1, 0.3, 0.9, 0.3]), np.array([1, 1, 1, 0]))
    np.testing.assert_allclose(told, [0.5, 0.6, 0.7, np.nan])
    assert np.isnan(TWO.probability(np.ones(2), np.zeros(2, np.int64))).all()


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({"score": [0.1, 0.2], "probability": [0.5]}, "as many probabilities as scores"),
        ({"score": [0.2, 0.1], "probability": [0.1, 0.2]}, "score: expected ascending"),
        ({"score": [0.1, 0.2], "probability": [0.3, 0.2]}, "probability: expected ascending"),
        ({"score": [0.1], "probability": [1.5]}, "probability: expected ascending"),
        ({"score": [], "probability": []}, "at least 1"),
    ],
)
def test_a_wrong_calibration_is_refused(calibration: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_card(calibration={"square": calibration})
    with pytest.raises(ValidationError, match="calibration: expected names of classes, got ship"):
        make_card(calibration={"ship": {"score": [0.1], "probability": [0.5]}})


def test_a_card_with_a_calibration_is_read_back() -> None:
    card = make_card(calibration={"square": {"score": [0.1, 0.3], "probability": [0.2, 0.2]}})
    assert ModelCard.model_validate_json(card.model_dump_json()) == card
