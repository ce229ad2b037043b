"""A private part of torchvision's transforms: which inputs a transform changes.

It has a module of its own because importing torchvision's transforms imports torch's compiler,
which takes seconds. Training needs them, detectors do not.
"""

from __future__ import annotations

from torchvision import tv_tensors
from torchvision.transforms import v2


class ImageTransform(v2.Transform):  # type: ignore[misc]
    """A transform that changes images and leaves everything else as it is, boxes included."""

    _transformed_types = (tv_tensors.Image,)
