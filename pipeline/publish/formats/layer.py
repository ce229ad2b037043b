"""Detections on their way into a file of some format."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

PALETTE = (
    *("#ffd60a", "#22d3ee", "#ff7ad9", "#8dfc5b", "#ff9142"),
    *("#b9a3ff", "#ffffff", "#ff6161", "#3ef0b4", "#6ea8ff"),
)
"""Colours of the classes, bright on imagery; more classes begin again from the first."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A scene as COCO names it: the image that boxes in pixels belong to."""

    scene_id: str
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Layer:
    """Rows of the published table, of one scene or of many.

    `classes` are all that the model knows, found or not; `pictures` the scenes that the rows may
    come from.
    """

    name: str
    table: pa.Table
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
