"""Choose the chips to review: those with the detections that the model is least sure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.card import ModelCard
from scenesweep.pipeline.geometry.grid import Window
from scenesweep.pipeline.results.review.scenes import SceneBoxes

_STEP_PX = 64
"""Sides of chips are multiples of it, and so of the stride of the usual networks."""
_SHORTEST_PX = 128
_OBJECTS_ALONG = 8
"""Objects of the median size along a side: few enough for a person to check all of them."""


@dataclass(frozen=True, slots=True)
class ReviewChip:
    """A part of a scene that a person looks at. `window` is in pixels of the grid."""

    scene_id: str
    window: Window


def doubt_of(scenes: Sequence[SceneBoxes]) -> list[NDArray[np.float64]]:
    """Return for each scene (N,) how far each detection is from a decision: low is doubtful.

    It is the distance of the probability from 0.5 if all detections have one; else the distance
    of the score from the lowest score that was published.
    """
    if all(np.isfinite(scene.probability).all() for scene in scenes):
        return [np.abs(scene.probability - 0.5) for scene in scenes]
    return [np.abs(scene.score - scene.least) for scene in scenes]


def choose_chips(
    scenes: Sequence[SceneBoxes], most: int, side: int
) -> tuple[list[ReviewChip], dict[str, NDArray[np.bool_]]]:
    """Choose chips around the `most` doubtful detections, and say which detections these are.

    A chip of `side` pixels of the grid is centred on the most doubtful detection that is not yet
    wholly on a chip, and moved inside the scene. Returns the chips, the most doubtful first, and
    by scene (N,) whether each detection is one of the doubtful ones. Ties are broken by the order
    of scenes and of rows, so equal tables give equal chips.
    """
    doubt = doubt_of(scenes)
    of_scene = np.repeat(np.arange(len(scenes)), [len(scene) for scene in scenes])
    of_row = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(scene)) for scene in scenes)])
    order = np.argsort(np.concatenate([np.zeros(0), *doubt]), kind="stable")[:most]
    uncertain = {scene.scene_id: np.zeros(len(scene), np.bool_) for scene in scenes}
    chips: list[ReviewChip] = []
    taken: dict[str, list[Window]] = {scene.scene_id: [] for scene in scenes}
    for number in order.tolist():
        scene, row = scenes[of_scene[number]], int(of_row[number])
        uncertain[scene.scene_id][row] = True
        box = scene.xyxy[row]
        if any(_holds(window, box) for window in taken[scene.scene_id]):
            continue
        window = _around(box, scene.size, side)
        taken[scene.scene_id].append(window)
        chips.append(ReviewChip(scene.scene_id, window))
    return chips, uncertain


def on_chips(scene: SceneBoxes, chips: Sequence[ReviewChip]) -> NDArray[np.bool_]:
    """Say for each detection (N,) of a scene whether it touches one of the chips."""
    touches = np.zeros(len(scene), np.bool_)
    x0, y0, x1, y1 = scene.xyxy.T
    for chip in chips:
        w = chip.window
        if chip.scene_id == scene.scene_id:
            touches |= (x0 < w.right) & (x1 > w.col_off) & (y0 < w.bottom) & (y1 > w.row_off)
    return touches


def chip_side(scenes: Sequence[SceneBoxes], card: ModelCard) -> int:
    """Return the side of chips in pixels: eight objects of median size, within limits.

    It is a multiple of 64 px, at least 128 px, and at most the side of the model's chips.
    """
    sides = [(scene.xyxy[:, 2:] - scene.xyxy[:, :2]).max(axis=1) for scene in scenes if len(scene)]
    if not sides:
        return _SHORTEST_PX
    every = np.concatenate(sides)
    wanted = max(_OBJECTS_ALONG * float(np.median(every)), 1.5 * float(np.quantile(every, 0.95)))
    rounded = -(-int(np.ceil(wanted)) // _STEP_PX) * _STEP_PX
    return min(max(rounded, _SHORTEST_PX), card.chip_px)


def _around(box: NDArray[np.float64], size: tuple[int, int], side: int) -> Window:
    """Return a window with its centre on a box, moved inside the scene; a small scene is whole."""
    spans = []
    for low, high, length in zip(box[:2], box[2:], size, strict=True):
        span = min(side, length)
        start = int(np.floor((low + high) / 2 - span / 2))
        spans.append((min(max(start, 0), length - span), span))
    (left, width), (top, height) = spans
    return Window(left, top, width, height)


def _holds(window: Window, box: NDArray[np.float64]) -> bool:
    """Say whether a box lies wholly in a window."""
    x0, y0, x1, y1 = box.tolist()
    return (
        window.col_off <= x0 and window.row_off <= y0 and x1 <= window.right and y1 <= window.bottom
    )
