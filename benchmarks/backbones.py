"""Backbones under the pyramid and heads of naip-trees: arithmetic of a chip, and time on one core.

The times of all backbones are taken in turns, in one process, as CPU time. Each figure is a ratio
to torchvision's ResNet-18, the backbone of the shipped model. Weights are random: they do not
change the time.

    python -m benchmarks.backbones
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from benchmarks.figures import Figure, tell
from scenesweep.model.card import ModelCard
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.arithmetic import flops_per_chip
from scenesweep.model.inference.detector import Detector, use_process
from scenesweep.model.networks.network import build
from scenesweep.model.settings import DetectorSettings

FIRST = "resnet18"
NAMES = (
    "resnet34",
    "resnet50",
    "timm/resnet18",
    "timm/resnet10t",
    "timm/efficientnet_lite0",
    "timm/efficientnet_lite2",
    "timm/mobilenetv4_conv_small",
    "timm/mobilenetv4_conv_medium",
    "timm/convnext_atto",
    "timm/convnext_tiny",
    "timm/regnety_004",
    "timm/hgnetv2_b0",
    "timm/fasternet_t0",
)
ROUNDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="backbones, as a card names them")
    parser.add_argument("--precision", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--chip-px", type=int, default=512)
    arguments = parser.parse_args()
    settings = DetectorSettings(device="cpu", precision=arguments.precision, threads=1)
    use_process(settings)
    cards = {name: card_with(name, arguments.chip_px) for name in (FIRST, *arguments.names)}
    detectors = {name: Detector(build(card), card, settings) for name, card in cards.items()}
    seconds = chip_seconds(detectors)
    figures = []
    for name, card in cards.items():
        parameters = sum(p.numel() for p in detectors[name].network.parameters())
        figures += [
            Figure(f"{name}: a chip of {card.chip_px} px", flops_per_chip(card) / 1e9, "GFLOP"),
            Figure(f"{name}: parameters", parameters / 1e6, "million"),
            Figure(f"{name}: speed over {FIRST}", seconds[FIRST] / seconds[name], "x"),
        ]
    precision = str(detectors[FIRST].dtype).removeprefix("torch.")
    tell(f"backbones-{precision}", figures, precision=precision, threads=1)


def card_with(name: str, chip_px: int) -> ModelCard:
    """Return the card of naip-trees with another backbone."""
    card = open_model("naip-trees").card
    architecture = card.architecture.model_copy(update={"backbone": name})
    return card.model_copy(update={"architecture": architecture, "chip_px": chip_px})


@torch.inference_mode()
def chip_seconds(detectors: dict[str, Detector]) -> dict[str, float]:
    """Return the shortest CPU time of a forward pass of each network, measured in turns."""
    shortest = dict.fromkeys(detectors, float("inf"))
    pixels = {}
    for name, detector in detectors.items():
        shape = (1, len(detector.card.bands), detector.card.chip_px, detector.card.chip_px)
        noise = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        pixels[name] = detector.prepare(noise)
        detector.network(pixels[name])
    for _ in range(ROUNDS):
        for name, detector in detectors.items():
            started = time.process_time()
            detector.network(pixels[name])
            shortest[name] = min(shortest[name], time.process_time() - started)
    return shortest


if __name__ == "__main__":
    main()
