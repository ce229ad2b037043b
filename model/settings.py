"""Settings of detection and of training. This module imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scenesweep.model.architecture import Frozen


class DetectorSettings(Frozen):
    """Where and how a network runs. Each can change the last bits, so the fingerprint has all."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    convolution: Literal["auto", "direct"] = "auto"
    """`auto`: Winograd convolutions on a CPU with one thread in float32, else direct ones."""
    batch: int | None = None
    """Chips per forward pass. Empty: 1 on a CPU and 16 on a GPU."""
    threads: int = Field(1, ge=1)
    """CPU threads of one detector. By default each CPU has a detector."""


class Augmentation(Frozen):
    """How training chips are augmented. Zero or empty turns an augmentation off."""

    turns: bool = True
    """The eight symmetries of the square: flips and turns by 90 degrees."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the factor by which a chip is enlarged before it is cropped."""
    stretch: float = Field(1.0, ge=1)
    """The ratio of width to height changes by a factor between this and its inverse."""
    crop_px: int | None = Field(None, ge=64)
    """Side of the crops for training. Empty: that of the chips."""
    band_jitter: float = Field(0.15, ge=0, le=1)
    """Strength of changes of brightness and contrast, of all bands together and of each band."""
    band_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of chips in which a band of the card's `missing_bands_ok` is replaced by its mean."""
    min_visible: float = Field(0.3, gt=0, le=1)
    """An object is dropped when less than this share of its area is left in the crop."""


class Recipe(Frozen):
    """How to train.

    `adamw` uses one cycle of the learning rate (Smith & Topin 2018, arXiv:1708.07120). `sgd` uses
    momentum 0.9 and the steps of the RetinaNet paper, section 4.1: a tenth of the rate after 2/3
    and after 8/9 of the run. The paper's rate is 0.01 for 16 chips, its weight decay 0.0001.
    """

    epochs: int = Field(14, ge=1)
    batch: int = Field(8, ge=1)
    """Chips per forward pass, all workers together."""
    accumulate: int = Field(1, ge=1)
    """Forward passes per step of the optimiser."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float = Field(0.15, ge=0, lt=1)
    """Share of the run over which the learning rate rises."""
    clip_norm: float = Field(10.0, gt=0)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Decay of the averaged weights, which are evaluated and saved. 0 turns averaging off."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto`: bfloat16 autocast if the processor computes in bfloat16."""
    early_stop: int | None = Field(None, ge=1)
    """Stop after this many epochs without a better validation metric."""
    seed: int = 0
    augmentation: Augmentation = Augmentation()
