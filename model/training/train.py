"""Train a detector: one worker's loop, alone or as one of many in torch.distributed."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.files.checkpoint import Weights
from scenesweep.model.files.model_file import replacing
from scenesweep.model.samples import Samples
from scenesweep.model.settings import Recipe
from scenesweep.model.training.augment import Augmenter, sample_seed
from scenesweep.model.training.batches import Batch, VariedChips, batches, shares, worker_place
from scenesweep.model.training.learner import Learner

State = dict[str, Any]
Judge = Callable[[dict[str, Tensor]], float]
_NO_SAMPLE = 2**32  # stands for the epoch itself where seeds are mixed


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to.

    `losses` are means over all chips and workers. `learning_rate` is that of the last step.
    `seconds` are those of training and judging, `chips_per_second` of training alone, all
    workers together.
    """

    number: int
    losses: dict[str, float]
    metric: float
    learning_rate: float
    seconds: float
    chips_per_second: float


@dataclass(frozen=True, slots=True)
class EpochProgress:
    """How far an epoch is: the share of it that is done, and this worker's mean losses so far."""

    number: int
    share: float
    losses: dict[str, float]


Watch = Callable[[EpochProgress], None]


class Trainer:
    """One worker's part in training a network.

    Everything random follows from the recipe's seed, the epoch and the sample, so a run that is
    resumed after an epoch goes on as if it had not been interrupted. Several workers share
    every batch; the first one judges. `judge` gives weights their validation metric, higher
    being better; `initial` are weights to begin with.
    """

    def __init__(
        self,
        card: ModelCard,
        samples: Samples,
        recipe: Recipe,
        *,
        judge: Judge,
        initial: Weights | None = None,
    ) -> None:
        self.rank, self.world = worker_place()
        _check(samples, recipe, self.world)
        self.card, self.recipe = card, recipe
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        """Weights of the epoch with the best metric, on the CPU; empty before the first."""
        self._samples, self._judge = samples, judge
        self._augment = Augmenter(
            card, recipe.augmentation, chip_px=samples.chip_px, points=samples.points
        )
        passes = -(-len(samples) // recipe.batch)
        steps = recipe.epochs * -(-passes // recipe.accumulate)
        self.learner = Learner(card, recipe, steps=steps, initial=initial)

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or enough went by without a better metric."""
        epochs, patience = len(self.history), self.recipe.early_stop
        if epochs >= self.recipe.epochs:
            return True
        if patience is None or not epochs:
            return False
        return epochs - 1 - int(np.argmax([epoch.metric for epoch in self.history])) >= patience

    def epochs(self, progress: Watch | None = None) -> Iterator[Epoch]:
        """Train epoch by epoch, yielding after each: it is then time to `save`.

        `progress` is called after every step of the optimiser.

        Raises:
            ModelError: when the losses are no longer finite numbers.
        """
        while not self.done:
            yield self._epoch(len(self.history) + 1, progress or (lambda _: None))

    def save(self, path: Path) -> None:
        """Write all that `resume` needs, complete or not at all; `read_state` reads it.

        Raises:
            OSError: when it cannot be written; the last one that could is still there.
        """
        with replacing(path) as file:
            try:
                torch.save(self.state(), file)
            except RuntimeError as error:
                # torch ends its archive also when a write failed, and that is what it raises
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

    def state(self) -> State:
        """Return what `save` writes: tensors, which the next step will change, and values."""
        return {
            "run": self._identity(),
            "learner": self.learner.state(),
            "history": [asdict(epoch) for epoch in self.history],
            "best": self.best,
        }

    def resume(self, state: State) -> None:
        """Go on where `state` was taken.

        Raises:
            ModelError: when it belongs to another card, recipe or training set.
        """
        was, now = state.get("run", {}), self._identity()
        differing = [name for name, value in now.items() if was.get(name) != value]
        if differing:
            raise ModelError(
                f"cannot resume: the run was begun with another {', '.join(differing)}; repeat "
                "its arguments, or write to a new folder"
            )
        self.learner.load(state["learner"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"]

    def _identity(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        return {
            "card": self.card.model_dump_json(exclude={"training", "inference", "description"}),
            "recipe": self.recipe.model_dump_json(),
            "training set": {"chips": len(self._samples), "objects": self._samples.objects},
        }

    def _epoch(self, number: int, progress: Watch) -> Epoch:
        started = time.monotonic()
        torch.manual_seed(sample_seed(self.recipe.seed, number, _NO_SAMPLE + 1 + self.rank))
        losses = self._learn(number, progress)
        trained = time.monotonic() - started
        metric = self._judged()
        epoch = Epoch(
            number,
            losses,
            metric,
            self.learner.learning_rate,
            time.monotonic() - started,
            len(self._samples) / trained,
        )
        self.history.append(epoch)
        return epoch

    def _learn(self, number: int, progress: Watch) -> dict[str, float]:
        """Go through all chips once and return the mean losses."""
        sums: dict[str, float] = {}
        chips = 0
        for done, group in self._groups(number):
            losses = self.learner.step(group, where=f"epoch {number}, {done:.0%} done")
            for one, (pixels, _) in zip(losses, group, strict=True):
                chips += len(pixels)
                for name, value in one.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(pixels)
            means = {name: value / chips for name, value in sums.items()}
            progress(EpochProgress(number, done, means))
        return self._share_of_all(sums)

    def _groups(self, number: int) -> Iterator[tuple[float, list[Batch]]]:
        """Give the batches of each step of the optimiser, and the share of the epoch by then."""
        seed = self.recipe.seed
        parts = shares(
            len(self._samples),
            batch=self.recipe.batch,
            seed=sample_seed(seed, number, _NO_SAMPLE),
            rank=self.rank,
            world=self.world,
        )
        chips = VariedChips(self._samples, self._augment, seed=seed, epoch=number)
        loader = iter(batches(chips, parts, self.learner.device))
        done = 0
        while group := list(islice(loader, self.recipe.accumulate)):
            done += len(group)
            yield done / len(parts), cast(list[Batch], group)

    def _judged(self) -> float:
        """Judge the averaged weights on the first worker, keep the best, tell all the metric."""
        metric = torch.zeros(1, dtype=torch.float64, device=self.learner.device)
        if self.rank == 0:
            weights = self.learner.weights()
            metric[0] = self._judge(weights)
            if float(metric) > max((epoch.metric for epoch in self.history), default=-1.0):
                self.best = weights
        if self.world > 1:
            torch.distributed.broadcast(metric, src=0)
        return float(metric)

    def _share_of_all(self, sums: dict[str, float]) -> dict[str, float]:
        """Turn the sums of all workers into means over chips."""
        count = len(self._samples) + -len(self._samples) % self.world
        values = torch.tensor(list(sums.values()), device=self.learner.device)
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return dict(zip(sums, (values / count).tolist(), strict=True))


def read_state(path: Path) -> State:
    """Read what `Trainer.save` wrote, without unpickling objects.

    Raises:
        ModelError: when it is not such a file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path}: cannot resume from it: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path}: cannot resume from it: expected a state of training")
    return cast(State, state)


def _check(samples: Samples, recipe: Recipe, world: int) -> None:
    if not len(samples):
        raise ModelError("training: expected at least one chip, found none")
    if recipe.batch % world:
        raise ModelError(
            f"batch: expected a multiple of the {world} workers that share it, got {recipe.batch}"
        )
