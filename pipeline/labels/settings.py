"""How labels are read and put onto chips."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scenesweep.model.architecture import Frozen
from scenesweep.pipeline.raster.gdal import DRIVERS

Format = Literal["auto", "coco", "csv", "points", "vector"]


class LabelSettings(Frozen):
    """What a label file is, and which of its objects a chip is given.

    A box belongs to every chip in which at least `min_visible` of its area lies; a point to
    every chip in which it lies.
    """

    format: Format = "auto"
    """`auto`: by suffix and content. `csv` is DeepForest's form (image_path, xmin, ymin, xmax,
    ymax, label, or geometry as WKT), `points` is image, x, y; `vector` any file with points or
    polygons on the ground."""
    box_m: float | None = Field(None, gt=0)
    """Side in metres of the square drawn round a point. Empty: one pixel of the raster, which
    is enough to judge by centres but not to train on."""
    class_column: str | None = None
    """Column of CSV and vector files with the class. Empty: class_name, class, label or category,
    and where none is there, the only class of the card."""
    layer: str | None = None
    """Of a file with several layers."""
    min_side_px: float = Field(2.0, ge=0)
    """A box with a shorter side, in pixels of the card's ground sample distance, is left out:
    whole, or in the chip that cuts it. Not of squares round points."""
    min_visible: float = Field(0.3, gt=0, le=1)
    clip: bool = True
    """Cut boxes at the edges of raster and chip. Squares round points are never cut."""
    chip_px: int | None = Field(None, ge=64, le=8192)
    """Empty: the card's, or less where every raster is smaller than that."""
    drivers: tuple[str, ...] = DRIVERS
    """Formats of rasters that are opened."""
