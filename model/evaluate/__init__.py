"""Judge detections against truth.

Truth and predictions of one chip or scene are a `Sample`; a `Rule` says when a prediction counts
as an object. `find_matches` settles this once for every prediction, best first; after that the
figures at all thresholds, of classes, of chips and of bootstrap resamples are sums.
"""

from scenesweep.model.evaluate.boxes import match_boxes
from scenesweep.model.evaluate.coco import AveragePrecision, average_precision
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
    evaluate_samples,
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
    PointSample,
    PointScores,
    best_points,
    match_points,
    score_points,
)
from scenesweep.model.evaluate.sample import Rule, Sample, samples_of

__all__ = [
    "THRESHOLDS",
    "AveragePrecision",
    "ClassScores",
    "CountErrors",
    "Counts",
    "Evaluation",
    "Interval",
    "Matches",
    "PointSample",
    "PointScores",
    "Resampled",
    "Rule",
    "Sample",
    "Scores",
    "ThresholdCurve",
    "average_precision",
    "best_points",
    "bootstrap",
    "evaluate_samples",
    "figures",
    "find_matches",
    "in_blocks",
    "match_boxes",
    "match_chips",
    "match_points",
    "pairs_at",
    "samples_of",
    "score_points",
]
