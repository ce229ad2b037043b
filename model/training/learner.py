"""A network in training: one step of the optimiser, in one process or with other workers."""

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
from scenesweep.model.training.batches import Batch, rank_and_world
from scenesweep.model.training.optimise import average_of, make_optimiser, make_schedule


class LossStep(nn.Module):
    """A module whose forward pass returns losses, which DistributedDataParallel can wrap."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, truth: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
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
        self.learning_rate = 0.0
        """Learning rate of the last step."""
        self._step = _distributed(LossStep(self.network), card)
        mean, std = normalisation(card)
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        # On a processor without bfloat16, autocast is ten times slower than float32.
        precision = pick_precision(recipe.precision, self.device)
        self._autocast = precision == torch.bfloat16

    def step(self, group: list[Batch], *, where: str) -> list[dict[str, Tensor]]:
        """Take one step with the mean loss of some batches; return the losses of each batch.

        Raises:
            ModelError: when the losses are no longer finite numbers. It names `where`.
        """
        self.network.train()
        self._optimiser.zero_grad()
        batch_losses = []
        for number, batch in enumerate(group, start=1):
            with self._without_exchange(number < len(group)):
                losses = self._losses(*batch)
                (torch.stack(list(losses.values())).sum() / len(group)).backward()
            batch_losses.append({name: loss.detach() for name, loss in losses.items()})
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_norm)
        if not bool(torch.isfinite(norm)):  # every worker has the same norm
            raise ModelError(
                f"{where}: the losses are no longer finite numbers: lower learning_rate or "
                "clip_norm, lengthen warmup, or train in float32"
            )
        self.learning_rate = float(self._optimiser.param_groups[0]["lr"])
        self._optimiser.step()
        self._schedule.step()
        if self.average:
            self.average.update_parameters(self.network)
        return batch_losses

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the averaged weights on the CPU."""
        source = self.average.module if self.average else self.network
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

    def _losses(self, pixels: Tensor, truth: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        pixels = pixels.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        truth = [(boxes.to(self.device), labels.to(self.device)) for boxes, labels in truth]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return cast(dict[str, Tensor], self._step((pixels - self._mean) / self._std, truth))

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
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # replaces layers in place
    return network.to(device).to(memory_format=torch.channels_last)


def _distributed(step: nn.Module, card: ModelCard) -> nn.Module:
    """Let workers exchange gradients, if there are several.

    Levels of the pyramid without anchors have parameters that do not affect the losses.
    """
    if rank_and_world()[1] == 1:
        return step
    architecture = card.architecture
    unused = len(architecture.searched) < len(architecture.anchor_sizes_px)
    return DistributedDataParallel(step, find_unused_parameters=unused)
