"""What the GPU benchmark's measurements share: the device, timing, networks and noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenesweep.model.architecture import Architecture
from scenesweep.model.card import Inference, ModelCard
from scenesweep.model.files.checkpoint import load_network
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.batch_size import batch_on_gpu
from scenesweep.model.inference.detector import Detector
from scenesweep.model.inference.fold import fold_batch_norms
from scenesweep.model.inference.fuse import fuse, move
from scenesweep.model.networks.network import build
from scenesweep.model.networks.retinanet import RetinaNet
from scenesweep.model.settings import DetectorSettings

SHIPPED = "naip-trees"
BUILT_IN = (SHIPPED, "overhead-buildings")
_SIZES = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))


@dataclass(frozen=True, slots=True)
class Bench:
    """Where to measure, and how much. `known` holds figures that later items need."""

    device: torch.device
    quick: bool
    known: dict[str, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def batches(self) -> tuple[int, ...]:
        return (2,) if self.quick else (8, 16, 32, 64, 128)

    @property
    def batch(self) -> int:
        """Chips in a batch of single layers."""
        return 2 if self.quick else 16

    def batch_of(self, card: ModelCard) -> int:
        """Return how many chips a detector of this card computes together on this GPU."""
        if self.quick or not self.on_gpu:
            return 2
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return batch_on_gpu(card, (card.chip_px, card.chip_px), memory)

    def px(self, card: ModelCard) -> int:
        return 64 if self.quick else card.chip_px

    def cards(self) -> tuple[ModelCard, ModelCard]:
        """Return the RetinaNet-R50 of G1 (quick: a ResNet-18) and the shipped model of G4."""
        return resnet(self.quick), open_model(SHIPPED).card

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the mean time of a call after two calls of warm-up, over about half a second."""
        work()
        single = self._timed(work, 1)
        calls = 1 if self.quick else max(3, min(200, int(0.5 / max(single, 1e-6))))
        return self._timed(work, calls)

    def once(self, work: Callable[[], object]) -> float:
        """Return the time of one call, without warm-up."""
        return self._timed(work, 1)

    def _timed(self, work: Callable[[], object], calls: int) -> float:
        if not self.on_gpu:
            started = time.perf_counter()
            for _ in range(calls):
                work()
            return (time.perf_counter() - started) / calls
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(calls):
            work()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1000 / calls


class NeedsGpu(Exception):
    """An item cannot be measured on a CPU."""


def resnet(quick: bool) -> ModelCard:
    """Return the card of torchvision's RetinaNet-R50, as DeepForest has it; quick: an R18."""
    return ModelCard(
        name="resnet18" if quick else "resnet50",
        classes=("object",),
        bands=("red", "green", "blue"),
        gsd_m=0.1,
        chip_px=800,
        architecture=Architecture(
            backbone="resnet18" if quick else "resnet50",
            backbone_norm="frozen",
            extra_levels_from="p5",
            anchor_sizes_px=_SIZES,
        ),
    )


def make_network(card: ModelCard) -> RetinaNet:
    """Return the network of a card on the CPU, batch norms folded; random weights have a seed."""
    torch.manual_seed(0)
    shipped = card.name in BUILT_IN
    network = load_network(open_model(card.name)) if shipped else build(card)
    if not isinstance(network, RetinaNet):
        raise TypeError(f"expected a RetinaNet, got {type(network).__name__}")
    if not shipped:
        _enliven(network)
    network = network.eval().requires_grad_(False)
    fold_batch_norms(network)
    return network


def _enliven(network: RetinaNet) -> None:
    """Make random heads give outputs that differ from cell to cell."""
    for name, weight in network.head.named_parameters():
        if name.endswith("weight") and weight.ndim == 4:
            torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    for weight in network.head.regression_head.get_submodule("bbox_reg").parameters():
        torch.nn.init.normal_(weight, std=1e-3)


def placed(network: RetinaNet, bench: Bench, dtype: torch.dtype, *, fused: bool) -> RetinaNet:
    """Return the network on the device, with fused layers or without. The given one may change."""
    if fused:
        fuse(network)
    move(network, bench.device, dtype)
    return network


def noise(bench: Bench, card: ModelCard, batch: int, dtype: torch.dtype) -> Tensor:
    """Return normalised chips of noise (batch, bands, px, px); the 17th is the first again."""
    px = bench.px(card)
    shape = min(batch, 16), len(card.bands), px, px
    chips = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(bench.device, dtype)
    chips = chips.repeat(-(-batch // 16), 1, 1, 1)[:batch]
    return chips.contiguous(memory_format=torch.channels_last)


def noise_chips(bench: Bench, card: ModelCard, count: int) -> NDArray[np.uint8]:
    """Return chips of noise (count, bands, px, px) uint8: smooth blobs, and no two are equal."""
    px, draw = bench.px(card), np.random.default_rng(0)
    coarse = draw.integers(0, 255, (count, len(card.bands), px // 8, px // 8), dtype=np.uint8)
    return coarse.repeat(8, axis=2).repeat(8, axis=3)


def settings_for(bench: Bench) -> DetectorSettings:
    """Return the settings of the measured detectors: bfloat16 on a GPU, and its own batch."""
    return DetectorSettings(
        device="cuda" if bench.on_gpu else "cpu",
        precision="bfloat16" if bench.on_gpu else "float32",
        convolution="direct",
        batch=None if bench.on_gpu and not bench.quick else 2,
    )


def detector_for(bench: Bench, card: ModelCard, inference: Inference | None = None) -> Detector:
    """Return a detector of the card; `inference` replaces its thresholds."""
    network = load_network(open_model(SHIPPED)) if card.name == SHIPPED else build(card)
    if card.name != SHIPPED and isinstance(network, RetinaNet):
        torch.manual_seed(0)
        _enliven(network)
    return Detector(network, card, settings_for(bench), inference=inference)


def threshold_for(network: RetinaNet, chips: Tensor, candidates: int) -> float:
    """Return the score threshold that leaves about so many candidates in each chip."""
    with torch.inference_mode():
        outputs = network(chips)
        scores = torch.cat([_scores(level.logits, level.quality) for level in outputs], dim=1)
    if candidates == 0:
        return 0.9999
    return float(scores.topk(min(candidates + 1, scores.shape[1]), dim=1).values[:, -1].mean())


def _scores(logits: Tensor, quality: Tensor | None) -> Tensor:
    scores = logits.float().sigmoid()
    if quality is not None:
        scores = scores * quality.float().sigmoid()[..., None]
    return scores.flatten(1)
