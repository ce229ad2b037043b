"""Evaluate predicted boxes against true boxes.

A `Comparison` holds the predictions and the true boxes of one chip or scene. A `Rule` says when a
prediction matches an object. `find_matches` decides this once for each prediction, in descending
order of score. All figures (per threshold, class, chip and bootstrap resample) are then sums.
"""

from scenesweep.model.evaluate.boxes import match_boxes
from scenesweep.model.evaluate.coco import AveragePrecision, average_precision
from scenesweep.model.evaluate.comparison import Comparison, Rule, compare_chips
from scenesweep.model.evaluate.curve import (
    THRESHOLDS,
    Counts,
    Interval,
    Resampled,
    Scores,
    ThresholdCurve,
    bootstrap,
)
from scenesweep.model.evaluate.evaluation import (
    ClassScores,
    CountErrors,
    Evaluation,
    evaluate_comparisons,
    figures,
)
from scenesweep.model.evaluate.matches import (
    Matches,
    find_matches,
    in_blocks,
    match_chips,
    pairs_at,
)
from scenesweep.model.evaluate.points import (
    PointComparison,
    PointScores,
    best_point_scores,
    match_points,
    score_points,
)

__all__ = [
    "THRESHOLDS",
    "AveragePrecision",
    "ClassScores",
    "Comparison",
    "CountErrors",
    "Counts",
    "Evaluation",
    "Interval",
    "Matches",
    "PointComparison",
    "PointScores",
    "Resampled",
    "Rule",
    "Scores",
    "ThresholdCurve",
    "average_precision",
    "best_point_scores",
    "bootstrap",
    "compare_chips",
    "evaluate_comparisons",
    "figures",
    "find_matches",
    "in_blocks",
    "match_boxes",
    "match_chips",
    "match_points",
    "pairs_at",
    "score_points",
]
