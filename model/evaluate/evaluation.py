"""Everything that is said of a detector after a comparison, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.evaluate.coco import AveragePrecision, average_precision
from scenesweep.model.evaluate.curve import (
    THRESHOLDS,
    Counts,
    Resampled,
    Scores,
    ThresholdCurve,
    bootstrap,
    index_of,
)
from scenesweep.model.evaluate.matches import Matches, find_matches, in_blocks, pairs_at
from scenesweep.model.evaluate.sample import Rule, Sample


@dataclass(frozen=True, slots=True)
class CountErrors:
    """Predicted minus true number of objects, over samples: mean absolute, mean, whole.

    `relative` is the error of the total as a share of the objects, or None without objects.
    `samples` holds (predicted, true) of each.
    """

    mean_absolute: float
    bias: float
    relative: float | None
    samples: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """The figures of one class."""

    name: str
    own: Scores
    best: Scores


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of a comparison.

    `own` is at the threshold in use, `best` at the threshold of `curve` with the highest
    F-score; `own_rmse` and `best_rmse` are root mean square distances of the matched centres,
    None where nothing was matched or boxes were. `places` is what `resampled` drew from.
    `average` is None when objects were judged by their centres.
    """

    curve: ThresholdCurve
    own: Scores
    best: Scores
    own_rmse: float | None
    best_rmse: float | None
    classes: tuple[ClassScores, ...]
    count: CountErrors
    resampled: Resampled
    places: int
    average: AveragePrecision | None


def evaluate_samples(
    samples: Sequence[Sample],
    rule: Rule,
    *,
    classes: Sequence[str],
    threshold: float,
    scenes: bool = False,
) -> Evaluation:
    """Compare samples by a rule; `threshold` is the one in use.

    `scenes` says that the samples are published scenes: nothing scores under `threshold` there,
    so only those above it are tried, and the intervals come from blocks of ground. Average
    precision is computed when the rule is one of boxes.
    """
    matches = find_matches(samples, rule)
    steps = THRESHOLDS[threshold < THRESHOLDS] if scenes else THRESHOLDS
    thresholds = np.unique(np.append(steps, threshold))
    counts = matches.count(thresholds)
    curve = counts.curve()
    best = curve.best()
    drawn = in_blocks(matches, samples).count(thresholds) if scenes else counts
    return Evaluation(
        curve,
        curve.at(threshold),
        best,
        _rmse(samples, rule, threshold),
        _rmse(samples, rule, best.threshold),
        tuple(
            _of_class(matches, thresholds, (label, name), threshold)
            for label, name in enumerate(classes)
        ),
        count_errors(counts, threshold),
        bootstrap(drawn, threshold),
        int(((drawn.true > 0) | (drawn.found[:, 0] > 0)).sum()) if scenes else len(samples),
        average_precision(samples, classes=len(classes)) if rule.radius is None else None,
    )


def count_errors(counts: Counts, threshold: float) -> CountErrors:
    """Compare the number of predictions at a threshold with the number of objects."""
    found = counts.found[:, index_of(counts.threshold, threshold)]
    errors = found - counts.true
    objects = int(counts.true.sum())
    return CountErrors(
        float(np.abs(errors).mean()),
        float(errors.mean()),
        float(errors.sum() / objects) if objects else None,
        tuple(zip(found.tolist(), counts.true.tolist(), strict=True)),
    )


def figures(verdict: Evaluation, names: Sequence[str], *, own: str = "own") -> dict[str, Any]:
    """Return a verdict as a JSON document.

    `names` are the samples'; the figures at the threshold in use come under the key `own`.
    """
    return {
        own: _scores(verdict.own) | {"rmse": verdict.own_rmse},
        "best": _scores(verdict.best) | {"rmse": verdict.best_rmse},
        "bootstrap": asdict(verdict.resampled) | {"level": 0.95, "places": verdict.places},
        "classes": {
            c.name: {own: _scores(c.own), "best": _scores(c.best)} for c in verdict.classes
        },
        "average_precision": _average(verdict),
        "count_error": _count(verdict.count, names),
        "curve": _curve(verdict.curve),
    }


def _average(verdict: Evaluation) -> dict[str, Any] | None:
    if verdict.average is None:
        return None
    values = asdict(verdict.average)
    by_class = zip((c.name for c in verdict.classes), values.pop("class_ap50"), strict=True)
    return values | {"class_ap50": dict(by_class)}


def _count(count: CountErrors, names: Sequence[str]) -> dict[str, Any]:
    pairs = zip(names, count.samples, strict=True)
    return {
        "mean_absolute": count.mean_absolute,
        "bias": count.bias,
        "relative": count.relative,
        "samples": [{"name": n, "predicted": found, "true": true} for n, (found, true) in pairs],
    }


def _curve(curve: ThresholdCurve) -> dict[str, list[float]]:
    names = ("threshold", "tp", "fp", "fn", "precision", "recall", "f")
    return {name: getattr(curve, name).tolist() for name in names}


def _scores(scores: Scores) -> dict[str, float]:
    return asdict(scores) | {
        "precision": scores.precision,
        "recall": scores.recall,
        "f_score": scores.f_score,
    }


def _of_class(
    matches: Matches, thresholds: NDArray[np.float64], which: tuple[int, str], threshold: float
) -> ClassScores:
    label, name = which
    curve = matches.count(thresholds, label=label).curve()
    return ClassScores(name, curve.at(threshold), curve.best())


def _rmse(samples: Sequence[Sample], rule: Rule, threshold: float) -> float | None:
    if rule.radius is None:
        return None
    squares: list[NDArray[np.float64]] = []
    for sample in samples:
        predicted, true = pairs_at(sample, rule, threshold)
        apart = sample.found.centres()[predicted] - sample.centres()[true]
        squares.append((apart**2).sum(axis=1))
    every = np.concatenate(squares) if squares else np.zeros(0)
    return float(np.sqrt(every.mean())) if len(every) else None
