"""Judge detections against truth.

Truth and predictions of one chip or scene are a `Sample`; a `Rule` says when a prediction counts
as an object. `find_matches` settles this once for every prediction, best first; after that the
figures at all thresholds, of classes, of chips and of bootstrap resamples are sums.
"""

from model.evaluate.boxes import match_boxes
from model.evaluate.coco import AveragePrecision, average_precision
from model.evaluate.curve import (
    THRESHOLDS,
    Counts,
    Interval,
    Resampled,
    Scores,
    ThresholdCurve,
    bootstrap,
)
from model.evaluate.matches import Matches, find_matches, in_blocks, judge, pairs_at
from model.evaluate.points import (
    PointSample,
    PointScores,
    best_points,
    match_points,
    score_points,
)
from model.evaluate.sample import Rule, Sample, samples_of
from model.evaluate.verdict import ClassScores, CountErrors, Verdict, figures, weigh

__all__ = [
    "THRESHOLDS",
    "AveragePrecision",
    "ClassScores",
    "CountErrors",
    "Counts",
    "Interval",
    "Matches",
    "PointSample",
    "PointScores",
    "Resampled",
    "Rule",
    "Sample",
    "Scores",
    "ThresholdCurve",
    "Verdict",
    "average_precision",
    "best_points",
    "bootstrap",
    "figures",
    "find_matches",
    "in_blocks",
    "judge",
    "match_boxes",
    "match_points",
    "pairs_at",
    "samples_of",
    "score_points",
    "weigh",
]
