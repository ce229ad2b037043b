"""What is asked of a label file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scenesweep.pipeline.labels.names import find_name, index_names
from scenesweep.pipeline.scene import Scene


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """The rasters whose labels are wanted, and the classes.

    `names` and `elsewhere` map file names to indices: of `scenes`, and of further images that
    labels may speak of without being wrong.
    """

    scenes: tuple[Scene, ...]
    classes: tuple[str, ...]
    names: Mapping[str, int]
    elsewhere: Mapping[str, int] = field(default_factory=dict)

    def find(self, name: str) -> int:
        """Return the index of the raster that an image's name means, or -1."""
        return find_name(self.names, name)

    def is_elsewhere(self, name: str) -> bool:
        """Say whether a name means an image that exists but was not asked for."""
        return find_name(self.elsewhere, name) >= 0


def request_for(
    scenes: Sequence[Scene], classes: tuple[str, ...], *, others: Sequence[str] = ()
) -> LabelRequest:
    """Return what is wanted; `others` are the paths of images not asked for.

    Raises:
        LabelError: naming two rasters of one file name.
    """
    names = index_names([scene.href for scene in scenes])
    return LabelRequest(tuple(scenes), classes, names, index_names(others))
