"""What every network offers, and how one is built from a card."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.card import Inference, ModelCard
from scenesweep.model.networks.alternatives import TorchvisionNetwork
from scenesweep.model.networks.retinanet import RetinaNet


class Network(Protocol):
    """A detector's network: an `nn.Module` with losses to train by and a way to find boxes."""

    def losses(self, pixels: Tensor, truth: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return scalars whose sum is to become small.

        `pixels` is (B, bands, S, S), normalised; `truth` has for each chip its boxes (T, 4)
        float32 xyxy in chip pixels and its labels (T,) int64.
        """
        ...

    def find(self, pixels: Tensor, inference: Inference) -> list[ChipBoxes]:
        """Find boxes in a batch (B, bands, H, W), normalised: one `ChipBoxes` a chip."""
        ...


def build(card: ModelCard) -> RetinaNet | TorchvisionNetwork:
    """Build the network of `card` with random weights."""
    if card.architecture.kind == "retinanet":
        return RetinaNet(card)
    return TorchvisionNetwork(card)


def normalisation(card: ModelCard) -> tuple[Tensor, Tensor]:
    """Return mean and std, (1, bands, 1, 1) float32, of chips in 0..255."""
    bands = len(card.bands)
    mean = torch.tensor(card.scaling.mean or (0.5,) * bands).reshape(1, bands, 1, 1)
    std = torch.tensor(card.scaling.std or (0.25,) * bands).reshape(1, bands, 1, 1)
    return mean * 255, std * 255
