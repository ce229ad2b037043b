"""The detections that a format's writer takes: a `Layer`."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

PALETTE = (
    *("#ffd60a", "#22d3ee", "#ff7ad9", "#8dfc5b", "#ff9142"),
    *("#b9a3ff", "#ffffff", "#ff6161", "#3ef0b4", "#6ea8ff"),
)
"""Colours of the classes, bright on imagery; with more classes they repeat from the first."""


@dataclass(frozen=True, slots=True)
class SceneImage:
    """A scene as an image of COCO: boxes in pixels belong to it. Sizes are in pixels."""

    scene_id: str
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Layer:
    """Rows of the published table, of one scene or of many.

    `classes` are all classes of the model, detected or not. `images` are the scenes that the
    rows may come from.
    """

    name: str
    table: pa.Table
    classes: tuple[str, ...]
    images: tuple[SceneImage, ...]
