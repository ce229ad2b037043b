"""G5: DeepForest and SAHI on the same GPU, with the same weights, on one image in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection import retinanet_resnet50_fpn

from benchmarks.figures import Figure
from benchmarks.gpu_timing import Bench, noise_chips, resnet, settings_for
from scenesweep.model.files.convert import import_weights, write_model
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.detector import load_detector

_SCORE = 0.3
_OVERLAP = 0.0
"""Without overlap, all tools look at the same chips: with it, the others would have more."""


def peers(bench: Bench) -> list[Figure]:
    """Measure chips per second of the three tools; a tool that is not installed is left out."""
    across = 2 if bench.quick else 8
    chips = noise_chips(bench, resnet(bench.quick), across**2)
    px = chips.shape[-1]
    network = retinanet_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=1,
        score_thresh=_SCORE,
        min_size=px,  # chips are not resized
    )
    image = chips.reshape(across, across, 3, px, px).transpose(0, 3, 1, 4, 2)
    image = image.reshape(across * px, across * px, 3)
    own = _own_rate(bench, network, chips)
    figures = [Figure("scenesweep's detector", own, "chips/s")]
    others = []
    for name, measure in (("DeepForest", _deepforest), ("SAHI", _sahi)):
        try:
            rate = across**2 / measure(network.to(bench.device).eval(), image, px)
        except ImportError as error:
            print(f"  {name} is not installed: {error}")
            continue
        others.append(rate)
        figures.append(Figure(name, rate, "chips/s"))
    if others:
        bench.known["peers"] = own / max(others)
    return figures


def _own_rate(bench: Bench, network: torch.nn.Module, chips: NDArray[np.uint8]) -> float:
    card = resnet(False)
    inference = card.inference.model_copy(update={"score_threshold": _SCORE})
    with tempfile.TemporaryDirectory() as folder:
        weights, model = Path(folder) / "weights.pth", Path(folder) / "model.safetensors"
        torch.save(network.state_dict(), weights)
        write_model(model, card, import_weights(weights, card))
        detector = load_detector(open_model(str(model)), settings_for(bench), inference=inference)
    return len(chips) / bench.seconds(lambda: detector.detect(chips))


def _deepforest(network: torch.nn.Module, image: NDArray[np.uint8], px: int) -> float:
    from deepforest.main import deepforest

    # With a network of its own, it downloads no weights.
    labels = {"object": 0}
    model = deepforest(
        model=network,
        config_args={"num_classes": 1, "label_dict": labels, "score_thresh": _SCORE},
    )
    model.set_labels(labels)
    return _second_call(
        lambda: model.predict_tile(image=image, patch_size=px, patch_overlap=_OVERLAP)
    )


def _sahi(network: torch.nn.Module, image: NDArray[np.uint8], px: int) -> float:
    from sahi import AutoDetectionModel
    from sahi.predict import get_sliced_prediction

    model = AutoDetectionModel.from_pretrained(
        model_type="torchvision",
        model=network,
        confidence_threshold=_SCORE,
        category_mapping={"0": "object"},
        device=str(next(network.parameters()).device),
    )
    return _second_call(
        lambda: get_sliced_prediction(
            image,
            model,
            slice_height=px,
            slice_width=px,
            overlap_height_ratio=_OVERLAP,
            overlap_width_ratio=_OVERLAP,
            perform_standard_pred=False,
        )
    )


def _second_call(work: Callable[[], object]) -> float:
    """Return the seconds of the second of two calls: the first one warms up."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
