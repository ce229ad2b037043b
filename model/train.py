"""Train a detector on chips in memory, in one process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.card import ModelCard
from model.detector import pick_precision
from model.losses import Losses, LossSettings, detection_losses
from model.retinanet import RetinaNet, anchors, build, normalisation
from model.settings import Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Chips (N, bands, S, S) uint8, and for each its boxes (T, 4) xyxy float32 with labels (T,).

    Boxes may reach over the chip's edges.
    """

    chips: NDArray[np.uint8]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the training log."""

    number: int
    classification_loss: float
    box_loss: float
    seconds: float
    metric: float


def band_statistics(chips: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per band of chips (N, bands, S, S), over 255."""
    flat = chips.swapaxes(0, 1).reshape(chips.shape[1], -1)
    mean = tuple(round(float(band.mean(dtype=np.float64)) / 255, 4) for band in flat)
    std = tuple(round(float(band.std(dtype=np.float64)) / 255, 4) for band in flat)
    return mean, std


def train(
    card: ModelCard,
    data: TrainingSet,
    recipe: Recipe,
    *,
    judge: Callable[[dict[str, Tensor]], float],
    on_epoch: Callable[[Epoch], None],
) -> dict[str, Tensor]:
    """Train `card`'s network from random weights and return the best averaged weights.

    `judge` gives a state_dict its validation metric after every epoch (higher is better).
    """
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build(card).to(memory_format=torch.channels_last).to(device)
    average = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True
    )
    steps = -(-len(data.chips) // recipe.batch)
    optimiser = torch.optim.AdamW(
        network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=steps * recipe.epochs
    )
    step = _Step(card, network, chip_px=data.chips.shape[-1])
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})
    for number in range(1, recipe.epochs + 1):
        started = time.monotonic()
        losses = []
        for batch in _batches(data, recipe, rng):
            optimiser.zero_grad()
            parts = step(*batch)
            parts.total.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            optimiser.step()
            schedule.step()
            average.update_parameters(network)
            losses.append((float(parts.classification.detach()), float(parts.boxes.detach())))
        weights = {k: v.detach().cpu() for k, v in average.module.state_dict().items()}
        metric = judge(weights)
        if metric > best[0]:
            best = (metric, {k: v.clone() for k, v in weights.items()})
        classification, box = np.mean(losses, axis=0)
        on_epoch(
            Epoch(number, float(classification), float(box), time.monotonic() - started, metric)
        )
    return best[1]


class _Step:
    """Forward pass and losses of one batch."""

    def __init__(self, card: ModelCard, network: RetinaNet, *, chip_px: int) -> None:
        self._network = network
        self._device = next(network.parameters()).device
        self._anchors = torch.cat(anchors(card.architecture, chip_px)).to(self._device)
        mean, std = normalisation(card)
        self._mean, self._std = mean.to(self._device), std.to(self._device)
        # Without bfloat16 in the processor, autocast is ten times slower, not faster.
        self._autocast = pick_precision("auto", self._device) == torch.bfloat16

    def __call__(self, chips: NDArray[np.float32], truth: list[tuple[Tensor, Tensor]]) -> Losses:
        self._network.train()
        pixels = torch.from_numpy(chips).to(self._device)
        pixels = ((pixels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            logits, deltas = self._network(pixels)
        truth = [(boxes.to(self._device), labels.to(self._device)) for boxes, labels in truth]
        return detection_losses(
            torch.cat(logits, 1).float(),
            torch.cat(deltas, 1).float(),
            self._anchors,
            truth,
            LossSettings(),
        )


def _batches(
    data: TrainingSet, recipe: Recipe, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], list[tuple[Tensor, Tensor]]]]:
    order = rng.permutation(len(data.chips))
    for start in range(0, len(order), recipe.batch):
        rows = order[start : start + recipe.batch]
        chips, truth = [], []
        for row in rows:
            chip, boxes = turn(data.chips[row], data.boxes[row], quarter=int(rng.integers(8)))
            chips.append(jitter_bands(chip, recipe.band_jitter, rng))
            truth.append((torch.from_numpy(boxes), torch.from_numpy(data.labels[row])))
        yield np.stack(chips), truth


def turn(
    chip: NDArray[np.uint8], boxes: NDArray[np.float32], *, quarter: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Apply one of the eight symmetries of the square to a chip and its boxes.

    `quarter` is 0..7: its bits flip columns, flip rows, and swap the axes, in this order.
    """
    size = chip.shape[-1]
    x0, y0, x1, y1 = boxes.T
    if quarter & 1:
        chip, x0, x1 = chip[:, :, ::-1], size - x1, size - x0
    if quarter & 2:
        chip, y0, y1 = chip[:, ::-1, :], size - y1, size - y0
    if quarter & 4:
        chip, x0, y0, x1, y1 = chip.swapaxes(1, 2), y0, x0, y1, x1
    return chip, np.stack([x0, y0, x1, y1], axis=1)


def jitter_bands(
    chip: NDArray[np.uint8], amount: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Change brightness and contrast, together and of each band, by up to about `amount`."""
    bands = (chip.shape[0], 1, 1)
    gain = rng.normal(1.0, amount / 2) * rng.normal(1.0, amount / 2, bands)
    offset = (rng.normal(0.0, amount / 4) + rng.normal(0.0, amount / 4, bands)) * 255
    mean = chip.mean(axis=(1, 2), keepdims=True)
    return np.clip((chip - mean) * gain + mean + offset, 0, 255).astype(np.float32)
