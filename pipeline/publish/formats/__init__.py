"""The formats for detections besides GeoParquet, each with its writer, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scenesweep.pipeline.publish.formats.coco import write_coco
from scenesweep.pipeline.publish.formats.geojson import write_geojson
from scenesweep.pipeline.publish.formats.layer import Layer, SceneImage
from scenesweep.pipeline.publish.formats.pmtiles import write_pmtiles
from scenesweep.pipeline.publish.formats.vector import write_flatgeobuf, write_gpkg

__all__ = ["FORMATS", "Format", "Layer", "SceneImage"]


@dataclass(frozen=True, slots=True)
class Format:
    """A format: the suffix of its files and the function that writes one.

    `geographic` formats cannot hold pixel coordinates. A `styled` format has a style for QGIS in
    a file of the same name with the suffix .qml.
    """

    suffix: str
    write: Callable[[Layer, Path], None]
    geographic: bool = True
    styled: bool = True


FORMATS = {
    "geojson": Format(".geojson", write_geojson),
    "flatgeobuf": Format(".fgb", write_flatgeobuf),
    "gpkg": Format(".gpkg", write_gpkg),
    "pmtiles": Format(".pmtiles", write_pmtiles, styled=False),
    "coco": Format(".json", write_coco, geographic=False, styled=False),
}
"""By the name in the setting `publish.formats`."""
