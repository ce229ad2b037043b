"""P4: the bare network's arithmetic against a matrix product's, on chips already in memory."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures import Figure, at_least, best_of, tell
from benchmarks.gpu_timing import resnet
from scenesweep.model.files.checkpoint import load_network
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.arithmetic import flops_per_chip
from scenesweep.model.inference.detector import Detector, pick_device, pick_precision, use_process
from scenesweep.model.networks.network import build
from scenesweep.model.settings import DetectorSettings

MATRIX = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=1, help="as a detector has (default 1)")
    parser.add_argument("--batch", type=int, help="chips in a pass (default 1, on a GPU 16)")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    dtype = pick_precision(arguments.precision, device)
    torch.set_num_threads(arguments.threads)
    ceiling = product_rate(device, dtype)
    figures = [Figure(f"{MATRIX} x {MATRIX} product, {dtype}", ceiling / 1e9, "GFLOP/s")]
    least = 0.45 if device.type == "cuda" else 0.90
    settings = DetectorSettings(
        device=device.type,
        precision="bfloat16" if dtype is torch.bfloat16 else "float32",
        threads=arguments.threads,
        batch=arguments.batch,
    )
    use_process(settings)
    direct = settings.model_copy(update={"convolution": "direct"})
    for make in (resnet50, shipped):
        name, plain = make(direct)
        chip = plain.card.chip_px
        flops = flops_per_chip(plain.card)
        for detector in (plain, make(settings)[1]):
            seconds = forward_seconds(detector, chip)
            rate = flops / seconds
            what = f"{name}, {detector.runs_on}"
            figures += [
                Figure(f"{what}: a chip of {chip} px", 1000 * seconds, "ms"),
                Figure(f"{what}: arithmetic of direct convolution", rate / 1e9, "GFLOP/s"),
                at_least(f"{what}: over the product's rate", rate / ceiling, "", least),
            ]
    tell(f"network-{device.type}", figures, threads=arguments.threads, precision=str(dtype))


def resnet50(settings: DetectorSettings) -> tuple[str, Detector]:
    """Return torchvision's RetinaNet-R50 with random weights, as DeepForest has it."""
    card = resnet(quick=False)
    return "RetinaNet-R50", Detector(build(card), card, settings)


def shipped(settings: DetectorSettings) -> tuple[str, Detector]:
    """Return the shipped model."""
    model = open_model("naip-trees")
    return model.card.name, Detector(load_network(model), model.card, settings)


def some_pixels(detector: Detector, chip: int) -> Tensor:
    """Return a batch of noise, as the network takes it."""
    shape = (detector.batch, len(detector.card.bands), chip, chip)
    chips = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    return detector.prepare(chips)


@torch.inference_mode()
def forward_seconds(detector: Detector, chip: int) -> float:
    """Return the seconds of a network's whole forward pass, a chip."""
    pixels = some_pixels(detector, chip)
    network = detector.network
    network(pixels)

    def work() -> None:
        network(pixels)
        settle(detector.device)

    return best_of(5, work) / detector.batch


@torch.inference_mode()
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of a product of square matrices."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device).to(dtype) for _ in range(2))
    a @ b

    def work() -> None:
        a @ b
        settle(device)

    return 2 * MATRIX**3 / best_of(5, work)


def settle(device: torch.device) -> None:
    """Wait for a GPU to be done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
