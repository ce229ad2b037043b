"""The parts of a model card that say how a network is built and what it is trained towards.

Defaults are those of Lin et al. 2017, "Focal Loss for Dense Object Detection"
(arXiv:1708.02002). docs/model.md maps every option to its source and its test.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Backbone = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
]
Norm = Literal["batch", "frozen", "sync", "group"]
GROUPS = 32
"""Of every group normalisation (Wu & He 2018)."""


class Frozen(BaseModel):
    """A value read from YAML or JSON: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(Frozen):
    """How to build the network.

    `retinanet` is ours. `fcos`, `faster_rcnn` and `ssd` are torchvision's modules on the same
    backbone and pyramid, for comparison: they take the options up to `aspect_ratios` and bring
    their own heads, targets and losses.
    """

    kind: Literal["retinanet", "fcos", "faster_rcnn", "ssd"] = "retinanet"
    backbone: Backbone = "resnet50"
    backbone_norm: Norm = "batch"
    """`frozen` keeps statistics and scale of given weights, `sync` shares batches between GPUs."""
    norm_eps: float = Field(1e-5, ge=0)
    """Of the backbone's normalisation; 0 in torchvision's RetinaNet v1 weights of COCO."""
    frozen_stages: int = Field(0, ge=0, le=5)
    """Parts of the backbone that are not trained: 1 is the stem, 2 to 5 the four layers too."""
    levels: tuple[int, int] = (3, 7)
    """First and last pyramid level, P2 to P7; level l has a stride of 2**l px."""
    extra_levels_from: Literal["c5", "p5"] = "c5"
    """What P6 and P7 are made of: the backbone's last output, or the pyramid's P5."""
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
    """Height over width."""
    head_convs: int = Field(4, ge=1, le=8)
    """Convolutions before the output layer of each head."""
    head_channels: int | None = Field(None, ge=8)
    """Channels of these convolutions. Empty: those of the pyramid."""
    head_norm: Literal["none", "group"] = "none"
    prior: float = Field(0.01, gt=0, lt=1)
    """Score that an untrained network gives to every anchor (paper, section 4.1)."""
    iou_branch: bool = False
    """A third output foretells the IoU of each box with its object; it is multiplied into the
    score (Wu et al. 2020, IoU-aware single-stage detector, arXiv:1912.05992)."""

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        first, last = self.levels
        if not 2 <= first <= min(last, 5) <= last <= 7:
            raise ValueError(f"levels must run from 2..5 up to 7 at most, got {self.levels}")
        if self.kind == "fcos":
            return self._check_heads()
        if len(self.anchor_sizes_px) != last - first + 1:
            raise ValueError(
                f"anchor_sizes_px needs one tuple for each of the {last - first + 1} levels "
                f"P{first}..P{last}, got {len(self.anchor_sizes_px)}"
            )
        if len({len(sizes) for sizes in self.anchor_sizes_px if sizes}) != 1:
            raise ValueError("searched levels must have the same number of anchor sizes, some > 0")
        if self.kind != "retinanet" and not all(self.anchor_sizes_px):
            raise ValueError(f"{self.kind} searches every level: each needs anchor sizes")
        if last > 5 and not self.anchor_sizes_px[-1]:
            raise ValueError(f"P{last} gives no context to others: give it anchor sizes or drop it")
        return self._check_heads()

    def _check_heads(self) -> Self:
        if self.kind != "retinanet":
            own = ("head_convs", "head_channels", "head_norm", "prior", "iou_branch")
            given = [n for n in own if getattr(self, n) != type(self).model_fields[n].default]
            if given:
                raise ValueError(f"{self.kind} brings its own heads: {', '.join(given)} not used")
        width = self.head_channels or self.channels
        if self.head_norm == "group" and width % GROUPS:
            raise ValueError(f"head_norm group has {GROUPS} groups: {width} channels do not divide")
        return self

    @property
    def searched(self) -> tuple[int, ...]:
        """Indices into the pyramid of the levels that have anchors."""
        return tuple(i for i, sizes in enumerate(self.anchor_sizes_px) if sizes)

    @property
    def anchors_per_cell(self) -> int:
        """Number of anchors at every position of a searched level."""
        return max(len(sizes) for sizes in self.anchor_sizes_px) * len(self.aspect_ratios)


class Assignment(Frozen):
    """Which anchors are to find which object."""

    kind: Literal["max_iou", "atss"] = "max_iou"
    foreground_iou: float = Field(0.5, gt=0, le=1)
    background_iou: float = Field(0.4, ge=0, le=1)
    """Anchors between the two are left out of the classification loss."""
    low_quality_matches: bool = True
    """The best anchors of an object are its own even below `foreground_iou`."""
    atss_candidates: int = Field(9, ge=1)
    """Per level (k in Zhang et al. 2020, arXiv:1912.02424, section 4.2)."""

    @model_validator(mode="after")
    def _thresholds_agree(self) -> Self:
        if self.background_iou > self.foreground_iou:
            raise ValueError("background_iou must not be above foreground_iou")
        return self


class Losses(Frozen):
    """What a network is trained towards.

    `focal`: Lin et al. 2017, equation 5; `gamma: 0` is weighted cross-entropy.
    `quality_focal`: Li et al. 2020 (arXiv:2006.04388), equation 3, its beta being `gamma`; the
    target is the IoU of the box found with its object. `class_balanced_focal`: Cui et al. 2019
    (arXiv:1901.05555), equation 8, in the place of alpha. `ghm`: Li et al. 2019
    (arXiv:1811.05181), GHM-C, equation 9.
    """

    classification: Literal["focal", "quality_focal", "class_balanced_focal", "ghm"] = "focal"
    alpha: float | tuple[float, ...] | Literal["frequency"] | None = 0.25
    """Weight of an object against 1 - alpha of the ground; one number, one for each class, from
    how often each class occurs (`class_counts`), or none."""
    gamma: float = Field(2.0, ge=0)
    class_balance: float = Field(0.9999, ge=0, lt=1)
    """beta of class_balanced_focal."""
    class_counts: tuple[int, ...] = ()
    """Objects of each class in the training set; training fills it in."""
    ghm_bins: int = Field(10, ge=1)
    ghm_momentum: float = Field(0.75, ge=0, lt=1)
    boxes: Literal["smooth_l1", "l1", "giou", "ciou"] = "smooth_l1"
    beta: float = Field(0.11, gt=0)
    """Where smooth L1 turns from quadratic to linear, in units of the encoded box."""
    box_weight: float = Field(1.0, gt=0)
    iou_weight: float = Field(1.0, gt=0)
    """Of the IoU branch, where the architecture has one."""
