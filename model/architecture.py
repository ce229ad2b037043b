"""The parts of a model card that define the network, its training targets and its losses.

Defaults are those of Lin et al. 2017, "Focal Loss for Dense Object Detection"
(arXiv:1708.02002). docs/model.md names the source and the test of every option.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
"""torchvision's backbones."""
TIMM = "timm/"
"""A backbone of timm is written with this prefix, such as `timm/efficientnet_lite0`."""
Norm = Literal["batch", "frozen", "sync", "group"]
GROUPS = 32
"""Number of groups of every group normalisation (Wu & He 2018)."""


class Frozen(BaseModel):
    """A value read from YAML or JSON: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(Frozen):
    """How to build the network.

    `retinanet` is implemented here. `fcos`, `faster_rcnn` and `ssd` are torchvision's modules on
    the same backbone and pyramid, for comparison. They use the options up to `aspect_ratios`, and
    have heads, targets and losses of their own.
    """

    kind: Literal["retinanet", "fcos", "faster_rcnn", "ssd"] = "retinanet"
    backbone: str = "resnet50"
    """One of `BACKBONES`, or `timm/NAME`: a network of timm that has maps of the strides of
    `levels` up to 32. timm is imported only for the latter."""
    backbone_norm: Norm = "batch"
    """`frozen` keeps the statistics and scale of the initial weights; `sync` computes them over the
    batches of all GPUs. `batch` leaves other normalisations of a timm network as they are."""
    stride_in_1x1: bool = False
    """Put the stride of a ResNet's bottleneck block into its first convolution (1 x 1), as in He et
    al. 2016 and in the "caffe" weights of Detectron2 and mmdetection. torchvision has it in the
    second one."""
    norm_eps: float = Field(1e-5, ge=0)
    """Epsilon of the backbone's normalisation; 0 for torchvision's RetinaNet v1 weights of COCO."""
    frozen_stages: int = Field(0, ge=0, le=5)
    """Parts of the backbone that are not trained: 1 is the stem, 2 to 5 add the four layers. Of a
    timm network, k stands for all parts up to the map with stride 2**k."""
    levels: tuple[int, int] = (3, 7)
    """First and last pyramid level, P2 to P7; level l has a stride of 2**l px."""
    extra_levels_from: Literal["c5", "p5"] = "c5"
    """Source of P6 and P7: the backbone's last output, or the pyramid's P5."""
    conventions: Literal["torchvision", "detectron2", "mmdetection"] = "torchvision"
    """Details of another library, for its weights. `detectron2` and `mmdetection` do not round the
    sides of anchors to whole pixels; `mmdetection` has no ReLU between P6 and P7."""
    channels: int = Field(256, ge=8)
    anchor_sizes_px: tuple[tuple[float, ...], ...] = (
        (32.0, 40.3, 50.8),
        (64.0, 80.6, 101.6),
        (128.0, 161.3, 203.2),
        (256.0, 322.5, 406.4),
        (512.0, 645.1, 812.7),
    )
    """Square roots of the anchors' areas, one tuple per level. A level with an empty tuple has no
    anchors: it only gives context to the finer levels."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height divided by width."""
    head_convs: int = Field(4, ge=1, le=8)
    """Convolutions before the output layer of each head."""
    head_channels: int | None = Field(None, ge=8)
    """Channels of these convolutions. Empty: as many as the pyramid has."""
    head_norm: Literal["none", "group"] = "none"
    prior: float = Field(0.01, gt=0, lt=1)
    """Score of every anchor in an untrained network (paper, section 4.1)."""
    iou_branch: bool = False
    """Adds a third output that predicts the IoU of each box with its object. The score is
    multiplied by it (Wu et al. 2020, IoU-aware single-stage detector, arXiv:1912.05992)."""

    @field_validator("backbone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in BACKBONES and not re.fullmatch(TIMM + "[a-z0-9_]+", name):
            raise ValueError(
                f"expected one of {', '.join(BACKBONES)}, or {TIMM}NAME, got {name[:60]!r}"
            )
        return name

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        first, last = self.levels
        if not 2 <= first <= min(last, 5) <= last <= 7:
            raise ValueError(
                f"levels: expected a first one of 2 to 5 and a last one up to 7, got {self.levels}"
            )
        if self.kind == "fcos":
            return self._check_heads()
        if len(self.anchor_sizes_px) != last - first + 1:
            raise ValueError(
                f"anchor_sizes_px: expected one tuple for each of the {last - first + 1} levels "
                f"P{first}..P{last}, got {len(self.anchor_sizes_px)}"
            )
        if len({len(sizes) for sizes in self.anchor_sizes_px if sizes}) != 1:
            raise ValueError("anchor_sizes_px: expected as many sizes on every level that has any")
        if self.kind != "retinanet" and not all(self.anchor_sizes_px):
            raise ValueError(f"anchor_sizes_px: {self.kind} needs anchor sizes on every level")
        if last > 5 and not self.anchor_sizes_px[-1]:
            raise ValueError(
                f"P{last} is of no use: give it anchor sizes, or remove it from levels"
            )
        return self._check_heads()

    def _check_heads(self) -> Self:
        if self.kind != "retinanet":
            own = ("head_convs", "head_channels", "head_norm", "prior", "iou_branch")
            given = [n for n in own if getattr(self, n) != type(self).model_fields[n].default]
            if given:
                raise ValueError(f"{self.kind} has heads of its own; remove {', '.join(given)}")
        width = self.head_channels or self.channels
        if self.head_norm == "group" and width % GROUPS:
            raise ValueError(
                f"head_norm group: expected a multiple of {GROUPS} channels, got {width}"
            )
        return self

    @property
    def searched(self) -> tuple[int, ...]:
        """Indices of the pyramid levels that have anchors."""
        return tuple(i for i, sizes in enumerate(self.anchor_sizes_px) if sizes)

    @property
    def anchors_per_cell(self) -> int:
        """Number of anchors in each cell of a level that has any."""
        return max(len(sizes) for sizes in self.anchor_sizes_px) * len(self.aspect_ratios)


class Assignment(Frozen):
    """Which anchors are trained to predict which object."""

    kind: Literal["max_iou", "atss"] = "max_iou"
    foreground_iou: float = Field(0.5, gt=0, le=1)
    background_iou: float = Field(0.4, ge=0, le=1)
    """Anchors with an IoU between the two do not count in the classification loss."""
    low_quality_matches: bool = True
    """The best anchors of an object are assigned to it even below `foreground_iou`."""
    atss_candidates: int = Field(9, ge=1)
    """Candidates per level (k in Zhang et al. 2020, arXiv:1912.02424, section 4.2)."""

    @model_validator(mode="after")
    def _thresholds_agree(self) -> Self:
        if self.background_iou > self.foreground_iou:
            raise ValueError(
                f"background_iou: expected at most foreground_iou ({self.foreground_iou}), "
                f"got {self.background_iou}"
            )
        return self


class Losses(Frozen):
    """Which losses a network is trained with.

    `focal`: Lin et al. 2017, equation 5; `gamma: 0` is weighted cross-entropy.
    `quality_focal`: Li et al. 2020 (arXiv:2006.04388), equation 3, its beta being `gamma`; the
    target is the IoU of the predicted box with its object. `class_balanced_focal`: Cui et al. 2019
    (arXiv:1901.05555), equation 8, instead of alpha. `ghm`: Li et al. 2019
    (arXiv:1811.05181), GHM-C, equation 9.
    """

    classification: Literal["focal", "quality_focal", "class_balanced_focal", "ghm"] = "focal"
    alpha: float | tuple[float, ...] | Literal["frequency"] | None = 0.25
    """Weight of objects; the background has 1 - alpha. One number, one number per class,
    `frequency` (computed from `class_counts`), or empty for no weights."""
    gamma: float = Field(2.0, ge=0)
    class_balance: float = Field(0.9999, ge=0, lt=1)
    """beta of class_balanced_focal."""
    class_counts: tuple[int, ...] = ()
    """Objects of each class in the training set. Training fills it in."""
    ghm_bins: int = Field(10, ge=1)
    ghm_momentum: float = Field(0.75, ge=0, lt=1)
    boxes: Literal["smooth_l1", "l1", "giou", "ciou"] = "smooth_l1"
    beta: float = Field(0.11, gt=0)
    """Where smooth L1 changes from quadratic to linear, in units of the encoded box."""
    box_weight: float = Field(1.0, gt=0)
    iou_weight: float = Field(1.0, gt=0)
    """Weight of the loss of the IoU branch, if the architecture has one."""
