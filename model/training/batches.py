"""Batches of training chips: their order, the part of each worker, and statistics."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from mmap import mmap
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.losses.truth import Truth
from scenesweep.model.training.augment import Augmenter, Example, chip_seed
from scenesweep.model.training.colour import Colour

MOST_LOADERS = 8
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


class Batch(NamedTuple):
    """B chips to train on: pixels (B, bands, C, C) uint8, their boxes, and changes of colour.

    A tuple, because torch pins tuples.
    """

    pixels: Tensor
    truth: Truth
    colour: Colour


def rank_and_world() -> tuple[int, int]:
    """Return this worker's rank and the number of workers; (0, 1) without torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def sum_over_workers(values: Tensor) -> Tensor:
    """Add up a tensor over all workers, in place."""
    if rank_and_world()[1] > 1:
        torch.distributed.all_reduce(values)
    return values


def from_first_worker(values: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first worker, in place."""
    if rank_and_world()[1] > 1:
        for value in values:
            same = value.contiguous()  # weights are channels-last
            torch.distributed.broadcast(same, src=0)
            value.copy_(same)


def epoch_chips(chips: LabelledChips, *, empty: float | None, seed: int) -> NDArray[np.int64]:
    """Return the indices of the chips of one epoch, in ascending order.

    All chips with objects, and `empty` times as many without (rounded), drawn by the seed; all
    chips if `empty` is None or there are not so many. The number is the same for every seed.
    """
    has_objects = np.array([len(boxes) > 0 for boxes in chips.boxes], bool)
    without = np.flatnonzero(~has_objects)
    wanted = len(without) if empty is None else round(empty * int(has_objects.sum()))
    if wanted < len(without):
        without = np.random.default_rng(seed).choice(without, wanted, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(has_objects), without]))


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
    """The chips of all epochs: the item (epoch, chip) is augmented with a seed of its own.

    A copy in another process opens memory-mapped chips again. Chips in memory are copied.
    """

    def __init__(self, chips: LabelledChips, augment: Augmenter, *, seed: int) -> None:
        self._chips, self._augment, self._seed = chips, augment, seed

    def __len__(self) -> int:
        return len(self._chips)

    def __getitem__(self, item: tuple[int, int]) -> Example:
        epoch, index = item
        chips = self._chips
        return self._augment(
            chips.chips[index],
            chips.boxes[index],
            chips.labels[index],
            seed=chip_seed(self._seed, epoch, index),
        )

    def __getstate__(self) -> dict[str, Any]:
        state, pixels = dict(self.__dict__), self._chips.chips
        if isinstance(pixels, np.memmap) and _is_complete(pixels):
            state["_file"] = pixels.filename, pixels.offset, pixels.shape
            state["_chips"] = replace(self._chips, chips=np.empty((len(pixels), 0), np.uint8))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_file" in state:
            path, offset, shape = state.pop("_file")
            pixels = np.memmap(path, np.uint8, "r", offset, shape)
            state["_chips"] = replace(state["_chips"], chips=pixels)
        self.__dict__.update(state)


class Loader:
    """Makes the batches of each epoch, in `processes` other processes or, with 0, in this one.

    The processes stay from epoch to epoch. They are not forked from this process, which may hold
    a GPU and the threads of Ray: a lock that another thread holds would stay locked in the copy.
    They start from a server that has imported this module, so only the first one imports torch.
    """

    def __init__(self, chips: AugmentedChips, *, processes: int, pin: bool) -> None:
        self._order: list[list[tuple[int, int]]] = []
        self._loader: DataLoader[Example] = DataLoader(
            chips,
            batch_sampler=self._order,
            collate_fn=collate,
            num_workers=processes,
            pin_memory=pin,
            persistent_workers=processes > 0,
            multiprocessing_context=_context() if processes else None,
            generator=torch.Generator(),  # of its own: the loader must not change other draws
        )

    def epoch(self, number: int, parts: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Give the batches of an epoch; `parts` has the indices of the chips of each."""
        self._order[:] = [[(number, index) for index in part.tolist()] for part in parts]
        return cast(Iterator[Batch], iter(self._loader))


def loader_processes(device: torch.device) -> int:
    """Return how many other processes should make batches.

    None for a CPU, because training uses all cores. For a GPU, one for each CPU that this process
    was given, except one, up to 8.
    """
    return min(MOST_LOADERS, given_cpus() - 1) if device.type == "cuda" else 0


def given_cpus() -> int:
    """Return how many CPUs this process may use, at least 1.

    The smallest of: torch's threads (`--threads`, or the CPUs of a worker on Ray), the CPUs that
    the scheduler allows, and the limit of the container.
    """
    limits = [torch.get_num_threads(), len(os.sched_getaffinity(0))]
    with suppress(OSError, ValueError):  # not Linux's cgroup v2, or no limit ("max")
        quota, period = _CPU_LIMIT.read_text(encoding="ascii").split()
        limits.append(int(quota) // int(period))
    return max(1, min(limits))


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


def collate(examples: list[Example]) -> Batch:
    """Make a batch of examples."""
    return Batch(
        torch.stack([example.pixels for example in examples]),
        Truth.pad([(example.boxes, example.labels) for example in examples]),
        Colour.stack([example.colour for example in examples]),
    )


def _is_complete(pixels: np.memmap[Any, Any]) -> bool:
    """Return whether an array is all of a mapped file; a part of one has that file's offset."""
    base: object = pixels.base
    return isinstance(base, mmap)


def _context() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
