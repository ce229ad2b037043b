"""The training loop of one worker, alone or with others in torch.distributed."""

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
from torch import Tensor

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.files.checkpoint import Weights
from scenesweep.model.files.model_file import write_atomically
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.settings import Recipe
from scenesweep.model.training.augment import Augmenter, chip_seed
from scenesweep.model.training.batches import (
    AugmentedChips,
    Batch,
    Loader,
    epoch_chips,
    loader_processes,
    rank_and_world,
    sum_over_workers,
    worker_batches,
)
from scenesweep.model.training.learner import Learner

State = dict[str, Any]
Validate = Callable[[dict[str, Tensor]], float]
_READ_EVERY = 16
_NO_PART_OF_A_RUN = {
    *("training", "inference", "class_thresholds", "calibration", "description"),
    "sizes_meaningful",
}
_NO_CHIP = 2**32  # in `chip_seed`: the epoch itself, and no chip of it


@dataclass(frozen=True, slots=True)
class Epoch:
    """Results of one epoch.

    `losses` are means over all chips and workers. `metric` is that of validation; None if it did
    not run in this epoch (`Recipe.keep`). `learning_rate` is that of the last step.
    `seconds` includes validation. `chips_per_second` is the rate of all workers together, without
    validation.
    """

    number: int
    losses: dict[str, float]
    metric: float | None
    learning_rate: float
    seconds: float
    chips_per_second: float


@dataclass(frozen=True, slots=True)
class EpochProgress:
    """Progress within an epoch: the share that is done, and this worker's mean losses so far."""

    number: int
    share: float
    losses: dict[str, float]


OnProgress = Callable[[EpochProgress], None]


