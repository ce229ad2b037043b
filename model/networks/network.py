"""Build the network of a card."""

from __future__ import annotations

import torch
from torch import Tensor

from scenesweep.model.card import ModelCard
from scenesweep.model.networks.alternatives import TorchvisionNetwork
from scenesweep.model.networks.retinanet import RetinaNet

Network = RetinaNet | TorchvisionNetwork
"""A module with `losses`, to train it, and `find`, to detect boxes. Both kinds take and return the
same."""


def build(card: ModelCard) -> Network:
    """Build the network of `card` with random weights."""
    if card.architecture.kind == "retinanet":
        return RetinaNet(card)
    return TorchvisionNetwork(card)


def normalisation(card: ModelCard) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (1, bands, 1, 1) float32, of pixels in 0..255."""
    bands = len(card.bands)
    mean = torch.tensor(card.scaling.mean or (0.5,) * bands).reshape(1, bands, 1, 1)
    std = torch.tensor(card.scaling.std or (0.25,) * bands).reshape(1, bands, 1, 1)
    return mean * 255, std * 255
