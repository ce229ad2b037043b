"""The optimiser, the schedule of the learning rate, and the average of the weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scenesweep.model.settings import Recipe

_MOMENTUM = 0.9
_STEPS_AT = (2 / 3, 8 / 9)
_FIRST_RATE = 1e-3


def make_optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser for all parameters that are trained."""
    trained = [p for p in network.parameters() if p.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(trained, rate, momentum=_MOMENTUM, weight_decay=decay)
    return torch.optim.AdamW(trained, rate, weight_decay=decay)


def make_schedule(optimiser: torch.optim.Optimizer, recipe: Recipe, *, steps: int) -> LRScheduler:
    """Return the schedule of the learning rate over `steps` steps of the optimiser."""
    if recipe.optimiser == "sgd":
        return LambdaLR(optimiser, partial(paper_factor, steps=steps, warmup=recipe.warmup))
    warmup = (
        recipe.warmup if recipe.warmup * steps > 1 else 0.0
    )  # a warm-up shorter than one step is none
    return OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps, pct_start=warmup)


def paper_factor(step: int, *, steps: int, warmup: float) -> float:
    """Return the factor of the learning rate at a step: 1, then a tenth, then a hundredth.

    Lin et al. 2017, section 4.1: 90,000 steps, divided by 10 after 60,000 and after 80,000.
    During the first `warmup * steps` steps the factor rises linearly from a thousandth
    (Goyal et al. 2017, arXiv:1706.02677, section 2.2).
    """
    rising = warmup * steps
    if step < rising:
        return _FIRST_RATE + (1 - _FIRST_RATE) * step / rising
    tenths = len([share for share in _STEPS_AT if step >= share * steps])
    return float(0.1**tenths)


class Average(AveragedModel):
    """The exponential moving average of weights and buffers.

    torch's own update reads the number of updates back from the device in every step. Here it is
    read from the CPU, where it is.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        count = int(self.n_averaged)
        averages = [*self.module.parameters(), *self.module.buffers()]
        currents = [*model.parameters(), *model.buffers()]
        update = get_ema_multi_avg_fn(average_decay(count, self._decay))
        for floating in (True, False):
            pairs = [
                (average.detach(), current.detach())
                for average, current in zip(averages, currents, strict=True)
                if average.is_floating_point() == floating
            ]
            if count == 0:
                for average, current in pairs:
                    average.copy_(current)
            elif pairs:
                update([average for average, _ in pairs], [current for _, current in pairs], count)
        self.n_averaged += 1


def average_of(network: nn.Module, decay: float) -> Average | None:
    """Return the moving average of a network with the recipe's decay; None for a decay of 0."""
    return Average(network, decay) if decay else None


def average_decay(updates: int, decay: float) -> float:
    """Return the decay of the update after `updates` others: (1 + n) / (10 + n), up to `decay`.

    So the random initial weights soon lose their influence, also in a short run (as in TensorFlow's
    ExponentialMovingAverage).
    """
    return min(decay, (1 + updates) / (10 + updates))
