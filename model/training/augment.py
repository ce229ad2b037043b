"""Augment training chips with torchvision's transforms.v2, for any number of bands.

All random numbers come from a seed made of run, epoch and chip. So the chips are the same for any
number of workers and after a resume.
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
from scenesweep.model.private_apis.torchvision_transforms import ImageTransform
from scenesweep.model.settings import Augmentation


@dataclass(frozen=True, slots=True)
class Example:
    """One chip to train on.

    `pixels` is (bands, C, C) float32 in 0..255, `boxes` (T, 4) float32 xyxy in pixels of it, and
    `labels` (T,) int64.
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor


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
        pixels, moved = image.as_subclass(Tensor).contiguous(), framed.as_subclass(Tensor)
        given = torch.from_numpy(np.array(labels))
        if not self._crops:
            return Example(pixels, moved, given)
        moved, kept = _visible(moved, self.crop_px, self._points, self._min_visible)
        return Example(pixels, moved[kept], given[kept])


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


class BandJitter(ImageTransform):
    """Change brightness and contrast by about `amount`, of all bands together and of each band.

    Gains are drawn from N(1, amount / 2) and offsets from N(0, amount / 4 * 255). Values stay in
    0..255.
    """

    def __init__(self, amount: float) -> None:
        super().__init__()
        self._amount = amount

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        bands = (flat_inputs[0].shape[-3], 1, 1)
        gain = (1 + torch.randn(()) * self._amount / 2) * (
            1 + torch.randn(bands) * self._amount / 2
        )
        offset = (torch.randn(()) + torch.randn(bands)) * (self._amount / 4 * 255)
        return {"gain": gain, "offset": offset}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        pixels = inpt.as_subclass(Tensor)
        mean = pixels.mean(dim=(-2, -1), keepdim=True)
        changed = (pixels - mean).mul_(params["gain"]).add_(mean + params["offset"]).clamp_(0, 255)
        return tv_tensors.wrap(changed, like=inpt)


class BandDropout(ImageTransform):
    """Fill each of some bands with one value, on a share of the chips.

    `fills` maps the index of a band in the chip to its value. That is the band's mean, as in
    detection on scenes without the band.
    """

    def __init__(self, share: float, fills: dict[int, float]) -> None:
        super().__init__()
        self._share, self._fills = share, fills

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        drawn = torch.rand(len(self._fills)) < self._share
        return {"blank": [band for band, chosen in zip(self._fills, drawn, strict=True) if chosen]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params["blank"]:
            return inpt
        pixels = inpt.as_subclass(Tensor).clone()
        for band in params["blank"]:
            pixels[band] = self._fills[band]
        return tv_tensors.wrap(pixels, like=inpt)


def _scales(settings: Augmentation) -> bool:
    return settings.scale != (1.0, 1.0) or settings.stretch != 1.0


def _transforms(
    card: ModelCard, settings: Augmentation, crop_px: int, crops: bool
) -> list[v2.Transform]:
    """List the transforms of a chip. Those on integers come first because they are cheaper."""
    means = [round(255 * m) for m in card.scaling.mean or (0.5,) * len(card.bands)]
    steps: list[v2.Transform] = []
    if settings.turns:
        steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), RandomTranspose()]
    if _scales(settings):
        steps.append(RandomScale(*settings.scale, settings.stretch))
    if crops:
        fill = {tv_tensors.Image: means, "others": 0}
        steps.append(v2.RandomCrop(crop_px, pad_if_needed=True, fill=fill))
    steps.append(v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}))
    if settings.band_jitter:
        steps.append(BandJitter(settings.band_jitter))
    fills = {
        card.bands.index(band): float(means[card.bands.index(band)])
        for band in card.missing_bands_ok
    }
    if settings.band_dropout and fills:
        steps.append(BandDropout(settings.band_dropout, fills))
    return steps


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
