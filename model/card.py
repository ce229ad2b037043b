"""The model card: everything about a detector that is not its weights.

The card travels inside the weights file (`model.checkpoint`), so a model cannot be run at a
scale, with bands or with thresholds other than those it was made for without saying so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.errors import ModelError

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


class Frozen(BaseModel):
    """A value read from YAML or JSON: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(Frozen):
    """How to build the network; the defaults are those of Lin et al. 2017 (RetinaNet)."""

    kind: Literal["retinanet"] = "retinanet"
    backbone: Backbone = "resnet50"
    levels: tuple[int, int] = (3, 7)
    """First and last pyramid level, P2 to P7; level l has a stride of 2**l px."""
    channels: int = Field(256, ge=8)
    anchor_sizes_px: tuple[tuple[float, ...], ...] = (
        (32.0, 40.3, 50.8),
        (64.0, 80.6, 101.6),
        (128.0, 161.3, 203.2),
        (256.0, 322.5, 406.4),
        (512.0, 645.1, 812.7),
    )
    """Square-root areas of the anchors, one tuple a level. A level with an empty tuple gives
    context to the levels below it and is not searched itself."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    head_convs: int = Field(4, ge=1, le=4)
    """Convolutions before the output layer of each head."""
    head_norm: Literal["none", "group"] = "none"
    prior: float = Field(0.01, gt=0, lt=1)
    """Score that an untrained network gives to every anchor (paper, section 4.1)."""

    @model_validator(mode="after")
    def _levels_and_anchors_agree(self) -> Self:
        first, last = self.levels
        if not (2 <= first <= 5 and first <= last and last in (2, 3, 4, 5, 7)):
            raise ValueError(
                f"levels must run from 2..5 to 2..5 or 7 (P6 comes with P7), got {self.levels}"
            )
        if len(self.anchor_sizes_px) != last - first + 1:
            raise ValueError(
                f"anchor_sizes_px needs one tuple for each of the {last - first + 1} levels "
                f"P{first}..P{last}, got {len(self.anchor_sizes_px)}"
            )
        if len({len(sizes) for sizes in self.anchor_sizes_px if sizes}) != 1:
            raise ValueError("searched levels must have the same number of anchor sizes, some > 0")
        return self

    @property
    def searched(self) -> tuple[int, ...]:
        """Indices into the pyramid of the levels that have anchors."""
        return tuple(i for i, sizes in enumerate(self.anchor_sizes_px) if sizes)

    @property
    def anchors_per_cell(self) -> int:
        """Number of anchors at every position of a searched level."""
        return max(len(sizes) for sizes in self.anchor_sizes_px) * len(self.aspect_ratios)


class Scaling(Frozen):
    """How source values become the 0..255 that the network was trained on.

    uint8 sources are taken as they are. Other types are stretched linearly from
    `source_range` when it is given, else from the percentiles of the whole scene.
    """

    source_range: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (2.0, 98.0)
    mean: tuple[float, ...] = ()
    """Per band, of values divided by 255; empty: 0.5 for each band."""
    std: tuple[float, ...] = ()
    """Per band, of values divided by 255; empty: 0.25 for each band."""


class Inference(Frozen):
    """Thresholds and caps. The caps are generous, and reaching one is counted and reported."""

    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms_iou: float = Field(0.5, gt=0, le=1)
    topk_per_level: int = Field(4000, ge=1)
    max_detections_per_chip: int = Field(4000, ge=1)


class ModelCard(Frozen):
    """What a model finds, what it must be shown, and how it was built."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = "1"
    description: str = ""
    licence: str = ""
    classes: tuple[str, ...] = Field(min_length=1)
    bands: tuple[str | int, ...] = Field(min_length=1)
    """Names (matched to band descriptions, then to colour interpretations) or 1-based indices."""
    gsd_m: float = Field(gt=0)
    """Ground sample distance that the network must see, in metres per pixel."""
    chip_px: int = Field(512, ge=64, le=4096)
    margin_px: int = Field(32, ge=0)
    """Overlap on each inner side of a chip: at least the size of the largest object."""
    architecture: Architecture = Architecture()
    scaling: Scaling = Scaling()
    inference: Inference = Inference()
    training: dict[str, Any] = Field(default_factory=dict)
    """How it was made and how good it was: for people, not read by the program."""

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self.scaling, name)) not in (0, len(self.bands)):
                raise ValueError(f"scaling.{name} needs one number for each of {self.bands}")
        if self.chip_px % self.stride_px:
            raise ValueError(f"chip_px must be a multiple of {self.stride_px}, got {self.chip_px}")
        if 2 * self.margin_px >= self.chip_px:
            raise ValueError(f"margin_px must be under half of chip_px ({self.chip_px})")
        return self

    @property
    def stride_px(self) -> int:
        """Stride of the coarsest backbone level: chips are a multiple of it."""
        return int(2 ** min(self.architecture.levels[1], 5))


def parse_card(data: object, *, origin: str) -> ModelCard:
    """Check `data` (the parsed YAML or JSON of a card) and return the card.

    Raises:
        ModelError: naming `origin` and each key that is wrong.
    """
    try:
        return ModelCard.model_validate(data)
    except ValidationError as error:
        raise ModelError(f"{origin}: not a model card: {explain(error)}") from error


def read_card(path: Path) -> ModelCard:
    """Read a card from a YAML file.

    Raises:
        ModelError: when the file is missing, not YAML, or not a card.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"{path}: cannot read a model card: {error}") from error
    return parse_card(data, origin=str(path))


def explain(error: ValidationError) -> str:
    """Put a pydantic error on one line: each wrong key with what was expected."""
    parts = []
    for item in error.errors():
        key = ".".join(str(step) for step in item["loc"]) or "value"
        said = "there is no such name" if item["type"] == "extra_forbidden" else item["msg"]
        parts.append(f"{key}: {said}")
    return "; ".join(parts)
