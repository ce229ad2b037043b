"""Training on two workers equals training on one, and the workers agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from scenesweep.jobs.training.run import Validator
from scenesweep.model.evaluate import Rule
from scenesweep.model.losses.criterion import ghm_weights
from scenesweep.model.networks.network import build
from scenesweep.model.networks.retinanet import RetinaNet
from scenesweep.model.settings import Recipe
from scenesweep.model.training.batches import rank_and_world
from scenesweep.model.training.learner import Learner, unused_parameters
from scenesweep.model.training.train import Trainer
from tests.model.training.test_train import square_card, squares
from tests.model.training.workers import run_workers
from tests.rasters import SMALL, make_card

GHM = {"losses": {"classification": "ghm", "ghm_momentum": 0.75}}
CHIPS = 6
LOGITS = torch.linspace(-6, 6, 64).reshape(2, 16, 2)


@dataclass
class Trained:
    """What a worker has at the end of a run."""

    metrics: list[float | None]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    averaged: dict[str, Tensor]
    best: int
    settings: tuple[bool, bool, bool] | None


def train(changes: dict[str, Any], accumulate: int) -> Trained:
    data, validation = squares(CHIPS), squares(5)
    card = square_card(data, **changes)
    recipe = Recipe(epochs=2, batch=2, accumulate=accumulate, precision="float32")
    validate = Validator(card, validation, Rule(0.3, None), "float32")
    trainer = Trainer(card, data, recipe, validate=validate)
    metrics = [epoch.metric for epoch in trainer.epochs()]
    network, step = trainer.learner.network, trainer.learner._step
    settings = None
    if isinstance(step, DistributedDataParallel):
        settings = (step.static_graph, step.find_unused_parameters, step.gradient_as_bucket_view)
    return Trained(
        metrics,
        {name: p.detach() for name, p in network.named_parameters()},
        dict(network.criterion.named_buffers()) if isinstance(network, RetinaNet) else {},
        trainer.learner.weights(),
        len(trainer.best),
        settings,
    )


@pytest.mark.parametrize(("accumulate", "static"), [(1, True), (3, False)])
def test_workers_agree_on_weights_figures_and_gradient_counts(
    accumulate: int, static: bool, tmp_path: Path
) -> None:
    first, second = run_workers(train, tmp_path, GHM, accumulate)
    assert first.metrics == second.metrics
    for name, value in first.parameters.items():
        assert torch.equal(value, second.parameters[name]), name
    for name, value in first.averaged.items():
        assert torch.equal(value, second.averaged[name]), name
    counts = first.buffers["gradient_counts"]
    assert torch.equal(counts, second.buffers["gradient_counts"])
    assert counts.sum() > 0
    assert (first.best > 0, second.best) == (True, 0)
    # No level of this card is without anchors, so there is nothing unused to search for.
    assert first.settings == (static, False, True)


def weigh() -> tuple[Tensor, Tensor]:
    """Weigh this worker's chips of `LOGITS`."""
    rank, world = rank_and_world()
    logits = LOGITS[rank::world]
    return ghm_weights(logits, torch.zeros_like(logits), torch.zeros(5), momentum=0.75)


def test_gradients_are_counted_over_all_workers(tmp_path: Path) -> None:
    weights, counts = weigh()
    both = run_workers(weigh, tmp_path)
    assert all(torch.equal(counts, theirs) for _, theirs in both)
    torch.testing.assert_close(torch.stack([w[0] for w, _ in both]), weights)


def judge(weights: dict[str, Tensor], card: Any) -> tuple[float, int]:
    """Validate, and count the chips that this worker looked at."""
    seen = 0

    class Counting(Validator):
        def detect(self, weights: dict[str, Tensor]) -> Any:
            nonlocal seen
            seen = len(self.chips)
            return super().detect(weights)

    return Counting(card, squares(5), Rule(0.3, None), "float32")(weights), seen


def test_validation_is_divided_and_its_figure_is_that_of_one_worker(tmp_path: Path) -> None:
    data = squares(24)
    card = square_card(data)
    learner = Trainer(card, data, Recipe(epochs=1, batch=2), validate=lambda _: 0.0)
    list(learner.epochs())
    weights = learner.learner.weights()
    alone, seen = judge(weights, card)
    assert 0 < alone < 1
    assert seen == 5
    both = run_workers(judge, tmp_path, weights, card)
    assert both == [(alone, 3), (alone, 2)]


def test_unused_parameters_are_those_that_no_output_needs() -> None:
    used = build(make_card())
    assert isinstance(used, RetinaNet)
    before = {name: value.clone() for name, value in used.state_dict().items()}
    assert unused_parameters(used) == []
    assert used.training
    assert all(torch.equal(value, before[name]) for name, value in used.state_dict().items())
    coarse = SMALL.model_copy(update={"levels": (3, 5), "anchor_sizes_px": ((), (16.0,), ())})
    unused = build(make_card(architecture=coarse))
    assert isinstance(unused, RetinaNet)
    names = unused_parameters(unused)
    assert names
    assert all(name.startswith("backbone.fpn.inner_blocks.0.") for name in names)


def test_one_worker_exchanges_nothing() -> None:
    learner = Learner(make_card(), Recipe(), steps=1)
    assert not isinstance(learner._step, DistributedDataParallel)
