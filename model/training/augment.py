"""Augment training chips with torchvision's transforms.v2, for any number of bands.

All random numbers come from a seed made of run, epoch and chip. So the chips are the same for any
number of workers and after a resume.

Flips, scaling and crops run on CPUs, because each chip has its own size and place and boxes must
follow. Colours change on the training device (`model.training.colour`): the work is the same for
each pixel, and chips travel there as uint8, a quarter of the bytes of float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.settings import Augmentation
from scenesweep.model.training.colour import Colour, Colours, band_means


@dataclass(frozen=True, slots=True)
class Example:
    """One chip to train on, before its colours are changed.

    `pixels` is (bands, C, C) uint8, `boxes` (T, 4) float32 xyxy in pixels of it, `labels` (T,)
    int64. `colour` says how the training device changes the pixels.
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    colour: Colour


class Augmenter:
    """Makes an example from a labelled chip and a seed.

    With `points`, boxes are squares around points. They are never cut, and belong to a crop when
    their centre lies in it. Other boxes are cut at the edge of the crop, and dropped when less
    than `min_visible` of their area is left.
    """

    def __init__(
        self, card: ModelCard, settings: Augmentation, *, chip_px: int, points: bool
    ) -> None:
        self.crop_px = settings.crop_px or chip_px
        if self.crop_px % card.stride_px:
            raise ModelError(
                f"training crops: expected a multiple of {card.stride_px} px, got {self.crop_px}; "
                "set augmentation.crop_px"
            )
        self._crops = _scales(settings) or self.crop_px != chip_px
        self._points, self._min_visible = points, settings.min_visible
        self._transforms = v2.Compose(_transforms(card, settings, self.crop_px, self._crops))
        self._colours = Colours(card, settings)

    def __call__(
        self,
        chip: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        *,
        seed: int,
    ) -> Example:
        """Augment one chip (bands, S, S). Equal seeds give equal examples."""
        image = tv_tensors.Image(torch.from_numpy(np.array(chip)))
        framed = tv_tensors.BoundingBoxes(  # no clamping, which would cut boxes too early
            torch.from_numpy(np.array(boxes)),
            format="XYXY",
            canvas_size=chip.shape[-2:],
            clamping_mode=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image, framed = self._transforms(image, framed)
            colour = self._colours.draw()
        pixels, moved = image.as_subclass(Tensor).contiguous(), framed.as_subclass(Tensor)
        given = torch.from_numpy(np.array(labels))
        if not self._crops:
            return Example(pixels, moved, given, colour)
        moved, kept = _visible(moved, self.crop_px, self._points, self._min_visible)
        return Example(pixels, moved[kept], given[kept], colour)


def chip_seed(seed: int, epoch: int, chip: int) -> int:
    """Combine the seed of a run, an epoch and the index of a chip into one seed of 64 bits."""
    entropy = [seed % 2**64, epoch, chip]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


class RandomTranspose(v2.Transform):  # type: ignore[misc]
    """Swap the axes of half of the chips. With both flips: the eight symmetries of the square."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"swap": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params["swap"]:
            return inpt
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            height, width = inpt.canvas_size
            swapped = inpt.as_subclass(Tensor)[:, [1, 0, 3, 2]]
            return tv_tensors.wrap(swapped, like=inpt, canvas_size=(width, height))
        return tv_tensors.wrap(inpt.as_subclass(Tensor).transpose(-1, -2), like=inpt)


class RandomScale(v2.Transform):  # type: ignore[misc]
    """Resize a chip and its boxes by one random factor, and change its aspect by another.

    Both factors are uniform on a logarithmic scale: the first from `smallest` to `largest`, the
    second from 1 / `stretch` to `stretch`. The width is multiplied by the square root of the
    second factor, and the height divided by it.
    """

    def __init__(self, smallest: float, largest: float, stretch: float) -> None:
        super().__init__()
        self._range = float(np.log(smallest)), float(np.log(largest))
        self._stretch = float(np.log(stretch))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self._range
        factor = low + torch.rand(()) * (high - low)
        half = (torch.rand(()) - 0.5) * self._stretch if self._stretch else torch.zeros(())
        height, width = v2.query_size(flat_inputs)
        tall, wide = float(torch.exp(factor - half)), float(torch.exp(factor + half))
        return {"size": [max(1, round(height * tall)), max(1, round(width * wide))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, params["size"], antialias=True)


def _scales(settings: Augmentation) -> bool:
    return settings.scale != (1.0, 1.0) or settings.stretch != 1.0


def _transforms(
    card: ModelCard, settings: Augmentation, crop_px: int, crops: bool
) -> list[v2.Transform]:
    """List the transforms that move pixels and boxes. All work on uint8."""
    means = band_means(card)
    steps: list[v2.Transform] = []
    if settings.turns:
        steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), RandomTranspose()]
    if _scales(settings):
        steps.append(RandomScale(*settings.scale, settings.stretch))
    if crops:
        fill = {tv_tensors.Image: means, "others": 0}
        steps.append(v2.RandomCrop(crop_px, pad_if_needed=True, fill=fill))
    return steps or [v2.Identity()]


def _visible(
    boxes: Tensor, crop_px: int, points: bool, min_visible: float
) -> tuple[Tensor, Tensor]:
    """Return boxes (T, 4) cut at the edges of a crop, and (T,) bool: which belong to it."""
    if points:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        return boxes, ((centres >= 0) & (centres < crop_px)).all(dim=1)
    cut = boxes.clamp(0, crop_px)
    before, after = (boxes[:, 2:] - boxes[:, :2]).prod(1), (cut[:, 2:] - cut[:, :2]).prod(1)
    return cut, (after > 0) & (after >= min_visible * before)
