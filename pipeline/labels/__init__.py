"""Read labels of common formats, as objects of rasters and as labelled chips.

    file ------------> LabelRows -----> Objects of each raster -----> LabelledChips
         coco, table,            check                         label_chips
         vector

The chips are the windows of detection: same grid, scale, bands and stretch.
"""

from scenesweep.pipeline.labels.label_chips import ChipPlan, cut_chips, plan_chips
from scenesweep.pipeline.labels.objects import Count, LabelReport, Objects
from scenesweep.pipeline.labels.read import read_chips, read_objects, read_split
from scenesweep.pipeline.labels.settings import LabelSettings
from scenesweep.pipeline.labels.split import Split, split_east
from scenesweep.pipeline.labels.store import open_chips, store_chips

__all__ = [
    "ChipPlan",
    "Count",
    "LabelReport",
    "LabelSettings",
    "Objects",
    "Split",
    "cut_chips",
    "open_chips",
    "plan_chips",
    "read_chips",
    "read_objects",
    "read_split",
    "split_east",
    "store_chips",
]
