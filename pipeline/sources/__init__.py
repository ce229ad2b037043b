"""Where scenes come from: files, lists, bands in files of their own, STAC in all its forms."""

from scenesweep.pipeline.sources.choice import Choice, Named, Search, parse_bands
from scenesweep.pipeline.sources.files import expand
from scenesweep.pipeline.sources.find import find_scenes
from scenesweep.pipeline.sources.ids import check_ids

__all__ = ["Choice", "Named", "Search", "check_ids", "expand", "find_scenes", "parse_bands"]
