"""Which rasters and classes labels are read for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scenesweep.pipeline.labels.names import find_name, index_names
from scenesweep.pipeline.scene import Scene


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """The rasters and classes whose labels are read.

    `names` maps file names to indices of `scenes`. `other_images` has the file names of further
    images: labels of these are not wrong, and are not used.
    """

    scenes: tuple[Scene, ...]
    classes: tuple[str, ...]
    names: Mapping[str, int]
    other_images: Mapping[str, int] = field(default_factory=dict)

    def find(self, name: str) -> int:
        """Return the index of the raster with this image name, or -1."""
        return find_name(self.names, name)

    def is_other_image(self, name: str) -> bool:
        """Say whether this is the name of an image that exists but was not requested."""
        return find_name(self.other_images, name) >= 0


def request_for(
    scenes: Sequence[Scene], classes: tuple[str, ...], *, others: Sequence[str] = ()
) -> LabelRequest:
    """Make a request; `others` are the paths of images that were not requested.

    Raises:
        LabelError: when two rasters have the same file name.
    """
    names = index_names([scene.href for scene in scenes])
    return LabelRequest(tuple(scenes), classes, names, index_names(others))
