"""The arithmetic of a network, against the same network run on real chips."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scenesweep.model.architecture import Architecture
from scenesweep.model.inference.arithmetic import flops_per_chip
from scenesweep.model.networks.network import build
from scenesweep.model.networks.retinanet import RetinaNet
from tests.rasters import make_card


def test_it_is_that_of_a_pass_over_a_real_chip() -> None:
    card = make_card()
    network = build(card).eval()
    assert isinstance(network, RetinaNet)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.ones(1, 1, 64, 64))
    assert flops_per_chip(card) == counter.get_total_flops() > 0
    assert flops_per_chip(make_card(chip_px=128)) == 4 * flops_per_chip(card)


@pytest.mark.parametrize("kind", ["fcos", "faster_rcnn", "ssd"])
def test_torchvisions_detectors_are_counted_too(kind: str) -> None:
    architecture = Architecture.model_validate(
        {
            "kind": kind,
            "backbone": "resnet18",
            "levels": (3, 5),
            "channels": 32,
            "anchor_sizes_px": ((12.0,), (24.0,), (48.0,)),
            "aspect_ratios": (1.0,),
        }
    )
    # The backbone alone: 1.8 GFLOP of multiplications and additions each at 224 px.
    backbone = 2 * 1.8e9 * (64 / 224) ** 2
    card = make_card(architecture=architecture, bands=(1, 2, 3))
    assert flops_per_chip(card) > backbone
