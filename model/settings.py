"""Settings of detection and of training. This module imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scenesweep.model.architecture import Frozen

Precision = Literal["auto", "bfloat16", "float32"]


class DetectorSettings(Frozen):
    """Where and how a network runs. Each can change the last bits, so the fingerprint has all."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto`: cuda if there is a GPU, else cpu."""
    precision: Precision = "auto"
    """`auto`: bfloat16 where the processor computes in it, else float32."""
    convolution: Literal["auto", "direct"] = "auto"
    """`auto`: on a CPU with AVX2, in float32 and on one thread, large 3 x 3 convolutions use
    Winograd's minimal filtering. It is 1.2 to 1.5 times as fast; scores differ by some 1e-6.
    `direct`: convolutions as torch computes them."""
    batch: int | None = None
    """Chips in a forward pass. Empty: 1 on a CPU; on a GPU a number that follows from the model,
    the chip's size and the GPU's memory, 16 for a ResNet-50 RetinaNet on chips of 800 pixels."""
    threads: int = Field(1, ge=1)
    """CPU threads of one detector. By default there is a detector for each CPU."""


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
    """Passes over the training chips."""
    batch: int = Field(8, ge=1)
    """Chips per forward pass, all workers together."""
    accumulate: int = Field(1, ge=1)
    """Forward passes per step of the optimiser."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """Optimiser and its schedule, as above."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest learning rate of the run."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of the optimiser."""
    warmup: float = Field(0.15, ge=0, lt=1)
    """Share of the run over which the learning rate rises."""
    clip_norm: float = Field(10.0, gt=0)
    """Gradients with a larger norm are scaled down to it."""
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Decay of the averaged weights, which are evaluated and saved. 0 turns averaging off."""
    precision: Precision = "auto"
    """`auto`: bfloat16 autocast if the processor computes in bfloat16. Validation runs in the same
    precision, so with `auto` a GPU may choose another best epoch than a CPU without bfloat16."""
    early_stop: int | None = Field(None, ge=1)
    """Stop after this many epochs without a better validation metric."""
    seed: int = 0
    """Seed of the initial weights, the order of the chips and their augmentation."""
    augmentation: Augmentation = Augmentation()
