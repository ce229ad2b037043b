"""Labels of every usual form, as objects of rasters and as labelled chips.

    file -> Marks -> Objects of each raster -> Samples
         coco, table, vector    check          cuts

The chips are the windows of detection: the same grid, scale, bands and stretch.
"""

from scenesweep.pipeline.labels.label_chips import Cut, cut_samples, plan_cuts
from scenesweep.pipeline.labels.objects import Count, LabelReport, Objects
from scenesweep.pipeline.labels.read import read_objects, read_samples, read_split
from scenesweep.pipeline.labels.settings import LabelSettings
from scenesweep.pipeline.labels.split import Split, split_east
from scenesweep.pipeline.labels.store import open_samples, store_samples

__all__ = [
    "Count",
    "Cut",
    "LabelReport",
    "LabelSettings",
    "Objects",
    "Split",
    "cut_samples",
    "open_samples",
    "plan_cuts",
    "read_objects",
    "read_samples",
    "read_split",
    "split_east",
    "store_samples",
]
