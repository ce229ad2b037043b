"""The valid pixels of a scene, as planning sees them: a sample about every 16 px."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scenesweep.pipeline.raster.pixels import open_scene
from scenesweep.pipeline.raster.sample import sampled_share
from scenesweep.pipeline.raster.survey import Survey
from scenesweep.pipeline.scene import Scene

_STEP_PX = 16
_SAMPLES, _MASK_BYTES = 64_000_000, 400_000_000

Spans = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True, slots=True)
class Mask:
    """A decimated mask: `valid` is (rows, columns) bool samples of `scene`.

    A mask that is not `exact` has samples that nobody looked at: they count as valid.
    """

    valid: NDArray[np.bool_]
    scene: Scene
    exact: bool = True

    @classmethod
    def of(cls, scene: Scene, survey: Survey | None = None) -> Mask:
        """Survey a scene: see `pipeline.raster.survey` for what that may cost."""
        # GDAL reads the masks of all bands to make one, hence the limit on their bytes
        most = min(_SAMPLES, _MASK_BYTES / len(scene.bands))
        step = max(_STEP_PX, math.ceil(math.sqrt(scene.width * scene.height / most)))
        shape = math.ceil(scene.height / step), math.ceil(scene.width / step)
        survey = survey or Survey()
        with open_scene(scene, survey=survey) as dataset:
            valid = dataset.dataset_mask(out_shape=shape) > 0
        return cls(valid, scene, survey.exact)

    @property
    def step(self) -> tuple[float, float]:
        """Scene pixels per sample, along columns and rows."""
        rows, columns = self.valid.shape
        return self.scene.width / columns, self.scene.height / rows

    def spans(self, low: NDArray[np.floating], high: NDArray[np.floating], axis: int) -> Spans:
        """Return the samples under spans of scene pixels along an axis, one sample wider."""
        count, step = self.valid.shape[1 - axis], self.step[axis]
        first = np.floor(low / step).astype(np.intp) - 1
        last = np.ceil(high / step).astype(np.intp) + 1
        return np.clip(first, 0, count), np.clip(last, 0, count)

    def without(self, boxes: NDArray[np.float64]) -> Mask:
        """Return a mask in which the samples under boxes (M, 4) of scene pixels are not valid."""
        valid = self.valid.copy()
        left, right = self.spans(boxes[:, 0], boxes[:, 2], 0)
        top, bottom = self.spans(boxes[:, 1], boxes[:, 3], 1)
        for x0, y0, x1, y1 in zip(left, top, right, bottom, strict=True):
            valid[y0:y1, x0:x1] = False
        return replace(self, valid=valid)


def valid_share(scene: Scene) -> float:
    """Return the share of valid pixels, estimated from the decimated mask or from some blocks."""
    if not scene.masked:
        return 1.0
    mask = Mask.of(scene)
    return float(mask.valid.mean()) if mask.exact else sampled_share(scene)
