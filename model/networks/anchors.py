"""Anchors: their positions, and the sizes and shapes that fit a training set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from scenesweep.model.architecture import Architecture
from scenesweep.model.labelled_chips import LabelledChips

_CHIPS_USED = 400
_ROUNDS = 50


@dataclass(frozen=True, slots=True)
class AnchorFit:
    """The architecture with anchors fitted to a training set.

    `before` and `after` are the shares of boxes that have an anchor with an IoU of at least 0.5.
    """

    architecture: Architecture
    before: float
    after: float


class UnroundedAnchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's generator without the rounding of sides to whole pixels."""

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the anchors of a cell round (0, 0): (ratios * scales, 4) xyxy, by ratio."""
        ratios = torch.tensor(aspect_ratios, dtype=torch.float64)[:, None]
        sides = torch.tensor(scales, dtype=torch.float64)
        width, height = (sides / ratios.sqrt()).flatten(), (sides * ratios.sqrt()).flatten()
        anchors = torch.stack([-width, -height, width, height], dim=1) / 2
        return anchors.to(dtype=dtype, device=device)


def generator(architecture: Architecture) -> AnchorGenerator:
    """Return a generator for the levels of an architecture that have anchors."""
    sizes = tuple(architecture.anchor_sizes_px[i] for i in architecture.searched)
    rounded = architecture.conventions == "torchvision"
    kind = AnchorGenerator if rounded else UnroundedAnchors
    return kind(sizes, (architecture.aspect_ratios,) * len(sizes))


def anchors(architecture: Architecture, shape: tuple[int, int]) -> list[Tensor]:
    """Return the anchors for a chip of `shape` (rows, columns), one tensor for each level.

    Each is (cells * anchors per cell, 4) float32 xyxy in chip pixels, cells in row order. Levels
    without anchors are left out.
    """
    first = architecture.levels[0]
    strides = [2 ** (first + i) for i in architecture.searched]
    cells = [(-(-shape[0] // stride), -(-shape[1] // stride)) for stride in strides]
    images = ImageList(torch.zeros(1, 1, *shape), [shape])
    all_levels = generator(architecture)(images, [torch.zeros(1, 1, *n) for n in cells])[0]
    per_cell = architecture.anchors_per_cell
    return list(all_levels.split([rows * columns * per_cell for rows, columns in cells]))


def anchor_recall(architecture: Architecture, chips: LabelledChips, *, iou: float = 0.5) -> float:
    """Return the share of boxes that have an anchor with at least `iou`, on up to 400 chips."""
    all_anchors = torch.cat(anchors(architecture, (chips.chip_px, chips.chip_px)))
    labelled = [boxes for boxes in chips.boxes if len(boxes)]
    step = max(1, len(labelled) // _CHIPS_USED)
    best = [
        box_iou(torch.from_numpy(boxes).float(), all_anchors).amax(dim=1)
        for boxes in labelled[::step]
    ]
    return float((torch.cat(best) >= iou).float().mean()) if best else 0.0


def fit_anchors(architecture: Architecture, chips: LabelledChips) -> AnchorFit:
    """Propose anchor sizes and aspect ratios from the boxes of a training set.

    The numbers of sizes and ratios stay. Sizes are the k-means centres of the logarithms of the
    boxes' square-root areas; small sizes go to fine levels. Ratios are the centres of the
    logarithms of height over width. Of all pairs of old and new sizes and ratios, the result is
    the pair with the highest anchor recall.
    """
    before = anchor_recall(architecture, chips)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *chips.boxes]).astype(np.float64)
    width, height = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3).T
    if not len(boxes):
        return AnchorFit(architecture, before, before)
    per_level = max(map(len, architecture.anchor_sizes_px))
    levels = architecture.searched
    sizes = _centres(np.log(np.sqrt(width * height)), per_level * len(levels))
    ratios = tuple(_centres(np.log(height / width), len(architecture.aspect_ratios)))
    fitted: list[tuple[float, ...]] = [()] * len(architecture.anchor_sizes_px)
    for number, level in enumerate(levels):
        fitted[level] = tuple(sizes[number * per_level : (number + 1) * per_level])
    proposals: list[dict[str, object]] = [
        {"anchor_sizes_px": tuple(fitted)},
        {"aspect_ratios": ratios},
        {"anchor_sizes_px": tuple(fitted), "aspect_ratios": ratios},
    ]
    best = AnchorFit(architecture, before, before)
    for proposal in proposals:
        candidate = architecture.model_copy(update=proposal)
        after = anchor_recall(candidate, chips)
        if after > best.after:
            best = AnchorFit(candidate, before, after)
    return best


def _centres(logs: NDArray[np.float64], count: int) -> list[float]:
    """Return `count` ascending cluster centres of one-dimensional data (Lloyd's algorithm)."""
    centres = np.quantile(logs, (np.arange(count) + 0.5) / count)
    for _ in range(_ROUNDS):
        nearest = np.abs(logs[:, None] - centres).argmin(axis=1)
        members = np.bincount(nearest, minlength=count)
        sums = np.bincount(nearest, weights=logs, minlength=count)
        moved = np.where(members > 0, sums / np.maximum(members, 1), centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    return [round(float(value), 3) for value in np.exp(np.sort(centres))]
