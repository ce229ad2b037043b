"""Settings for reading labels and cutting chips."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scenesweep.model.architecture import Frozen
from scenesweep.pipeline.raster.gdal import DRIVERS

Format = Literal["auto", "coco", "csv", "points", "vector"]


class LabelSettings(Frozen):
    """The format of a label file, and which of its objects belong to a chip.

    A box belongs to every chip in which at least `min_visible` of its area lies, a point to every
    chip in which it lies.
    """

    format: Format = "auto"
    """`auto`: by suffix and content. `csv` is DeepForest's format (image_path, xmin, ymin, xmax,
    ymax, label, or geometry as WKT), `points` is image, x, y; `vector` any file with points or
    polygons on the ground."""
    box_m: float | None = Field(None, gt=0)
    """Side in metres of the square around a point. Empty: one pixel of the raster, which is enough
    to evaluate centres but not for training."""
    class_column: str | None = None
    """Column of CSV and vector files with the class. Empty: class_name, class, label or category;
    without these, the only class of the card."""
    layer: str | None = None
    """Layer to read, of a file with several layers."""
    min_side_px: float = Field(2.0, ge=0)
    """Boxes with a shorter side, in pixels of the card's ground sample distance, are left out. This
    also holds for the part of a box in a chip, but not for squares around points."""
    min_visible: float = Field(0.3, gt=0, le=1)
    clip: bool = True
    """Cut boxes at the edges of raster and chip. Squares around points are never cut."""
    chip_px: int | None = Field(None, ge=64, le=8192)
    """Side of chips. Empty: that of the card, or less if every raster is smaller."""
    drivers: tuple[str, ...] = DRIVERS
    """GDAL drivers with which rasters are opened."""
