"""Look at each chip several times, mirrored, turned or resized, and make one set of boxes of it.

A *view* is `SYMMETRY` or `SYMMETRY@SCALE`, such as `flip-x` or `plain@1.33`. The chip is resized by
the scale first (bilinear with antialiasing, sides rounded to a multiple of the network's stride),
then it is transposed and mirrored. The network finds boxes in each view, with NMS within the view,
and the boxes are moved back into the chip. What happens then is the *rule*:

- `weighted`, weighted box fusion (Solovyev et al. 2021, arXiv:1910.13302, section 3). Take the
  boxes of all views by falling score, then by coordinates and label. Each joins the cluster of its
  class whose fused box it overlaps most, if their IoU is above `nms_iou` (of equal ones the oldest
  cluster); otherwise it begins a new one. The fused box is the mean of the boxes of its cluster,
  weighted by their scores. Its score is the sum of their scores, divided by the number of views,
  or by the number of boxes if that is more: a box that few views see gets a low score. Boxes with
  more than half of `score_threshold` take part, and fused boxes with more than it are kept.
- `highest`: NMS over the boxes of all views in the same order, with `nms_iou`. A score is the
  highest of any view, so more views find more, and also more that is false.

With `class_agnostic`, boxes of all classes are in one group, and a cluster has the class of its
first box. The result does not depend on the order of the views. At most `max_detections_per_chip`
boxes are kept. The merge of windows (`pipeline/detection/merge.py`) then works on them as on
others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from scenesweep.model.boxes import Boxes, DetectorOutput
from scenesweep.model.card import Inference
from scenesweep.model.files.checkpoint import load_network
from scenesweep.model.files.model_file import ModelFile
from scenesweep.model.inference.detector import Detector, Ticket, load_detector
from scenesweep.model.inference.windows import AnyWindows
from scenesweep.model.settings import SYMMETRIES, DetectorSettings, Rule, Views, split_view

_PART = 0.5
"""Share of the score threshold from which a box of one view takes part in a weighted fusion."""


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a chip: resized by `scale`, then transposed, then mirrored."""

    transposed: bool
    mirrored: tuple[bool, bool]
    """Along x, and along y."""
    scale: float

    @classmethod
    def named(cls, name: str) -> View:
        """Return the view of a name that `Views` accepts."""
        symmetry, scale = split_view(name)
        transposed, *mirrored = SYMMETRIES[symmetry]
        return cls(transposed, (mirrored[0], mirrored[1]), scale)

    def of(self, chips: NDArray[np.uint8], stride: int) -> NDArray[np.uint8]:
        """Return chips (N, bands, H, W) in this view."""
        seen = resized(chips, self.scale, stride)
        seen = seen.swapaxes(-1, -2) if self.transposed else seen
        flipped = [axis for axis, flip in zip((-1, -2), self.mirrored, strict=True) if flip]
        return np.ascontiguousarray(np.flip(seen, tuple(flipped)))

    def back(
        self, xyxy: NDArray[np.floating], seen: tuple[int, int], chip: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Move boxes (N, 4) of a view with sides `seen` into chips with sides `chip` (H, W)."""
        moved = xyxy.astype(np.float32)
        for axis, (flip, side) in enumerate(zip(self.mirrored, seen[::-1], strict=True)):
            if flip:
                moved[:, [axis, axis + 2]] = side - moved[:, [axis + 2, axis]]
        if self.transposed:
            moved, seen = moved[:, [1, 0, 3, 2]], seen[::-1]
        x, y = chip[1] / seen[1], chip[0] / seen[0]
        return moved * np.array([x, y, x, y], np.float32)


class ViewsDetector:
    """Runs a detector on several views of each chip. It computes at once, also on a GPU."""

    def __init__(self, detector: Detector, views: Views, inference: Inference) -> None:
        self.card, self._detector = detector.card, detector
        self._views = [View.named(name) for name in views.views]
        self._rule, self._inference = views.views_rule, inference

    @property
    def runs_on(self) -> str:
        """The device and precision in use."""
        return self._detector.runs_on

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        """Detect boxes in chips (N, bands, H, W) uint8; see `Detector.detect`."""
        capped = np.zeros(len(chips), np.bool_)
        found = [Boxes.none()]
        for view in self._views:
            seen = view.of(chips, self.card.stride_px)
            output = self._detector.detect(seen)
            shapes = (seen.shape[-2], seen.shape[-1]), (chips.shape[-2], chips.shape[-1])
            moved = view.back(output.boxes.xyxy, *shapes)
            boxes = output.boxes
            found.append(Boxes(moved, boxes.score, boxes.label, boxes.chip))
            capped |= output.capped
        together = Boxes.join(*found)
        of_chip = [
            combine(
                together.take(together.chip == chip),
                self._rule,
                views=len(self._views),
                inference=self._inference,
            )
            for chip in range(len(chips))
        ]
        most = self._inference.max_detections_per_chip
        capped |= np.array([len(boxes) > most for boxes in of_chip], np.bool_)
        kept = [boxes.take(np.arange(min(most, len(boxes)))) for boxes in of_chip]
        return DetectorOutput(Boxes.join(Boxes.none(), *kept), capped)

    def submit(self, *parts: AnyWindows) -> Ticket:
        """Detect in windows of one shape; see `Detector.submit`."""
        chips = [part.chips() for part in parts]
        return Ticket((), self.detect(chips[0] if len(chips) == 1 else np.concatenate(chips)))

    def collect(self, ticket: Ticket) -> DetectorOutput:
        """Return the boxes of `submit`."""
        return self._detector.collect(ticket)


def load_with_views(
    model: ModelFile, settings: DetectorSettings, views: Views, *, inference: Inference
) -> Detector | ViewsDetector:
    """Make a detector as `load_detector` does, that looks at each chip in these views."""
    if views.is_plain:
        return load_detector(model, settings, inference=inference)
    least = inference.score_threshold * (_PART if views.views_rule == "weighted" else 1.0)
    lower = inference.model_copy(update={"score_threshold": least})
    detector = Detector(load_network(model), model.card, settings, inference=lower)
    return ViewsDetector(detector, views, inference)


def resized(chips: NDArray[np.uint8], scale: float, stride: int) -> NDArray[np.uint8]:
    """Resize chips (N, bands, H, W), to sides that are multiples of `stride`."""
    if scale == 1 or not len(chips):
        return chips
    sides = [max(1, round(side * scale / stride)) * stride for side in chips.shape[-2:]]
    pixels = torch.from_numpy(np.ascontiguousarray(chips, np.float32))
    found = interpolate(pixels, sides, mode="bilinear", antialias=True)
    return np.asarray(found.round_().clamp_(0, 255).numpy(), np.uint8)


def combine(boxes: Boxes, rule: Rule, *, views: int, inference: Inference) -> Boxes:
    """Make one set of boxes from those of several views of one chip, by falling score.

    The module's docstring is the definition. `boxes` are in the frame of the chip.
    """
    ordered = _in_order(boxes)
    if not len(ordered):
        return ordered
    group = np.zeros_like(ordered.label) if inference.class_agnostic else ordered.label
    if rule == "highest":
        return ordered.take(_suppress(ordered.xyxy, group, inference.nms_iou))
    fused = _fuse(ordered, group, views, inference.nms_iou)
    return _in_order(fused.take(fused.score > inference.score_threshold))


def _in_order(boxes: Boxes) -> Boxes:
    x0, y0, x1, y1 = boxes.xyxy.T
    return boxes.take(np.lexsort((boxes.label, y1, x1, y0, x0, -boxes.score)))


def _suppress(
    xyxy: NDArray[np.floating], group: NDArray[np.integer], most: float
) -> NDArray[np.intp]:
    """Return the rows that NMS keeps, in order."""
    left = np.arange(len(xyxy))
    kept = []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(first)
        same = group[left] == group[first]
        left = left[~(same & (_iou(xyxy[first], xyxy[left]) > most))]
    return np.array(kept, np.intp)


def _fuse(ordered: Boxes, group: NDArray[np.integer], views: int, least: float) -> Boxes:
    """Fuse boxes in order; `group` (N,) says which may be in one cluster."""
    count = len(ordered)
    fused = np.zeros((count, 4))
    sums, score, members = np.zeros((count, 4)), np.zeros(count), np.zeros(count, np.int64)
    first: list[int] = []
    for row in range(count):
        box, weight = ordered.xyxy[row].astype(np.float64), float(ordered.score[row])
        overlap = _iou(box, fused[: len(first)]) * (group[first] == group[row])
        best = int(np.argmax(overlap)) if len(first) else 0
        if not len(first) or overlap[best] <= least:
            best = len(first)
            first.append(row)
        sums[best] += weight * box
        score[best] += weight
        members[best] += 1
        fused[best] = sums[best] / score[best]
    clusters = len(first)
    mean = score[:clusters] / np.maximum(views, members[:clusters])
    return Boxes(
        fused[:clusters].astype(np.float32),
        mean.astype(np.float32),
        ordered.label[first],
        ordered.chip[first],
    )


def _iou(box: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the IoU of one box (4,) with others (N, 4); 0 if both have no area."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).astype(np.float64).prod(axis=1)
    area = float((box[2] - box[0]) * (box[3] - box[1]))
    areas = (others[:, 2:] - others[:, :2]).astype(np.float64).prod(axis=1)
    return shared / np.maximum(area + areas - shared, 1e-12)
