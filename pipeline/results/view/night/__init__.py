"""The map of all scenes on the index: their ground, and their detections in one frame."""

from scenesweep.pipeline.results.view.night.map import NightMap, make_night

__all__ = ["NightMap", "make_night"]
