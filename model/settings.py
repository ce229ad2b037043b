"""How detectors run and how they are trained: values without torch behind them."""

from __future__ import annotations

from typing import Literal

from model.card import Frozen


class DetectorSettings(Frozen):
    """Where and how a network runs. Part of the fingerprint: each can change the last bits."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    batch: int | None = None
    """Chips per forward pass; default 1 on a CPU and 16 on a GPU."""
    threads: int = 1
    """CPU threads of one detector; by default there is a detector for each CPU."""


class Recipe(Frozen):
    """How to train. AdamW on a one-cycle schedule, averaged weights, bfloat16 autocast."""

    epochs: int = 14
    batch: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    clip_norm: float = 10.0
    ema_decay: float = 0.995
    band_jitter: float = 0.15
    seed: int = 0
