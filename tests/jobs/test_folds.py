"""`scenesweep train --folds`: each raster is measured with a model that never saw it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scenesweep.jobs.training.folds import make_folds
from scenesweep.jobs.training.run import CHECKPOINT
from scenesweep.model.files.model_file import open_model
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.pipeline.errors import Exit, UsageError
from tests.jobs.test_train import train, write_data

SHORT = ["--epochs", 1, "--set", "batch=4", "--set", "learning_rate=0.004"]


def chips_of(objects: dict[str, int]) -> LabelledChips:
    """One chip for each name, with so many objects."""
    return LabelledChips(
        tuple(objects),
        np.zeros((len(objects), 1, 8, 8), np.uint8),
        tuple(np.zeros((count, 4), np.float32) for count in objects.values()),
        tuple(np.zeros(count, np.int64) for count in objects.values()),
    )


def test_chips_of_one_raster_are_in_one_fold_and_objects_are_shared_evenly() -> None:
    chips = chips_of({"a@0,0": 4, "a@96,0": 3, "b@0,0": 1, "c@0,0": 5, "d": 2, "b@96,0": 1})
    folds = make_folds(chips, 2)
    assert [fold.rasters for fold in folds] == [("a", "d"), ("b", "c")]
    assert [fold.held_out.tolist() for fold in folds] == [
        [True, True, False, False, True, False],
        [False, False, True, True, False, True],
    ]
    backwards = make_folds(chips.take(np.arange(len(chips))[::-1]), 2)
    assert [fold.rasters for fold in backwards] == [fold.rasters for fold in folds]
    assert {fold.rasters for fold in make_folds(chips, 4)} == {("a",), ("b",), ("c",), ("d",)}
    with pytest.raises(UsageError, match="--folds: expected 2 to 4, the number of rasters, got 5"):
        make_folds(chips, 5)


def test_a_cross_validated_model_has_the_figures_of_the_folds(tmp_path: Path) -> None:
    out = tmp_path / "run"
    data = write_data(tmp_path, chips=4)
    assert train(data, "--out", out, "--folds", 2, *SHORT) == 0
    model = open_model(str(out / "model.safetensors"))
    made = model.card.training
    assert made["recipe"]["keep"] == "last"
    assert made["training"]["chips"] == made["validation"]["chips"] == 4
    left_out = [name for fold in made["folds"] for name in fold["rasters"]]
    assert sorted(left_out) == ["chip0", "chip1", "chip2", "chip3"]
    assert sum(fold["objects"] for fold in made["folds"]) == made["training"]["objects"]
    assert model.card.inference.score_threshold == made["validation"]["best"]["threshold"]
    for number, fold in enumerate(made["folds"], start=1):
        names = (out / f"fold-{number}.txt").read_text().split()
        assert names == fold["rasters"]
        own = open_model(str(out / f"fold-{number}.safetensors"))
        assert own.sha256 != model.sha256
        assert (out / f"fold-{number}" / CHECKPOINT).exists()
    assert (out / "report.html").exists()
    assert train(data, "--out", out, "--folds", 2, *SHORT) == Exit.USAGE, "without --resume"
    before = (out / "model.safetensors").read_bytes()
    assert train(data, "--out", out, "--folds", 2, *SHORT, "--resume") == 0
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("more", [["--workers", 2], ["--val-list", "list.txt"]])
def test_folds_do_not_go_with_other_splits(tmp_path: Path, more: list[object]) -> None:
    data = write_data(tmp_path, chips=2)
    assert train(data, "--out", tmp_path / "run", "--folds", 2, *more) == Exit.USAGE
