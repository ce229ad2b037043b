"""Recognise RetinaNets of several libraries from a state dict, to help with writing the card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

_LOGITS = "head.classification_head.cls_logits.bias"
_CENTRENESS = "head.regression_head.bbox_ctrness.bias"  # FCOS, which has no anchors
_BASIC = {2: "resnet18", 6: "resnet34"}
_BOTTLENECK = {6: "resnet50", 23: "resnet101", 36: "resnet152"}
_GROUPED = {(6, 4): "resnext50_32x4d", (23, 8): "resnext101_32x8d", (23, 4): "resnext101_64x4d"}


@dataclass(frozen=True, slots=True)
class Recognised:
    """A RetinaNet as recognised from its parameters; `architecture` holds lines of a model card."""

    classes: int
    anchors_per_cell: int
    architecture: dict[str, Any]

    def describe(self) -> str:
        """Describe the network, and the lines that its card needs."""
        lines = ", ".join(f"{name}: {value}" for name, value in self.architecture.items())
        return (
            f"the file looks like {self._name()} with {_count(self.classes, 'class')} and "
            f"{_count(self.anchors_per_cell, 'anchor')} per cell; its card needs "
            f"architecture: {{{lines}}} and classes: {self._classes()}"
        )

    def _name(self) -> str:
        backbone = self.architecture.get("backbone", "another backbone")
        if "conventions" in self.architecture:
            return f"a RetinaNet of {self.architecture['conventions']} on {backbone}"
        extra, norm = (self.architecture.get(key) for key in ("extra_levels_from", "head_norm"))
        if (extra, norm) == ("p5", "none"):
            return f"torchvision's RetinaNet v1 (retinanet_{backbone}_fpn)"
        if (extra, norm) == ("c5", "group"):
            return f"torchvision's RetinaNet v2 (retinanet_{backbone}_fpn_v2)"
        return f"a RetinaNet on {backbone}"

    def _classes(self) -> str:
        if self.classes == 1:
            return "[NAME]"
        if "conventions" in self.architecture:
            return f"[NAME, NAME, ...], {self.classes} in all in the order of the labels"
        names = ", ".join(["background", *(["NAME"] * min(self.classes - 1, 3))])
        more = ", ..." if self.classes > 4 else ""
        return (
            f"[{names}{more}], {self.classes} in all in the order of the labels (torchvision "
            "keeps label 0 for the background; if your labels begin at 0, leave background out)"
        )


def recognise(weights: dict[str, Tensor], library: str = "torchvision") -> Recognised | None:
    """Recognise a RetinaNet from a state dict with any prefix; None for other networks.

    Names are torchvision's, also of weights of another `library`.
    """
    prefix = next((key.removesuffix(_LOGITS) for key in weights if key.endswith(_LOGITS)), None)
    if prefix is None:
        return None
    own = {key.removeprefix(prefix): value for key, value in weights.items()}
    boxes = own.get("head.regression_head.bbox_reg.bias")
    inner = own.get("backbone.fpn.inner_blocks.0.0.bias")
    if boxes is None or inner is None or boxes.numel() < 4 or _CENTRENESS in own:
        return None
    anchors = boxes.numel() // 4
    architecture = _architecture(own, len(inner))
    if library != "torchvision":
        architecture["conventions"] = library
    return Recognised(own[_LOGITS].numel() // anchors, anchors, architecture)


def _architecture(own: dict[str, Tensor], channels: int) -> dict[str, Any]:
    backbone = _backbone(own)
    lines: dict[str, Any] = {} if backbone is None else {"backbone": backbone}
    extra = own.get("backbone.fpn.extra_blocks.p6.weight")
    if extra is not None:
        lines["extra_levels_from"] = "p5" if extra.shape[1] == channels else "c5"
    if channels != 256:
        lines["channels"] = channels
    group = "head.classification_head.conv.0.1.weight" in own
    return lines | {"head_norm": "group" if group else "none"}


def _backbone(own: dict[str, Tensor]) -> str | None:
    """Return the name of the ResNet, by the number and kind of blocks in its third layer."""
    stem = "backbone.body.layer3."
    blocks = len({key.split(".")[3] for key in own if key.startswith(stem)})
    if f"{stem}0.conv3.weight" not in own:
        return _BASIC.get(blocks)
    first = own.get("backbone.body.layer1.0.conv2.weight")
    if first is None or first.shape[0] == first.shape[1]:
        return _BOTTLENECK.get(blocks)
    return _GROUPED.get((blocks, first.shape[1]))


def _count(count: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"