class Trainer:
    """Trains a network as one worker.

    All random numbers follow from the recipe's seed, the epoch and the chip. So a run that is
    resumed after an epoch has the same results as an uninterrupted one. Several workers share
    every batch. `validate` returns the validation metric of weights; higher is better. It is called
    on every worker, with the same weights, and returns the same value. `initial` are weights to
    start with.
    """

    def __init__(
        self,
        card: ModelCard,
        chips: LabelledChips,
        recipe: Recipe,
        *,
        validate: Validate,
        initial: Weights | None = None,
    ) -> None:
        self.rank, self.world = rank_and_world()
        _check(chips, recipe, self.world)
        self.card, self.recipe = card, recipe
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        """Weights to keep (`Recipe.keep`), on the CPU; empty before the first validation."""
        self._chips, self._validate = chips, validate
        self._chips_per_epoch = len(epoch_chips(chips, empty=recipe.empty_chips, seed=0))
        passes = -(-self._chips_per_epoch // recipe.batch)
        steps = recipe.epochs * -(-passes // recipe.accumulate)
        self.learner = Learner(card, recipe, steps=steps, initial=initial)
        device = self.learner.device
        self._read_every = _READ_EVERY if device.type == "cuda" else 1
        augment = Augmenter(card, recipe.augmentation, chip_px=chips.chip_px, points=chips.points)
        self._loader = Loader(
            AugmentedChips(chips, augment, seed=recipe.seed),
            processes=loader_processes(device),
            pin=device.type == "cuda",
        )

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or `early_stop` epochs passed without a better metric."""
        epochs, patience = len(self.history), self.recipe.early_stop
        if epochs >= self.recipe.epochs:
            return True
        if patience is None or not epochs:
            return False
        metrics = [epoch.metric or 0.0 for epoch in self.history]
        return epochs - 1 - int(np.argmax(metrics)) >= patience

    def epochs(self, progress: OnProgress | None = None) -> Iterator[Epoch]:
        """Train and yield after each epoch, so that the caller can `save`.

        `progress` is called after every step of the optimiser on a CPU. On a GPU, it is called
        after every 16th step and after the last, because reading a loss stops the GPU.

        Raises:
            ModelError: when the losses are no longer finite numbers.
        """
        while not self.done:
            yield self._epoch(len(self.history) + 1, progress or (lambda _: None))

    def save(self, path: Path) -> None:
        """Write a checkpoint for `resume`, atomically. `read_state` reads it.

        Raises:
            OSError: when it cannot be written. The checkpoint before it is then still there.
        """
        with write_atomically(path) as file:
            try:
                torch.save(self.state(), file)
            except RuntimeError as error:
                # after a failed write torch still closes its archive, and raises that second error
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

    def state(self) -> State:
        """Return the content of a checkpoint. The next step changes its tensors."""
        return {
            "run": self._identity(),
            "learner": self.learner.state(),
            "history": [asdict(epoch) for epoch in self.history],
            "best": self.best,
        }

    def resume(self, state: State) -> None:
        """Continue from the state of a checkpoint.

        Raises:
            ModelError: when it was made with another card, recipe or training set.
        """
        saved, current = state.get("run", {}), self._identity()
        differing = [name for name, value in current.items() if saved.get(name) != value]
        if differing:
            raise ModelError(
                f"cannot resume: the checkpoint has another {', '.join(differing)}; repeat the "
                "arguments of that run, or write to a new folder"
            )
        self.learner.load(state["learner"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"]

    def _identity(self) -> dict[str, Any]:
        """Return what must not change between a run and its resume."""
        return {
            "card": self.card.model_dump_json(exclude=_NO_PART_OF_A_RUN),
            "recipe": self.recipe.model_dump_json(),
            "training set": {"chips": len(self._chips), "objects": self._chips.objects},
        }

    def _epoch(self, number: int, progress: OnProgress) -> Epoch:
        started = time.monotonic()
        torch.manual_seed(chip_seed(self.recipe.seed, number, _NO_CHIP + 1 + self.rank))
        losses = self._learn(number, progress)
        trained = time.monotonic() - started
        last = number == self.recipe.epochs
        metric = self._validated() if last or self.recipe.keep == "best" else None
        epoch = Epoch(
            number,
            losses,
            metric,
            self.learner.learning_rate,
            time.monotonic() - started,
            self._chips_per_epoch / trained,
        )
        self.history.append(epoch)
        return epoch

    def _learn(self, number: int, progress: OnProgress) -> dict[str, float]:
        """Train on the chips of an epoch once and return the mean losses."""
        shares: list[float] = []
        chips = 0
        self.learner.begin_epoch()
        for done, group in self._groups(number):
            self.learner.step(group)
            shares.append(done)
            chips += sum(len(batch.pixels) for batch in group)
            if len(shares) % self._read_every == 0 or done == 1:
                sums = self._read(number, shares)
                progress(EpochProgress(number, done, {k: v / chips for k, v in sums.items()}))
        return self._mean_over_workers(sums)

    def _read(self, number: int, shares: list[float]) -> dict[str, float]:
        """Read the sums of the losses. `shares` has the share of the epoch done by each step."""
        sums, bad = self.learner.read()
        if bad is not None:  # every worker has the same gradients
            raise ModelError(
                f"epoch {number}, {shares[bad]:.0%} done: the losses are no longer finite numbers: "
                "lower learning_rate or clip_norm, lengthen warmup, or train in float32"
            )
        return sums

    def _groups(self, number: int) -> Iterator[tuple[float, list[Batch]]]:
        """Yield the batches of each optimiser step, with the share of the epoch done after it."""
        seed = chip_seed(self.recipe.seed, number, _NO_CHIP)
        chosen = epoch_chips(self._chips, empty=self.recipe.empty_chips, seed=seed)
        orders = worker_batches(
            len(chosen), batch=self.recipe.batch, seed=seed, rank=self.rank, world=self.world
        )
        parts = [chosen[order] for order in orders]
        batches = self._loader.epoch(number, parts)
        done = 0
        while group := list(islice(batches, self.recipe.accumulate)):
            done += len(group)
            yield done / len(parts), group

    def _validated(self) -> float:
        """Validate the averaged weights on all workers; the first one keeps the best."""
        weights = self.learner.weights()
        metric = self._validate(weights)
        known = [epoch.metric for epoch in self.history if epoch.metric is not None]
        best = max(known, default=-1.0)
        if self.rank == 0 and metric > best:
            self.best = weights
        return metric

    def _mean_over_workers(self, sums: dict[str, float]) -> dict[str, float]:
        """Add up the sums of all workers and divide them by the number of chips."""
        count = self._chips_per_epoch + -self._chips_per_epoch % self.world
        values = sum_over_workers(
            torch.tensor(list(sums.values()), dtype=torch.float64, device=self.learner.device)
        )
        return dict(zip(sums, (values / count).tolist(), strict=True))


def read_state(path: Path) -> State:
    """Read a checkpoint that `Trainer.save` wrote, without unpickling objects.

    Raises:
        ModelError: when it is not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{path}: expected a checkpoint of training: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(state, dict):
        raise ModelError(f"{path}: expected a checkpoint of training, got other data")
    return cast(State, state)


def _check(chips: LabelledChips, recipe: Recipe, world: int) -> None:
    if not len(chips):
        raise ModelError("training: expected at least one chip, found none")
    if recipe.batch % world:
        raise ModelError(
            f"batch: expected a multiple of the {world} workers that share it, got {recipe.batch}"
        )
