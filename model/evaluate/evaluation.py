"""All figures of an evaluation as one value, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.evaluate.coco import AveragePrecision, average_precision
from scenesweep.model.evaluate.comparison import Comparison, Rule
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


@dataclass(frozen=True, slots=True)
class CountErrors:
    """Errors of the number of objects: predicted minus true, for each chip or scene.

    `mean_absolute` and `bias` are means over chips or scenes. `relative` is the error of the total
    as a share of all objects, or None without objects. `samples` holds (predicted, true) of each.
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
    """The figures of an evaluation.

    `own` is at the threshold in use, `best` at the threshold of `curve` with the highest F-score.
    `own_rmse` and `best_rmse` are root mean square distances of matched centres; they are None
    when boxes were matched, or nothing was. `units` is the number of chips or blocks of ground
    that `resampled` was drawn from. `average` is None when centres were matched.
    """

    curve: ThresholdCurve
    own: Scores
    best: Scores
    own_rmse: float | None
    best_rmse: float | None
    classes: tuple[ClassScores, ...]
    count: CountErrors
    resampled: Resampled
    units: int
    average: AveragePrecision | None


def evaluate_comparisons(
    comparisons: Sequence[Comparison],
    rule: Rule,
    *,
    classes: Sequence[str],
    threshold: float,
    class_thresholds: Mapping[str, float] | None = None,
    scenes: bool = False,
) -> Evaluation:
    """Evaluate comparisons by a rule; `threshold` is the one in use.

    Classes in `class_thresholds` have a higher one of their own, which `own`, its interval and the
    count errors respect. `curve` and `best` are at one threshold for all classes.

    With `scenes`, the comparisons are published scenes. They have no detections below `threshold`,
    so only higher thresholds are tried, and intervals are computed over blocks of ground. Average
    precision is computed only when the rule matches boxes.
    """
    matches = find_matches(comparisons, rule)
    steps = THRESHOLDS[threshold < THRESHOLDS] if scenes else THRESHOLDS
    of_class = dict(class_thresholds or {})
    thresholds = np.unique([*steps, threshold, *of_class.values()])
    counts = matches.count(thresholds)
    used = [above(comparison, classes, of_class) for comparison in comparisons]
    own = find_matches(used, rule) if of_class else matches
    curve = counts.curve()
    best = curve.best()
    resampled = in_blocks(matches, comparisons).count(thresholds) if scenes else counts
    own_resampled = (in_blocks(own, used) if scenes else own).count(thresholds)
    return Evaluation(
        curve,
        own.count(thresholds).curve().at(threshold),
        best,
        _rmse(used, rule, threshold),
        _rmse(comparisons, rule, best.threshold),
        tuple(
            _of_class(matches, thresholds, (label, name), of_class.get(name, threshold))
            for label, name in enumerate(classes)
        ),
        count_errors(own.count(thresholds), threshold),
        replace(bootstrap(resampled, threshold), f=bootstrap(own_resampled, threshold).f),
        _occupied(resampled) if scenes else len(comparisons),
        average_precision(comparisons, classes=len(classes)) if rule.radius is None else None,
    )


def above(
    comparison: Comparison, classes: Sequence[str], class_thresholds: Mapping[str, float]
) -> Comparison:
    """Drop the predictions of a comparison that are below the threshold of their class."""
    least = np.array([class_thresholds.get(name, 0.0) for name in classes], np.float32)
    boxes = comparison.predicted
    return replace(comparison, predicted=boxes.take(boxes.score >= least[boxes.label]))


def count_errors(counts: Counts, threshold: float) -> CountErrors:
    """Compare the number of predictions at a threshold with the number of objects."""
    predicted = counts.predicted[:, index_of(counts.threshold, threshold)]
    errors = predicted - counts.true
    objects = int(counts.true.sum())
    return CountErrors(
        float(np.abs(errors).mean()),
        float(errors.mean()),
        float(errors.sum() / objects) if objects else None,
        tuple(zip(predicted.tolist(), counts.true.tolist(), strict=True)),
    )


def _occupied(counts: Counts) -> int:
    """Return the number of units with an object or a prediction."""
    return int(((counts.true > 0) | (counts.predicted[:, 0] > 0)).sum())


def figures(evaluation: Evaluation, names: Sequence[str], *, own: str = "own") -> dict[str, Any]:
    """Return an evaluation as a JSON document.

    `names` are those of the chips or scenes. `own` is the key of the figures at the threshold in
    use.
    """
    return {
        own: _scores(evaluation.own) | {"rmse": evaluation.own_rmse},
        "best": _scores(evaluation.best) | {"rmse": evaluation.best_rmse},
        "bootstrap": asdict(evaluation.resampled) | {"level": 0.95, "places": evaluation.units},
        "classes": {
            c.name: {own: _scores(c.own), "best": _scores(c.best)} for c in evaluation.classes
        },
        "average_precision": _average(evaluation),
        "count_error": _count(evaluation.count, names),
        "curve": _curve(evaluation.curve),
    }


def _average(evaluation: Evaluation) -> dict[str, Any] | None:
    if evaluation.average is None:
        return None
    values = asdict(evaluation.average)
    by_class = zip((c.name for c in evaluation.classes), values.pop("class_ap50"), strict=True)
    return values | {"class_ap50": dict(by_class)}


def _count(count: CountErrors, names: Sequence[str]) -> dict[str, Any]:
    pairs = zip(names, count.samples, strict=True)
    return {
        "mean_absolute": count.mean_absolute,
        "bias": count.bias,
        "relative": count.relative,
        "samples": [
            {"name": n, "predicted": predicted, "true": true} for n, (predicted, true) in pairs
        ],
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


def _rmse(comparisons: Sequence[Comparison], rule: Rule, threshold: float) -> float | None:
    if rule.radius is None:
        return None
    squares: list[NDArray[np.float64]] = []
    for comparison in comparisons:
        predicted, true = pairs_at(comparison, rule, threshold)
        difference = comparison.predicted.centres()[predicted] - comparison.centres()[true]
        squares.append((difference**2).sum(axis=1))
    every = np.concatenate(squares) if squares else np.zeros(0)
    return float(np.sqrt(every.mean())) if len(every) else None
