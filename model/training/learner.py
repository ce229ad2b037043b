"""A network that learns: one step of the optimiser, alone or with other workers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.files.checkpoint import Weights, initialise
from scenesweep.model.inference.detector import pick_device, pick_precision
from scenesweep.model.networks.network import Network, build, normalisation
from scenesweep.model.settings import Recipe
from scenesweep.model.training.batches import Batch, worker_place
from scenesweep.model.training.optimise import average_of, make_optimiser, make_schedule


class LossStep(nn.Module):
    """A forward pass that ends in losses, for DistributedDataParallel to wrap."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, truth: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return cast(Network, self.network).losses(pixels, truth)


class Learner:
    """A network with its optimiser, schedule and average, on this worker's device.

    `steps` is the number of steps in the whole run. Weights are `initial` where these fit, else
    random by the recipe's seed; `left_random` names the latter.
    """

    def __init__(
        self, card: ModelCard, recipe: Recipe, *, steps: int, initial: Weights | None = None
    ) -> None:
        self.device = pick_device("auto")
        torch.manual_seed(recipe.seed)
        network = build(card)
        self.left_random = initialise(network, initial, card) if initial else []
        self.network = _placed(network, card, self.device)
        self.average = average_of(self.network, recipe.ema_decay)
        self._clip_norm = recipe.clip_norm
        self._optimiser = make_optimiser(self.network, recipe)
        self._schedule = make_schedule(self._optimiser, recipe, steps=steps)
        self.learning_rate = 0.0
        """Of the last step."""
        self._step = _shared(LossStep(self.network), card)
        mean, std = normalisation(card)
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        # Without bfloat16 in the processor, autocast is ten times slower, not faster.
        precision = pick_precision(recipe.precision, self.device)
        self._autocast = precision == torch.bfloat16

    def step(self, group: list[Batch], *, where: str) -> list[dict[str, Tensor]]:
        """Take one step by the mean loss of some batches, and return the losses of each.

        Raises:
            ModelError: naming `where`, when the losses are no longer finite numbers.
        """
        self.network.train()
        self._optimiser.zero_grad()
        seen = []
        for place, batch in enumerate(group, start=1):
            with self._alone(place < len(group)):
                losses = self._losses(*batch)
                (torch.stack(list(losses.values())).sum() / len(group)).backward()
            seen.append({name: loss.detach() for name, loss in losses.items()})
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_norm)
        if not bool(torch.isfinite(norm)):  # the same on every worker
            raise ModelError(
                f"{where}: the losses are no longer finite numbers: lower learning_rate or "
                "clip_norm, lengthen warmup, or train in float32"
            )
        self.learning_rate = float(self._optimiser.param_groups[0]["lr"])
        self._optimiser.step()
        self._schedule.step()
        if self.average:
            self.average.update_parameters(self.network)
        return seen

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the averaged weights on the CPU."""
        source = self.average.module if self.average else self.network
        return {name: v.detach().cpu().clone() for name, v in source.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Return all that `load` needs, as tensors and plain values."""
        kept = self.network.state_dict()
        return {
            "network": kept,
            "buffers": {k: v for k, v in self.network.named_buffers() if k not in kept},
            "average": self.average.state_dict() if self.average else None,
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what the learner was from which `state` was taken."""
        self.network.load_state_dict(state["network"])
        for name, buffer in self.network.named_buffers():
            if name in state["buffers"]:
                buffer.copy_(state["buffers"][name])
        if self.average:
            self.average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])

    def _losses(self, pixels: Tensor, truth: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        pixels = pixels.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        there = [(boxes.to(self.device), labels.to(self.device)) for boxes, labels in truth]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return cast(dict[str, Tensor], self._step((pixels - self._mean) / self._std, there))

    def _alone(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Let workers exchange gradients only when a step is due."""
        if more_to_come and isinstance(self._step, DistributedDataParallel):
            return cast(AbstractContextManager[None], self._step.no_sync())
        return nullcontext()


def _placed(network: nn.Module, card: ModelCard, device: torch.device) -> nn.Module:
    """Bring a network to a device; on GPUs that share batches, so does batch normalisation.

    On CPUs torch has no synchronised batch normalisation: each worker has its own statistics
    while training, and the first one's running statistics are everyone's.
    """
    shared = worker_place()[1] > 1 and card.architecture.backbone_norm in ("batch", "sync")
    if shared and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    placed: nn.Module = network.to(device).to(memory_format=torch.channels_last)
    return placed


def _shared(step: nn.Module, card: ModelCard) -> nn.Module:
    """Let workers exchange gradients.

    The pyramid's last convolutions of levels that are not searched have no part in the losses.
    """
    if worker_place()[1] == 1:
        return step
    architecture = card.architecture
    idle = len(architecture.searched) < len(architecture.anchor_sizes_px)
    return DistributedDataParallel(step, find_unused_parameters=idle)
