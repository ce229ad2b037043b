"""Find scenes: in files, lists, files of single bands, and STAC."""

from scenesweep.pipeline.sources.choice import Choice, Named, Search, parse_bands
from scenesweep.pipeline.sources.files import expand
from scenesweep.pipeline.sources.find import find_scenes
from scenesweep.pipeline.sources.ids import check_ids

__all__ = ["Choice", "Named", "Search", "check_ids", "expand", "find_scenes", "parse_bands"]
