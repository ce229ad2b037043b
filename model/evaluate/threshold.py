"""Choose score thresholds by an evaluation, and put them into a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.evaluate.curve import Scores, ThresholdCurve
from scenesweep.model.evaluate.matches import Matches


@dataclass(frozen=True, slots=True)
class Goal:
    """What a threshold is chosen for: the best F, or at least `value` of precision or recall."""

    kind: Literal["f", "precision", "recall"] = "f"
    value: float = 0.0

    def __str__(self) -> str:
        return "best F" if self.kind == "f" else f"{self.kind} of at least {self.value:g}"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The detector's score threshold, and the higher ones of some classes."""

    score_threshold: float
    by_class: dict[str, float] = field(default_factory=dict)


def choose_thresholds(matches: Matches, classes: Sequence[str], goal: Goal) -> Thresholds:
    """Choose a threshold for each class. A class without any match gets that of all together.

    Raises:
        ModelError: when no prediction matches an object, or a class does not reach the goal at any
            threshold; it says how much is reached.
    """
    curves = {name: matches.count(label=label).curve() for label, name in enumerate(classes)}
    matched = {name: curve for name, curve in curves.items() if curve.tp.any()}
    if not matched:
        raise ModelError("expected correct detections to choose a threshold by, found none")
    chosen = {name: _choose(curve, goal, name).threshold for name, curve in matched.items()}
    if len(chosen) < len(classes):
        of_all = _choose(matches.count().curve(), goal, "all classes").threshold
        chosen = {name: chosen.get(name, of_all) for name in classes}
    least = min(chosen.values())
    return Thresholds(least, {name: t for name, t in chosen.items() if t > least})


def _choose(curve: ThresholdCurve, goal: Goal, name: str) -> Scores:
    """Return the figures at the chosen threshold.

    For the best F and for a precision it is the lowest threshold that will do, which has the
    highest recall. For a recall it is the highest.
    """
    if goal.kind == "f":
        return curve.best()
    values = curve.precision if goal.kind == "precision" else curve.recall
    reached = np.flatnonzero(values >= goal.value)
    if not len(reached):
        raise ModelError(
            f"{name}: expected a {goal}, the highest at any threshold is {values.max():.3f}"
        )
    return curve.row(int(reached[0] if goal.kind == "precision" else reached[-1]))


def with_threshold(card: ModelCard, thresholds: Thresholds) -> ModelCard:
    """Return the card with other score thresholds."""
    least = {"score_threshold": thresholds.score_threshold}
    return card.model_copy(
        update={
            "inference": card.inference.model_copy(update=least),
            "class_thresholds": thresholds.by_class,
        }
    )
