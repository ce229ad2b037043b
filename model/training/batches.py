"""Feed chips to training: their order, each worker's share of it, and their statistics."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scenesweep.model.samples import Samples
from scenesweep.model.training.augment import Augmenter, Example, sample_seed

Batch = tuple[Tensor, list[tuple[Tensor, Tensor]]]
_LOADERS_AT_MOST = 8


def worker_place() -> tuple[int, int]:
    """Return this worker's rank and the number of workers; 0 of 1 outside torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def shares(
    count: int, *, batch: int, seed: int, rank: int = 0, world: int = 1
) -> list[NDArray[np.int64]]:
    """Shuffle `count` samples, cut them into batches, and return one worker's part of each.

    Together the workers see the batches of a single one. `batch` is a multiple of `world`; the
    last batch is smaller, and filled up from the first until every worker has as many.
    """
    order = np.random.default_rng(seed).permutation(count)
    missing = -count % world
    order = np.concatenate([order, np.resize(order, missing)])
    return [order[start : start + batch][rank::world] for start in range(0, len(order), batch)]


class VariedChips(Dataset[Example]):
    """The chips of one epoch, each varied by its own seed."""

    def __init__(self, samples: Samples, augment: Augmenter, *, seed: int, epoch: int) -> None:
        self._samples, self._augment = samples, augment
        self._seed, self._epoch = seed, epoch

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        samples = self._samples
        return self._augment(
            samples.chips[index],
            samples.boxes[index],
            samples.labels[index],
            seed=sample_seed(self._seed, self._epoch, index),
        )


def batches(
    chips: VariedChips, parts: Sequence[NDArray[np.int64]], device: torch.device
) -> DataLoader[Example]:
    """Return a loader of the batches whose rows are `parts`.

    A batch is pixels (B, bands, C, C) float32 in 0..255 and, for each chip, boxes (T, 4) with
    labels (T,). Beside a GPU, other processes make them; a CPU is busy with training itself.
    """
    on_gpu = device.type == "cuda"
    loaders = min(_LOADERS_AT_MOST, max(0, (os.cpu_count() or 1) - 1)) if on_gpu else 0
    return DataLoader(
        chips,
        batch_sampler=[part.tolist() for part in parts],
        collate_fn=_collate,
        num_workers=loaders,
        pin_memory=on_gpu,
        generator=torch.Generator(),  # its own, so that the network's draws do not depend on it
    )


def band_statistics(chips: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per band of chips (N, bands, S, S), over 255.

    They are made from histograms, chip by chip: `chips` may be larger than memory.
    """
    counts = np.zeros((chips.shape[1], 256), np.int64)
    for chip in chips:
        for band, pixels in enumerate(chip):
            counts[band] += np.bincount(pixels.ravel(), minlength=256)
    values, total = np.arange(256), counts.sum(axis=1)
    mean = counts @ values / total
    std = np.sqrt(np.maximum(0, counts @ values**2 / total - mean**2))
    return tuple(np.round(mean / 255, 4).tolist()), tuple(np.round(std / 255, 4).tolist())


def class_counts(samples: Samples, *, classes: int) -> tuple[int, ...]:
    """Count the objects of each class."""
    labels = np.concatenate([np.zeros(0, np.int64), *samples.labels])
    return tuple(np.bincount(labels, minlength=classes).tolist())


def _collate(examples: list[Example]) -> Batch:
    pixels = torch.stack([example.pixels for example in examples])
    return pixels, [(example.boxes, example.labels) for example in examples]
