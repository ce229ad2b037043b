"""Calibrate scores: which share of the detections with a score is correct.

`calibrate` fits a map from score to this share for each class, and `reliability` compares the
shares that a map promises with those that are found. A map must be judged on other chips than
those that it was fitted to: `cross_validate` fits a map for each group of chips, to all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from scenesweep.model.card import Calibration, ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.evaluate.matches import Matches

BINS = 15
"""Bins of `reliability`: as many as in Guo et al. 2017."""
FOLDS = 10
_FEWEST = 40
"""With fewer detections, the share of correct ones has a standard error of 0.08 and more."""
_KNOTS = 20
_DIGITS = 4
_LEAST = 1e-4  # scores and probabilities keep this distance from 0 and 1

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Probabilities of detections and the shares that are correct, in B bins of equal width.

    `edges` is (B + 1,) from 0 to 1. `detections`, `probability` and `correct` are (B,): number,
    mean probability and share of correct ones, the last two NaN in an empty bin. `error` is the
    expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks",
    equation 3): the mean of |probability - correct|, weighted by `detections`; NaN without any.
    `by_chance` is the error that exactly right probabilities would have on so few detections, in
    the normal approximation.
    """

    edges: Floats
    detections: NDArray[np.int64]
    probability: Floats
    correct: Floats
    error: float
    by_chance: float


@dataclass(frozen=True, slots=True)
class CalibrationScores:
    """How well probabilities agree with what was found.

    `published` is about the detections at the thresholds of the card, `every` about all that were
    evaluated. `folds` is the number of groups of chips in a cross-validation, 0 without one.
    """

    published: Reliability
    every: Reliability
    folds: int = 0


def fit_calibration(score: NDArray[np.floating], matched: NDArray[np.bool_]) -> Calibration:
    """Fit a map from the score (N,) of detections to the share of correct ones, `matched` (N,).

    It is beta calibration (Kull, Silva Filho & Flach 2017, "Beta calibration: a well-founded and
    easily implemented improvement on logistic calibration for binary classifiers", equation 6):

        logit(probability) = a ln(score) - b ln(1 - score) + c,   a >= 0, b >= 0

    with the highest likelihood. Instead of 1 and 0, the targets are those of Platt 1999, so that
    the fit ends where all detections are correct or wrong. The card gets the map at equally
    spaced scores; no probability there is exactly 0 or 1.

    Raises:
        ModelError: when there are fewer than 40 detections.
    """
    if len(score) < _FEWEST:
        raise ModelError(
            f"expected at least {_FEWEST} detections to calibrate scores, got {len(score)}"
        )
    right, terms = matched.sum(), _terms(score)
    target = np.where(matched, (right + 1) / (right + 2), 1 / (len(score) - right + 2))

    def loss(weights: Floats) -> tuple[float, Floats]:
        logit = terms @ weights
        value = (np.logaddexp(0, logit) - target * logit).mean()
        return float(value), terms.T @ (expit(logit) - target) / len(score)

    bounds = [(0, None), (0, None), (None, None)]
    weights = minimize(loss, [1.0, 1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds).x
    low, high = float(score.min()), float(score.max())
    knots = np.unique(np.linspace(low, high, _KNOTS).round(_DIGITS))
    probability = np.clip(expit(_terms(knots) @ weights), _LEAST, 1 - _LEAST).round(_DIGITS)
    return Calibration(score=tuple(knots.tolist()), probability=tuple(probability.tolist()))


def _terms(score: NDArray[np.floating]) -> Floats:
    """Return ln(score), -ln(1 - score) and 1 as columns (N, 3)."""
    inside = np.clip(score.astype(np.float64), _LEAST, 1 - _LEAST)
    return np.stack([np.log(inside), -np.log1p(-inside), np.ones(len(inside))], axis=1)


def calibrate(matches: Matches, classes: Sequence[str]) -> dict[str, Calibration]:
    """Fit a map for each class; a class with too few detections gets that of all together.

    Raises:
        ModelError: when there are too few detections of all classes together.
    """
    of_all = fit_calibration(matches.score, matches.matched)
    maps = {}
    for label, name in enumerate(classes):
        mine = matches.label == label
        enough = mine.sum() >= _FEWEST
        maps[name] = (
            fit_calibration(matches.score[mine], matches.matched[mine]) if enough else of_all
        )
    return maps


def score_calibration(matches: Matches, card: ModelCard) -> CalibrationScores | None:
    """Judge the calibration of a card on labelled chips; None when it has none of these classes.

    The chips must be others than those that the calibration was fitted to.
    """
    probability = card.probability(matches.score, matches.label)
    return None if np.isnan(probability).all() else _scores(matches, card, probability, 0)


def cross_validate(matches: Matches, card: ModelCard) -> CalibrationScores:
    """Judge `calibrate`: each detection gets the probability of a map fitted without its group.

    The groups are runs of neighbouring chips, `FOLDS` of them, or as many as there are chips.

    Raises:
        ModelError: when there are fewer than two chips, or too few detections in the others.
    """
    folds = min(FOLDS, matches.units)
    if folds < 2:
        raise ModelError(f"expected at least two chips to calibrate scores, got {matches.units}")
    probability = np.full(len(matches.score), np.nan)
    fold = matches.unit * folds // matches.units
    for number in range(folds):
        held_out = fold == number
        maps = calibrate(_without(matches, held_out), card.classes)
        fitted = card.model_copy(update={"calibration": maps})
        probability[held_out] = fitted.probability(matches.score[held_out], matches.label[held_out])
    return _scores(matches, card, probability, folds)


def reliability(
    probability: Floats, matched: NDArray[np.bool_], *, bins: int = BINS
) -> Reliability:
    """Compare the probability (N,) of detections with the share of correct ones, `matched` (N,)."""
    edges = np.linspace(0, 1, bins + 1)
    number = np.minimum((probability * bins).astype(np.int64), bins - 1)
    count = np.bincount(number, minlength=bins)
    total = max(1, len(probability))
    with np.errstate(invalid="ignore"):
        mean = np.bincount(number, probability, bins) / count
        correct = np.bincount(number, matched, bins) / count
    gaps = np.nan_to_num(np.abs(mean - correct)) * count
    spread = np.sqrt(np.bincount(number, probability * (1 - probability), bins))
    by_chance = float(np.sqrt(2 / np.pi) * spread.sum() / total)
    error = float(gaps.sum() / total) if count.any() else float("nan")
    return Reliability(edges, count, mean, correct, error, by_chance)


def _without(matches: Matches, left_out: NDArray[np.bool_]) -> Matches:
    kept = ~left_out
    return replace(
        matches,
        unit=matches.unit[kept],
        score=matches.score[kept],
        label=matches.label[kept],
        matched=matches.matched[kept],
    )


def _scores(
    matches: Matches, card: ModelCard, probability: Floats, folds: int
) -> CalibrationScores:
    threshold = card.inference.score_threshold
    least = np.array([card.class_thresholds.get(n, threshold) for n in card.classes], np.float32)
    known = ~np.isnan(probability)
    published = known & (matches.score >= least[matches.label])
    return CalibrationScores(
        reliability(probability[published], matches.matched[published]),
        reliability(probability[known], matches.matched[known]),
        folds,
    )
