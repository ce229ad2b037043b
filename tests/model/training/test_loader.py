"""Batches made by other processes: the same as here, by processes that stay."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from scenesweep.model.settings import Augmentation
from scenesweep.model.training import batches
from scenesweep.model.training.augment import Augmenter, Example
from scenesweep.model.training.batches import (
    AugmentedChips,
    Loader,
    given_cpus,
    loader_processes,
    worker_batches,
)
from scenesweep.pipeline.labels import open_chips, store_chips
from tests.model.training.test_train import square_card, squares


class WithProcess(AugmentedChips):
    """Replaces the first label by the number of the process that made the example."""

    def __getitem__(self, item: tuple[int, int]) -> Example:
        example = super().__getitem__(item)
        example.labels[:1] = os.getpid()
        return example


def test_other_processes_make_the_same_batches_and_stay(tmp_path: Path) -> None:
    store_chips(tmp_path, squares(6))
    data = open_chips(tmp_path)
    augment = Augmenter(square_card(data), Augmentation(), chip_px=64, points=False)
    chips = WithProcess(data, augment, seed=3)
    here = Loader(chips, processes=0, pin=False)
    there = Loader(chips, processes=1, pin=False)
    makers = set()
    for epoch in (1, 2):
        parts = worker_batches(6, batch=2, seed=epoch)
        for ours, theirs in zip(here.epoch(epoch, parts), there.epoch(epoch, parts), strict=True):
            assert ours.pixels.dtype == torch.uint8
            assert torch.equal(ours.pixels, theirs.pixels)
            assert torch.equal(ours.truth.boxes, theirs.truth.boxes)
            assert ours.colour.gain is not None
            assert theirs.colour.gain is not None
            assert torch.equal(ours.colour.gain, theirs.colour.gain)
            makers.add(int(theirs.truth.labels.max()))
    assert len(makers) == 1
    assert os.getpid() not in makers


def test_a_copy_of_chips_on_disk_opens_the_file(tmp_path: Path) -> None:
    store_chips(tmp_path, squares(6))
    data = open_chips(tmp_path)
    augment = Augmenter(square_card(data), Augmentation(), chip_px=64, points=False)
    chips = AugmentedChips(data, augment, seed=0)
    assert chips.__getstate__()["_chips"].chips.nbytes == 0
    part = AugmentedChips(data.every(2, start=1), augment, seed=0)
    assert "_file" not in part.__getstate__()  # the file has other chips too
    assert np.array_equal(part.__getstate__()["_chips"].chips, data.chips[1::2])


def test_loaders_follow_the_cpus_that_a_process_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(batches, "_CPU_LIMIT", limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    assert given_cpus() == 12
    limit.write_text("400000 100000\n")
    assert given_cpus() == 4
    assert loader_processes(torch.device("cuda")) == 3
    assert loader_processes(torch.device("cpu")) == 0
    limit.write_text("max 100000\n")
    assert loader_processes(torch.device("cuda")) == batches.MOST_LOADERS
    limit.write_text("50000 100000\n")
    assert given_cpus() == 1
