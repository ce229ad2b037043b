"""Change the colours of training chips: brightness, contrast and missing bands.

The random numbers are drawn with the seed of the chip, on a CPU. The pixels change on the training
device, for all chips of a batch together. Only this step makes float32 of uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scenesweep.model.card import ModelCard
from scenesweep.model.settings import Augmentation


class Colour(NamedTuple):
    """How the bands of a chip change, each (bands, 1, 1) float32; of a batch, (B, bands, 1, 1).

    Contrast changes by `gain`, brightness by `offset`. A band is filled with `fill`, unless that is
    NaN. None means no change. A tuple, because torch pins tuples.
    """

    gain: Tensor | None
    offset: Tensor | None
    fill: Tensor | None

    @classmethod
    def stack(cls, colours: Sequence[Colour]) -> Colour:
        """Collect the changes of the chips of a batch."""
        gains, offsets, fills = (
            [change for change in changes if change is not None]
            for changes in zip(*colours, strict=True)
        )
        return cls(*(torch.stack(part) if part else None for part in (gains, offsets, fills)))

    def to(self, device: torch.device) -> Colour:
        """Copy to a device. From pinned memory, the host does not wait for the copy."""
        return Colour(*(None if v is None else v.to(device, non_blocking=True) for v in self))


class Colours:
    """Draws the changes of chips from torch's default generator.

    With `band_jitter`, gains are drawn from N(1, amount / 2) and offsets from
    N(0, amount / 4 * 255), of all bands together and of each band. With `band_dropout`, each band
    of the card's `missing_bands_ok` is filled with its mean on a share of the chips, as in
    detection on scenes without the band.
    """

    def __init__(self, card: ModelCard, settings: Augmentation) -> None:
        self._bands = len(card.bands)
        self._amount, self._share = settings.band_jitter, settings.band_dropout
        means = band_means(card)
        missing = (card.bands.index(band) for band in card.missing_bands_ok)
        self._fills = {band: float(means[band]) for band in missing}

    def draw(self) -> Colour:
        """Draw the changes of one chip."""
        gain, offset = self._jitter() if self._amount else (None, None)
        return Colour(gain, offset, self._fill() if self._share and self._fills else None)

    def _jitter(self) -> tuple[Tensor, Tensor]:
        amount, bands = self._amount, (self._bands, 1, 1)
        gain = (1 + torch.randn(()) * amount / 2) * (1 + torch.randn(bands) * amount / 2)
        return gain, (torch.randn(()) + torch.randn(bands)) * (amount / 4 * 255)

    def _fill(self) -> Tensor:
        fill = torch.full((self._bands, 1, 1), torch.nan)
        drawn = (torch.rand(len(self._fills)) < self._share).tolist()
        for (band, value), chosen in zip(self._fills.items(), drawn, strict=True):
            if chosen:
                fill[band] = value
        return fill


def change_colours(pixels: Tensor, colour: Colour) -> Tensor:
    """Return pixels (..., bands, H, W) uint8 as float32 in 0..255, with changed colours."""
    pixels = pixels.float()
    if colour.gain is not None and colour.offset is not None:
        mean = pixels.mean(dim=(-2, -1), keepdim=True)
        pixels = (pixels - mean).mul_(colour.gain).add_(mean + colour.offset).clamp_(0, 255)
    if colour.fill is not None:
        pixels = torch.where(colour.fill.isnan(), pixels, colour.fill)
    return pixels


def band_means(card: ModelCard) -> list[int]:
    """Return the mean of each band in 0..255, rounded: the value of missing pixels."""
    return [round(255 * mean) for mean in card.scaling.mean or (0.5,) * len(card.bands)]
