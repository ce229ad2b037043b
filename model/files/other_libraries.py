"""Rename the weights of Detectron2's and mmdetection's RetinaNets to torchvision's names.

Their networks are those of the paper with other names. What else differs is in the card:
`architecture.conventions` (anchors, P7) and `architecture.stride_in_1x1`. Detectron2 numbers the
anchors of a cell by size, then by aspect ratio; torchvision and mmdetection the other way round. So
the output channels of Detectron2's heads are put into another order.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError

_MARKS = {
    "detectron2": "backbone.bottom_up.stem.conv1.weight",
    "mmdetection": "bbox_head.retina_cls.weight",
}
"""A parameter that only this library has."""
_UNUSED = re.compile(r"pixel_(mean|std)|anchor_generator\..*|data_preprocessor\..*")
_HEADS = {"cls": "classification_head", "bbox": "regression_head", "reg": "regression_head"}
_OUTPUTS = {"cls": "cls_logits", "bbox": "bbox_reg", "reg": "bbox_reg"}


def from_other_library(
    weights: dict[str, Tensor], card: ModelCard, *, origin: str
) -> dict[str, Tensor]:
    """Return weights with torchvision's names and order; those of torchvision are not changed.

    Raises:
        ModelError: when the card has the conventions of another library.
    """
    library, conventions = library_of(weights), card.architecture.conventions
    if library == "torchvision":
        return weights
    if library != conventions:
        raise ModelError(
            f"{origin}: these are weights of {library}: the card {card.name} needs "
            f"architecture.conventions: {library}, it has {conventions}"
        )
    renamed = in_torchvisions_names(weights, library)
    if library == "detectron2":
        for name in ("cls_logits", "bbox_reg"):
            _reorder(renamed, name, card)
    return renamed


def library_of(weights: dict[str, Tensor]) -> str:
    """Return the library whose names the weights have; torchvision if it is none of the others."""
    for library, mark in _MARKS.items():
        if any(key.endswith(mark) for key in weights):
            return library
    return "torchvision"


def in_torchvisions_names(weights: dict[str, Tensor], library: str) -> dict[str, Tensor]:
    """Rename all weights, without a prefix. Unknown names stay, so that they can be reported."""
    if library == "torchvision":
        return weights
    mark = _MARKS[library]
    prefix = next(key for key in weights if key.endswith(mark)).removesuffix(mark)
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    kept = {key: value for key, value in own.items() if not _UNUSED.fullmatch(key)}
    if library == "detectron2":
        first = min((int(n) for n in _numbers(kept, r"backbone\.fpn_lateral(\d)\..*")), default=3)
        return {_from_detectron2(key, first): value for key, value in kept.items()}
    laterals = len(_numbers(kept, r"neck\.lateral_convs\.(\d)\..*"))
    return {_from_mmdetection(key, laterals): value for key, value in kept.items()}


def _from_detectron2(key: str, first: int) -> str:
    """Rename one parameter; `first` is the finest level."""
    if match := re.fullmatch(r"backbone\.fpn_(lateral|output)(\d)\.(\w+)", key):
        kind, level, rest = match.groups()
        blocks = "inner_blocks" if kind == "lateral" else "layer_blocks"
        return f"backbone.fpn.{blocks}.{int(level) - first}.0.{rest}"
    if match := re.fullmatch(r"head\.(cls|bbox)_subnet\.(\d+)\.(\w+)", key):  # with ReLUs between
        kind, number, rest = match.groups()
        return f"head.{_HEADS[kind]}.conv.{int(number) // 2}.0.{rest}"
    if match := re.fullmatch(r"head\.(cls|bbox)_(?:score|pred)\.(\w+)", key):
        return f"head.{_HEADS[match[1]]}.{_OUTPUTS[match[1]]}.{match[2]}"
    key = key.replace("backbone.top_block.", "backbone.fpn.extra_blocks.")
    key = key.replace("backbone.bottom_up.stem.", "backbone.body.")
    key = re.sub(r"^backbone\.bottom_up\.res(\d)\.", _layer, key)
    key = re.sub(r"\.conv(\d)\.norm\.", r".bn\1.", key)
    key = key.replace(".shortcut.norm.", ".downsample.1.")
    return key.replace(".shortcut.", ".downsample.0.")


def _layer(match: re.Match[str]) -> str:
    return f"backbone.body.layer{int(match[1]) - 1}."


def _from_mmdetection(key: str, laterals: int) -> str:
    """Rename one parameter; convolutions of the pyramid from number `laterals` on are P6 and P7."""
    if match := re.fullmatch(r"neck\.(lateral|fpn)_convs\.(\d)\.conv\.(\w+)", key):
        kind, number, rest = match[1], int(match[2]), match[3]
        if number >= laterals:
            return f"backbone.fpn.extra_blocks.p{6 + number - laterals}.{rest}"
        blocks = "inner_blocks" if kind == "lateral" else "layer_blocks"
        return f"backbone.fpn.{blocks}.{number}.0.{rest}"
    if match := re.fullmatch(r"bbox_head\.(cls|reg)_convs\.(\d)\.conv\.(\w+)", key):
        return f"head.{_HEADS[match[1]]}.conv.{match[2]}.0.{match[3]}"
    if match := re.fullmatch(r"bbox_head\.retina_(cls|reg)\.(\w+)", key):
        return f"head.{_HEADS[match[1]]}.{_OUTPUTS[match[1]]}.{match[2]}"
    return re.sub(r"^backbone\.", "backbone.body.", key)


def _reorder(weights: dict[str, Tensor], output: str, card: ModelCard) -> None:
    """Put the channels of an output of Detectron2 into torchvision's order, in place."""
    ratios = len(card.architecture.aspect_ratios)
    sizes = card.architecture.anchors_per_cell // ratios
    order = torch.arange(sizes * ratios).reshape(sizes, ratios).T.flatten()
    for key in [key for key in weights if f".{output}." in key]:
        value = weights[key]
        if len(value) % len(order) == 0:  # else the shape does not fit, which is reported later
            weights[key] = value.unflatten(0, (len(order), -1))[order].flatten(0, 1)


def _numbers(weights: dict[str, Tensor], pattern: str) -> set[str]:
    return {match[1] for key in weights if (match := re.fullmatch(pattern, key))}
