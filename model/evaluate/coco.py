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
from scenesweep.model.evaluate.sample import Sample

_PIECE = 2000
"""Boxes of a piece: COCO compares all boxes of an image with each other."""


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """COCO's figures (cocodataset.org, "Detection evaluation"): None where nothing was to find.

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


def average_precision(samples: Sequence[Sample], *, classes: int) -> AveragePrecision:
    """Compute average precision over samples, without a limit on detections per sample.

    COCO's own limit of 100 would cut dense chips off.
    """
    pieces = [piece for sample in samples for piece in _pieces(sample)]
    metric = _metric(most=max((len(piece.found) for piece in pieces), default=0))
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
    """Read AP at IoU 0.5 of each class out of the precisions (IoU, recall, class, area, limit)."""
    precision: Tensor = figures["precision"][0, :, :, 0, -1]
    by_class = {
        int(label): _or_none(precision[:, column].mean())
        for column, label in enumerate(figures["classes"].reshape(-1).tolist())
    }
    return tuple(by_class.get(label) for label in range(classes))


def _or_none(value: Tensor) -> float | None:
    return None if value < 0 else float(value)  # torchmetrics says -1


def _predicted(sample: Sample) -> dict[str, Tensor]:
    return _tensors(sample.found.xyxy, sample.found.label) | {
        "scores": torch.from_numpy(sample.found.score.astype(np.float32))
    }


def _true(sample: Sample) -> dict[str, Tensor]:
    return _tensors(sample.xyxy, sample.label)


def _tensors(xyxy: NDArray[np.floating], label: NDArray[np.integer]) -> dict[str, Tensor]:
    return {
        "boxes": torch.from_numpy(xyxy.astype(np.float64)),
        "labels": torch.from_numpy(label.astype(np.int64)),
    }


def _pieces(sample: Sample) -> Iterator[Sample]:
    """Cut a crowded sample where no prediction touches an object: no match is lost."""
    found, true = len(sample.found), len(sample.label)
    if found + true <= _PIECE:
        yield sample
        return
    i, j, _ = overlaps(sample.found.xyxy, sample.xyxy)
    edges = coo_array((np.ones(len(i), np.bool_), (i, found + j)), shape=(found + true,) * 2)
    group = connected_components(edges, directed=False)[1]
    piece = (np.bincount(group).cumsum()[group] - 1) // _PIECE
    for number in np.unique(piece):
        rows, truths = (np.flatnonzero(part == number) for part in (piece[:found], piece[found:]))
        yield Sample(
            sample.name, sample.found.take(rows), sample.xyxy[truths], sample.label[truths]
        )
