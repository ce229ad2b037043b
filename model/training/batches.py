"""Batches of training chips: their order, the part of each worker, and statistics."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.training.augment import Augmenter, Example, chip_seed

Batch = tuple[Tensor, list[tuple[Tensor, Tensor]]]
_MOST_LOADERS = 8


def rank_and_world() -> tuple[int, int]:
    """Return this worker's rank and the number of workers; (0, 1) without torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def worker_batches(
    count: int, *, batch: int, seed: int, rank: int = 0, world: int = 1
) -> list[NDArray[np.int64]]:
    """Shuffle `count` chips, divide them into batches and return one worker's part of each.

    All workers together have the same batches as a single worker. `batch` is a multiple of
    `world`. The last batch may be smaller; chips of the first batch fill it up to a multiple of
    `world`.
    """
    order = np.random.default_rng(seed).permutation(count)
    missing = -count % world
    order = np.concatenate([order, np.resize(order, missing)])
    return [order[start : start + batch][rank::world] for start in range(0, len(order), batch)]


class AugmentedChips(Dataset[Example]):
    """The chips of one epoch, each augmented with a seed of its own."""

    def __init__(self, chips: LabelledChips, augment: Augmenter, *, seed: int, epoch: int) -> None:
        self._chips, self._augment = chips, augment
        self._seed, self._epoch = seed, epoch

    def __len__(self) -> int:
        return len(self._chips)

    def __getitem__(self, index: int) -> Example:
        chips = self._chips
        return self._augment(
            chips.chips[index],
            chips.boxes[index],
            chips.labels[index],
            seed=chip_seed(self._seed, self._epoch, index),
        )


def batches(
    chips: AugmentedChips, parts: Sequence[NDArray[np.int64]], device: torch.device
) -> DataLoader[Example]:
    """Return a loader of batches; `parts` has the indices of the chips of each.

    A batch is pixels (B, bands, C, C) float32 in 0..255 and, for each chip, boxes (T, 4) and
    labels (T,). For a GPU, other processes make the batches. For a CPU there are none, because
    training uses all cores.
    """
    on_gpu = device.type == "cuda"
    loaders = min(_MOST_LOADERS, max(0, (os.cpu_count() or 1) - 1)) if on_gpu else 0
    return DataLoader(
        chips,
        batch_sampler=[part.tolist() for part in parts],
        collate_fn=_collate,
        num_workers=loaders,
        pin_memory=on_gpu,
        generator=torch.Generator(),  # of its own: the loader must not change the network's draws
    )


def band_statistics(chips: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per band of chips (N, bands, S, S), over 255.

    They are computed from histograms, chip by chip, so `chips` may be larger than memory.
    """
    counts = np.zeros((chips.shape[1], 256), np.int64)
    for chip in chips:
        for band, pixels in enumerate(chip):
            counts[band] += np.bincount(pixels.ravel(), minlength=256)
    values, total = np.arange(256), counts.sum(axis=1)
    mean = counts @ values / total
    std = np.sqrt(np.maximum(0, counts @ values**2 / total - mean**2))
    return tuple(np.round(mean / 255, 4).tolist()), tuple(np.round(std / 255, 4).tolist())


def class_counts(chips: LabelledChips, *, classes: int) -> tuple[int, ...]:
    """Count the objects of each class."""
    labels = np.concatenate([np.zeros(0, np.int64), *chips.labels])
    return tuple(np.bincount(labels, minlength=classes).tolist())


def _collate(examples: list[Example]) -> Batch:
    pixels = torch.stack([example.pixels for example in examples])
    return pixels, [(example.boxes, example.labels) for example in examples]
