"""The formats that detections are written in besides GeoParquet: one writer each, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scenesweep.pipeline.publish.formats.coco import write_coco
from scenesweep.pipeline.publish.formats.layer import Layer, SceneImage
from scenesweep.pipeline.publish.formats.vector import write_flatgeobuf, write_geojson, write_gpkg

__all__ = ["FORMATS", "Format", "Layer", "SceneImage"]


@dataclass(frozen=True, slots=True)
class Format:
    """How a format is written, and what can be said of all its files.

    `geographic` formats hold no pixel coordinates. QGIS finds the style of a `styled` one beside
    it, under the same name with the suffix .qml.
    """

    suffix: str
    write: Callable[[Layer, Path], None]
    geographic: bool = True
    styled: bool = True


FORMATS = {
    "geojson": Format(".geojson", write_geojson),
    "flatgeobuf": Format(".fgb", write_flatgeobuf),
    "gpkg": Format(".gpkg", write_gpkg),
    "coco": Format(".json", write_coco, geographic=False, styled=False),
}
"""By the name that `publish.formats` has for it."""
