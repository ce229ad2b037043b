"""How detectors run and how they are trained: values without torch behind them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scenesweep.model.architecture import Frozen


class DetectorSettings(Frozen):
    """Where and how a network runs. Part of the fingerprint: each can change the last bits."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto`: cuda if there is a GPU, else cpu."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto`: bfloat16 where the processor computes in it, else float32."""
    convolution: Literal["auto", "direct"] = "auto"
    """`auto`: on a CPU with AVX2, in float32 and on one thread, large 3 x 3 convolutions use
    Winograd's minimal filtering. It is 1.2 to 1.5 times as fast; scores differ by some 1e-6.
    `direct`: convolutions as torch computes them."""
    batch: int | None = None
    """Chips in a forward pass. Empty: 1 on a CPU, 16 on a GPU."""
    threads: int = Field(1, ge=1)
    """CPU threads of one detector. By default there is a detector for each CPU."""


class Augmentation(Frozen):
    """How training chips are varied. Zero or empty turns one off."""

    turns: bool = True
    """The eight symmetries of the square: flips and 90-degree turns."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the factor by which a chip is enlarged before a crop of its own size."""
    stretch: float = Field(1.0, ge=1)
    """Width is enlarged against height by a factor between this and its inverse."""
    crop_px: int | None = Field(None, ge=64)
    """Side of the crops trained on. Empty: the chip's."""
    band_jitter: float = Field(0.15, ge=0, le=1)
    """Brightness and contrast, of all bands together and of each."""
    band_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of chips on which each band of the card's `missing_bands_ok` is blanked."""
    min_visible: float = Field(0.3, gt=0, le=1)
    """An object of which less than this share is left in the crop is dropped."""


class Recipe(Frozen):
    """How to train.

    `adamw` goes with one cycle of the learning rate (Smith & Topin 2018, arXiv:1708.07120),
    `sgd` with the steps of the RetinaNet paper, section 4.1: momentum 0.9, a tenth of the rate
    after 2/3 and after 8/9 of the run. The paper's rate is 0.01 for 16 chips, its weight decay
    0.0001.
    """

    epochs: int = Field(14, ge=1)
    batch: int = Field(8, ge=1)
    """Chips in a forward pass, all workers together."""
    accumulate: int = Field(1, ge=1)
    """Forward passes for a step of the optimiser."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float = Field(0.15, ge=0, lt=1)
    """Share of the run over which the learning rate rises."""
    clip_norm: float = Field(10.0, gt=0)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Of the averaged weights, which are the ones judged and kept; 0 turns averaging off."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto`: bfloat16 autocast where the processor computes in it."""
    early_stop: int | None = Field(None, ge=1)
    """Stop after so many epochs without a better validation metric."""
    seed: int = 0
    augmentation: Augmentation = Augmentation()
