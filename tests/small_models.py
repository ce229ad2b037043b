"""A small model file with random weights, and chips of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scenesweep.model.card import ModelCard
from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.model.networks.network import build
from tests.rasters import make_card

LOGITS = "head.classification_head.cls_logits"


def a_model(tmp_path: Path, card: ModelCard | None = None, bias: float = -2.0) -> ModelFile:
    """Write an untrained model that finds something everywhere."""
    torch.manual_seed(0)
    network = build(card or make_card())
    torch.nn.init.constant_(network.get_parameter(f"{LOGITS}.bias"), bias)
    torch.nn.init.normal_(network.get_parameter(f"{LOGITS}.weight"), std=0.3)
    save_model(tmp_path / "m.safetensors", card or make_card(), network.state_dict())
    return open_model(str(tmp_path / "m.safetensors"))


def noise(count: int, bands: int = 1, size: int = 64) -> NDArray[np.uint8]:
    shape = (count, bands, size, size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
