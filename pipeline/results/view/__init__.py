"""Show what is published: one self-contained HTML page per scene, and an index with a map.

A page needs no network and works from a folder. It contains the scene's picture as a pyramid of
tiles, and its detections as typed arrays that the page's own script draws and filters.
"""

from scenesweep.pipeline.results.view.index import IndexEntry, make_entry, write_index
from scenesweep.pipeline.results.view.night import NightMap, make_night
from scenesweep.pipeline.results.view.page import PageSettings, write_page
from scenesweep.pipeline.results.view.published import (
    PublishedScene,
    find_published,
    last_results,
    source_of,
)

__all__ = [
    "IndexEntry",
    "NightMap",
    "PageSettings",
    "PublishedScene",
    "find_published",
    "last_results",
    "make_entry",
    "make_night",
    "source_of",
    "write_index",
    "write_page",
]
