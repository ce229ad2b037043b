"""COCO's average precision, computed by faster-coco-eval through torchmetrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from scenesweep.model.errors import needs_extra
from scenesweep.model.evaluate.boxes import overlaps
from scenesweep.model.evaluate.comparison import Comparison

_PIECE = 2000
"""Most boxes in a piece of a comparison. COCO compares all boxes of an image with each other."""


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """COCO's figures (cocodataset.org, "Detection evaluation"); None where there are no objects.

    `ap` is the mean over the IoUs 0.50 to 0.95 and over classes; `small`, `medium` and `large`
    are `ap` of objects of up to 32 x 32, up to 96 x 96 and more pixels. `class_ap50` has one
    figure for each class.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    class_ap50: tuple[float | None, ...]


def average_precision(comparisons: Sequence[Comparison], *, classes: int) -> AveragePrecision:
    """Compute average precision over all comparisons.

    COCO counts at most 100 detections per image. That would ignore most of a dense chip, so here
    there is no limit.
    """
    pieces = [piece for comparison in comparisons for piece in _pieces(comparison)]
    metric = _metric(most=max((len(piece.predicted) for piece in pieces), default=0))
    for piece in pieces:
        metric.update([_predicted(piece)], [_true(piece)])
    figures = metric.compute()
    return AveragePrecision(
        ap=_or_none(figures["map"]),
        ap50=_or_none(figures["map_50"]),
        ap75=_or_none(figures["map_75"]),
        small=_or_none(figures["map_small"]),
        medium=_or_none(figures["map_medium"]),
        large=_or_none(figures["map_large"]),
        class_ap50=_class_ap50(figures, classes),
    )


def _metric(*, most: int) -> Any:
    with needs_extra("train"):
        import faster_coco_eval  # noqa: F401  (torchmetrics needs it)
        from torchmetrics.detection import MeanAveragePrecision  # takes seconds to import

    metric = MeanAveragePrecision(
        class_metrics=True,
        extended_summary=True,
        max_detection_thresholds=[1, 10, max(100, most)],
        backend="faster_coco_eval",
    )
    metric.warn_on_many_detections = False
    return metric


def _class_ap50(figures: dict[str, Any], classes: int) -> tuple[float | None, ...]:
    """Return AP at IoU 0.5 of each class, from the precisions (IoU, recall, class, area, limit)."""
    precision: Tensor = figures["precision"][0, :, :, 0, -1]
    by_class = {
        int(label): _or_none(precision[:, column].mean())
        for column, label in enumerate(figures["classes"].reshape(-1).tolist())
    }
    return tuple(by_class.get(label) for label in range(classes))


def _or_none(value: Tensor) -> float | None:
    return None if value < 0 else float(value)  # torchmetrics returns -1 for no value


def _predicted(comparison: Comparison) -> dict[str, Tensor]:
    return _tensors(comparison.predicted.xyxy, comparison.predicted.label) | {
        "scores": torch.from_numpy(comparison.predicted.score.astype(np.float32))
    }


def _true(comparison: Comparison) -> dict[str, Tensor]:
    return _tensors(comparison.xyxy, comparison.label)


def _tensors(xyxy: NDArray[np.floating], label: NDArray[np.integer]) -> dict[str, Tensor]:
    return {
        "boxes": torch.from_numpy(xyxy.astype(np.float64)),
        "labels": torch.from_numpy(label.astype(np.int64)),
    }


def _pieces(comparison: Comparison) -> Iterator[Comparison]:
    """Divide a comparison of many boxes into smaller ones, without losing a match.

    Boxes that touch, directly or through others, stay together.
    """
    predicted, true = len(comparison.predicted), len(comparison.label)
    if predicted + true <= _PIECE:
        yield comparison
        return
    i, j, _ = overlaps(comparison.predicted.xyxy, comparison.xyxy)
    edges = coo_array(
        (np.ones(len(i), np.bool_), (i, predicted + j)), shape=(predicted + true,) * 2
    )
    group = connected_components(edges, directed=False)[1]
    piece = (np.bincount(group).cumsum()[group] - 1) // _PIECE
    for number in np.unique(piece):
        rows = np.flatnonzero(piece[:predicted] == number)
        truths = np.flatnonzero(piece[predicted:] == number)
        yield Comparison(
            comparison.name,
            comparison.predicted.take(rows),
            comparison.xyxy[truths],
            comparison.label[truths],
        )
