"""Objects over all dates: detections of different dates that are one object are linked."""

from scenesweep.pipeline.results.tracks.objects import Linking
from scenesweep.pipeline.results.tracks.tables import TracksRecord, read_tracks
from scenesweep.pipeline.results.tracks.track import (
    Tracked,
    track,
    tracked_dates,
    untracked_dates,
    usual_looks,
)

__all__ = [
    "Linking",
    "Tracked",
    "TracksRecord",
    "read_tracks",
    "track",
    "tracked_dates",
    "untracked_dates",
    "usual_looks",
]
