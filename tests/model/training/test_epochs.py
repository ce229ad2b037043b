"""Which chips an epoch has, and which epoch is kept."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.settings import Recipe
from scenesweep.model.training.batches import epoch_chips
from scenesweep.model.training.train import EpochProgress, Trainer
from tests.model.training.test_train import STILL, square_card, squares


def test_an_epoch_has_all_chips_with_objects_and_some_without() -> None:
    none, one = np.zeros((0, 4), np.float32), np.zeros((1, 4), np.float32)
    boxes = tuple(one if chip % 5 == 0 else none for chip in range(50))
    labels = tuple(np.zeros(len(of_chip), np.int64) for of_chip in boxes)
    chips = LabelledChips(("",) * 50, np.zeros((50, 1, 8, 8), np.uint8), boxes, labels)
    drawn = [epoch_chips(chips, empty=1.5, seed=seed).tolist() for seed in range(40)]
    for indices in drawn:
        assert set(range(0, 50, 5)) <= set(indices)
        assert len(indices) == len(set(indices)) == 10 + 15
    assert set().union(*drawn) == set(range(50)), "each chip is drawn in some epoch"
    assert drawn[0] != drawn[1]
    assert epoch_chips(chips, empty=1.5, seed=0).tolist() == drawn[0]
    assert epoch_chips(chips, empty=0, seed=0).tolist() == list(range(0, 50, 5))
    for every in (None, 9.0):
        assert epoch_chips(chips, empty=every, seed=0).tolist() == list(range(50))


def test_an_epoch_with_fewer_empty_chips_takes_fewer_steps() -> None:
    data = squares(6)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    mixed = LabelledChips(
        data.names,
        data.chips,
        (*data.boxes[:2], *[nothing[0]] * 4),
        (*data.labels[:2], *[nothing[1]] * 4),
    )
    card, steps = square_card(data), {}
    for empty in (None, 0.5):
        recipe = Recipe(epochs=1, batch=1, empty_chips=empty, augmentation=STILL)
        seen: list[EpochProgress] = []
        list(Trainer(card, mixed, recipe, validate=lambda _: 0.0).epochs(seen.append))
        steps[empty] = len(seen)
    assert steps == {None: 6, 0.5: 3}


def test_the_last_epoch_is_kept_without_looking_at_validation() -> None:
    data = squares(4)
    recipe = Recipe(epochs=3, batch=4, keep="last", augmentation=STILL)
    asked: list[dict[str, Tensor]] = []

    def validate(weights: dict[str, Tensor]) -> float:
        asked.append(weights)
        return 0.25

    trainer = Trainer(square_card(data), data, recipe, validate=validate)
    assert [epoch.metric for epoch in trainer.epochs()] == [None, None, 0.25]
    assert len(asked) == 1
    assert trainer.best is asked[0]
    with pytest.raises(ValueError, match="early_stop: works only with keep: best"):
        Recipe(keep="last", early_stop=2)
