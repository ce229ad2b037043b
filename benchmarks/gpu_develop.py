"""Measure a GPU that stretches and resamples source pixels itself, beside one that gets chips."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.figures import Figure
from benchmarks.gpu_detector import calibrated, windows_rate
from benchmarks.gpu_timing import Bench, noise_chips
from scenesweep.model.card import ModelCard
from scenesweep.model.inference.develop import develop, developed_here, stage
from scenesweep.model.inference.source_windows import Recipe, SourceWindows, Taps
from scenesweep.model.inference.windows import Windows


def developing(bench: Bench) -> list[Figure]:
    """16-bit imagery of twice the model's GSD: from source pixels, and from finished chips."""
    figures = []
    for card in bench.cards():
        source = half_scale(bench, card)
        chips = Windows(developed_here(source), source.starts, source.shape)
        detector = calibrated(bench, card, chips.chips()[: bench.batch_of(card)], 150)
        rates = [windows_rate(bench, detector, windows) for windows in (source, chips)]
        seconds = _seconds(bench, source)
        what = f"{card.name}: 16 bits, resampled x0.5"
        figures += [
            Figure(f"{what}, from source pixels", rates[0], "chips/s"),
            Figure(f"{what}, from source pixels / from chips", rates[0] / rates[1], ""),
            Figure(f"{what}: a shard of {len(source)} chips", 1000 * seconds, "ms"),
            Figure(f"{what}: share of the time", seconds * rates[0] / len(source), ""),
        ]
    return figures


def half_scale(bench: Bench, card: ModelCard) -> SourceWindows:
    """Return a shard of noise, of uint16 pixels of twice the card's GSD.

    It has 4 x 4 windows (quick: 2 x 2), each with a margin of 1/16 of its side.
    """
    px, across = bench.px(card), 2 if bench.quick else 4
    step = px - px // 8
    side = (across - 1) * step + px
    noise = noise_chips(bench, card, 1)[0].repeat(across, axis=1).repeat(across, axis=2)
    pixels = noise[:, : side // 2, : side // 2].astype(np.uint16) * 16 + 100
    rows, columns = np.divmod(np.arange(across**2), across)
    bands = len(card.bands)
    recipe = Recipe(tuple(range(bands)), ((100.0, 4180.0),) * bands, (128,) * bands)
    corners = np.stack([rows, columns], axis=1) * step
    return SourceWindows(pixels, None, recipe, (_taps(side), _taps(side)), corners, (bands, px, px))


def _taps(side: int) -> Taps:
    """Return the two nearest source pixels of each grid pixel, of half their size."""
    place: NDArray[np.float64] = (np.arange(side) - 0.5) / 2
    low = np.floor(place)
    index = np.stack([low, low + 1], axis=1).clip(0, side // 2 - 1).astype(np.int64)
    return Taps(index, np.stack([1 - (place - low), place - low], axis=1))


@torch.inference_mode()
def _seconds(bench: Bench, windows: SourceWindows) -> float:
    """Return the time of a shard on the device, without its upload."""
    (staged,) = stage([windows])
    memory = np.empty(staged.end, np.uint8)
    staged.write(memory)
    source = staged.source(torch.from_numpy(memory).to(bench.device))
    block = torch.empty(windows.block, dtype=torch.uint8, device=bench.device)
    return bench.seconds(lambda: develop(source, block))
