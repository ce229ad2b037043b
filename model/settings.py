"""Settings of detection and of training. This module imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from scenesweep.model.architecture import Frozen

Precision = Literal["auto", "bfloat16", "float32"]


SYMMETRIES = {
    "plain": (False, False, False),
    "flip-x": (False, True, False),
    "flip-y": (False, False, True),
    "turn-180": (False, True, True),
    "transpose": (True, False, False),
    "turn-90": (True, True, False),
    "turn-270": (True, False, True),
    "anti-transpose": (True, True, True),
}
"""The symmetries of the square: transposed; then mirrored along x; along y. Turns are clockwise."""
Rule = Literal["weighted", "highest"]
_SCALES = (0.25, 4.0)


def split_view(name: str) -> tuple[str, float]:
    """Split the name of a view, such as `flip-x@1.33`, into its symmetry and its scale.

    Raises:
        ValueError: when it is not the name of a view.
    """
    symmetry, sign, text = name.partition("@")
    try:
        scale = float(text) if sign else 1.0
    except ValueError:
        scale = 0.0
    if symmetry not in SYMMETRIES or not _SCALES[0] <= scale <= _SCALES[1]:
        raise ValueError(
            f"expected one of {', '.join(SYMMETRIES)}, with or without @ and a scale from "
            f"{_SCALES[0]:g} to {_SCALES[1]:g}, such as flip-x@1.33; got {name[:40]!r}"
        )
    return symmetry, scale


class Views(Frozen):
    """In which views a detector looks at each chip, and how it makes one set of boxes of them."""

    views: tuple[str, ...] = ("plain",)
    """Views in which the detector looks at each window: `plain`, `flip-x`, `flip-y`, `turn-90`,
    `turn-180`, `turn-270`, `transpose`, `anti-transpose`; `@` and a scale resizes it, such as
    `plain@1.33`. Each view costs about as much as the first, times the square of its scale."""
    views_rule: Rule = "weighted"
    """How the boxes of several views become one set. `weighted`: weighted box fusion; scores are
    means over the views, so choose the score threshold again. `highest`: NMS over all boxes."""

    @field_validator("views")
    @classmethod
    def _are_views(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        views = [split_view(name) for name in names]
        if not views or len(set(views)) < len(views):
            given = ", ".join(names) or "none"
            raise ValueError(f"expected one or more different views, got {given}")
        return names

    @property
    def is_plain(self) -> bool:
        """Whether there is only the chip as it is."""
        return [split_view(name) for name in self.views] == [("plain", 1.0)]

    def same_scores(self, other: Views) -> bool:
        """Whether a detector gives the same scores in these views as in those of `other`."""
        if self.is_plain or other.is_plain:
            return self.is_plain and other.is_plain
        mine, others = ({split_view(name) for name in v.views} for v in (self, other))
        return mine == others and self.views_rule == other.views_rule


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
    """Passes over the training chips (see `empty_chips`)."""
    empty_chips: float | None = Field(None, ge=0)
    """Chips without objects in an epoch, per chip with objects. Each epoch draws others. Empty: all
    of them. Use it if most of the ground has no object, such as open water."""
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
    keep: Literal["best", "last"] = "best"
    """Weights that are written: those of the epoch with the best validation metric, or those of the
    last one. With `last`, validation runs once, at the end, and its chips choose no epoch."""
    early_stop: int | None = Field(None, ge=1)
    """Stop after this many epochs without a better validation metric."""
    seed: int = 0
    """Seed of the initial weights, the order of the chips and their augmentation."""
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if self.keep == "last" and self.early_stop is not None:
            raise ValueError("early_stop: works only with keep: best; remove one of the two")
        return self
