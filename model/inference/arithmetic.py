"""Count the floating-point operations of a network without running it."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from scenesweep.model.card import ModelCard
from scenesweep.model.networks.network import build
from scenesweep.model.networks.retinanet import RetinaNet


@torch.inference_mode()
def flops_per_chip(card: ModelCard) -> int:
    """Return the number of floating-point operations of a forward pass over one chip.

    A RetinaNet is counted on tensors without values, which is fast. torchvision's other detectors
    run once on a black chip.
    """
    with torch.device("meta" if card.architecture.kind == "retinanet" else "cpu"):
        network = build(card).eval()
        chip = torch.zeros(1, len(card.bands), card.chip_px, card.chip_px)
        with FlopCounterMode(display=False) as counter:
            if isinstance(network, RetinaNet):
                network(chip)
            else:
                network.find(chip, card.inference)
    return counter.get_total_flops()
