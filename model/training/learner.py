"""A network in training: one step of the optimiser, in one process or with other workers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scenesweep.model.card import ModelCard
from scenesweep.model.files.checkpoint import Weights, initialise
from scenesweep.model.inference.detector import pick_device, pick_precision
from scenesweep.model.losses.truth import Truth
from scenesweep.model.networks.backbone import synchronise_norms
from scenesweep.model.networks.network import Network, build, normalisation
from scenesweep.model.networks.retinanet import RetinaNet
from scenesweep.model.settings import Recipe
from scenesweep.model.training.batches import Batch, from_first_worker, rank_and_world
from scenesweep.model.training.colour import change_colours
from scenesweep.model.training.optimise import average_of, make_optimiser, make_schedule

_NEVER = 2**62
"""Number of a step that does not come."""


class LossStep(nn.Module):
    """A module whose forward pass returns losses, which DistributedDataParallel can wrap."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, truth: Truth) -> dict[str, Tensor]:
        return self.network.losses(pixels, truth)


class Learner:
    """A network with its optimiser, schedule and average, on this worker's device.

    `steps` is the number of steps of the complete run. Parameters start with the weights in
    `initial` that fit; all others are random by the recipe's seed. `left_random` names these.
    """

    def __init__(
        self, card: ModelCard, recipe: Recipe, *, steps: int, initial: Weights | None = None
    ) -> None:
        self.device = pick_device("auto")
        torch.manual_seed(recipe.seed)
        network = build(card)
        self.left_random = initialise(network, initial, card) if initial else []
        self.network = _on_device(network, card, self.device)
        self.average = average_of(self.network, recipe.ema_decay)
        self._clip_norm = recipe.clip_norm
        self._optimiser = make_optimiser(self.network, recipe)
        self._schedule = make_schedule(self._optimiser, recipe, steps=steps)
        self._notes = StepNotes(self.device)
        self.learning_rate = 0.0
        """Learning rate of the last step."""
        self._step = _distributed(LossStep(self.network), card, recipe)
        mean, std = normalisation(card)
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        # On a processor without bfloat16, autocast is ten times slower than float32.
        precision = pick_precision(recipe.precision, self.device)
        self._autocast = precision == torch.bfloat16

    def step(self, group: list[Batch]) -> None:
        """Take one step with the mean loss of some batches. The host reads nothing back.

        Losses and the first step with a gradient that is not finite are noted on the device, for
        `read`.
        """
        self.network.train()
        self._optimiser.zero_grad()
        for number, batch in enumerate(group, start=1):
            with self._without_exchange(number < len(group)):
                losses = self._losses(batch)
                values = torch.stack(list(losses.values()))
                (values.sum() / len(group)).backward()
            self._notes.add(list(losses), values.detach(), chips=len(batch.pixels))
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_norm)
        self._notes.end_step(norm)
        self.learning_rate = float(self._optimiser.param_groups[0]["lr"])
        self._optimiser.step()
        self._schedule.step()
        if self.average:
            self.average.update_parameters(self.network)

    def begin_epoch(self) -> None:
        """Forget the losses of the epoch before."""
        self._notes = StepNotes(self.device)

    def read(self) -> tuple[dict[str, float], int | None]:
        """Return this worker's sums of losses over the chips of the epoch so far.

        And the number of the first step of the epoch, from 0, whose gradients were not finite
        numbers; it is the same for all workers. A GPU finishes its work first.
        """
        return self._notes.read()

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the averaged weights on the CPU, the same on all workers.

        Workers on CPUs have statistics of their own in batch norms. Those of the first one count.
        """
        source = self.average.module if self.average else self.network
        from_first_worker(list(source.state_dict().values()))
        return {name: v.detach().cpu().clone() for name, v in source.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Return the state for `load`: tensors and plain values."""
        weights = self.network.state_dict()
        return {
            "network": weights,
            "buffers": {k: v for k, v in self.network.named_buffers() if k not in weights},
            "average": self.average.state_dict() if self.average else None,
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state that `state()` returned."""
        self.network.load_state_dict(state["network"])
        for name, buffer in self.network.named_buffers():
            if name in state["buffers"]:
                buffer.copy_(state["buffers"][name])
        if self.average:
            self.average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        pixels = batch.pixels.to(self.device, non_blocking=True)
        pixels = change_colours(pixels, batch.colour.to(self.device))
        pixels = ((pixels - self._mean) / self._std).to(memory_format=torch.channels_last)
        truth = batch.truth.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return cast(dict[str, Tensor], self._step(pixels, truth))

    def _without_exchange(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Let workers exchange gradients only for the last batch of a step."""
        if more_to_come and isinstance(self._step, DistributedDataParallel):
            return cast(AbstractContextManager[None], self._step.no_sync())
        return nullcontext()


def _on_device(network: Network, card: ModelCard, device: torch.device) -> Network:
    """Move a network to a device. Workers on GPUs get synchronised batch normalisation.

    On CPUs torch has none: each worker computes statistics over its own chips while training, and
    the running statistics of the first worker are used for all.
    """
    shared = rank_and_world()[1] > 1 and card.architecture.backbone_norm in ("batch", "sync")
    if shared and device.type == "cuda":
        synchronise_norms(network)
    return network.to(device).to(memory_format=torch.channels_last)


class StepNotes:
    """Sums of losses and the first bad step of an epoch, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._names: list[str] = []
        self._sums = torch.zeros((), dtype=torch.float64, device=device)
        self._steps = 0
        self._bad = torch.full((), _NEVER, device=device)

    def add(self, names: list[str], losses: Tensor, *, chips: int) -> None:
        """Add the mean losses (L,) of a batch, `chips` times."""
        self._names = names
        self._sums = self._sums + losses.double() * chips

    def end_step(self, norm: Tensor) -> None:
        """Note whether the norm of the gradients was finite."""
        bad = torch.where(norm.isfinite(), _NEVER, self._steps)
        self._bad = torch.minimum(self._bad, bad)
        self._steps += 1

    def read(self) -> tuple[dict[str, float], int | None]:
        """See `Learner.read`."""
        bad = int(self._bad)
        sums = self._sums.expand(len(self._names)).tolist()
        return dict(zip(self._names, sums, strict=True)), None if bad == _NEVER else bad


def unused_parameters(network: RetinaNet) -> list[str]:
    """Name the trained parameters that affect no output, such as those of levels without anchors.

    One forward pass finds out; the network does not change.
    """
    side = 2 ** network.card.architecture.levels[1]
    example = next(network.parameters()).new_zeros(1, len(network.card.bands), side, side)
    was_training = network.training
    outputs = network.eval()(example)
    network.train(was_training)
    values = [
        value.sum()
        for raw in outputs
        for value in (raw.logits, raw.deltas, raw.quality)
        if value is not None
    ]
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(
        torch.stack(values).sum(), list(trained.values()), allow_unused=True
    )
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]


def _distributed(step: LossStep, card: ModelCard, recipe: Recipe) -> nn.Module:
    """Let workers exchange gradients, if there are several.

    A RetinaNet has the same graph in every step, so DistributedDataParallel studies it once, in the
    first step. That does not work with `no_sync`, which accumulated batches need: then it searches
    for unused parameters in every step, if there are any. In torchvision's other detectors the
    graph depends on the data.
    """
    if rank_and_world()[1] == 1:
        return step
    architecture = card.architecture
    unused = len(architecture.searched) < len(architecture.anchor_sizes_px)
    static = isinstance(step.network, RetinaNet) and recipe.accumulate == 1
    if isinstance(step.network, RetinaNet):
        unused = not static and bool(unused_parameters(step.network))
    return DistributedDataParallel(
        step,
        find_unused_parameters=unused,
        static_graph=static,
        gradient_as_bucket_view=True,
    )
