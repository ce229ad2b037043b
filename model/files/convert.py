"""Import weights that other libraries wrote into the network of a card.

Supported are the RetinaNets of torchvision (also with the parameter names before 0.13), Detectron2
and mmdetection, also inside a Lightning checkpoint or another dictionary, and the folders that
DeepForest saves and publishes. Nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from scenesweep.model.architecture import Architecture, Frozen, Losses
from scenesweep.model.card import Inference, ModelCard, Scaling, explain, parse_card
from scenesweep.model.errors import ModelError
from scenesweep.model.files.checkpoint import differences_of, read_weights, write_tensors
from scenesweep.model.files.other_libraries import (
    from_other_library,
    in_torchvisions_names,
    library_of,
)
from scenesweep.model.files.recognise import recognise
from scenesweep.model.networks.network import build

DEEPFOREST_GSD_M = 0.1
DEEPFOREST_PATCH_PX = 400
_MOST_NAMES = 10
_COUNTER = "num_batches_tracked"  # batches seen by a batch norm: detection does not use it
_LEGACY = re.compile(r"(.*\.conv)\.(\d+)\.(weight|bias)")
log = logging.getLogger(__name__)


class _DeepForest(Frozen):
    """`config.json` of a DeepForest folder: the arguments of its network.

    Defaults are those of DeepForest 2 and of torchvision's RetinaNet, which it uses.
    """

    num_classes: int = Field(1, ge=1)
    label_dict: dict[str, int]
    nms_thresh: float = 0.05
    score_thresh: float = 0.5
    topk_candidates: int = 1000
    detections_per_img: int = 300
    min_size: int = Field(800, ge=64)
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _labels_are_numbered(self) -> Self:
        if sorted(self.label_dict.values()) != list(range(self.num_classes)):
            raise ValueError(
                f"label_dict: expected {self.num_classes} classes numbered from 0, "
                f"got {self.label_dict}"
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(self.label_dict, key=self.label_dict.__getitem__))


def import_weights(source: Path, card: ModelCard) -> dict[str, Tensor]:
    """Read weights of another library and rename them to the names of the card's network.

    `source` is a file of tensors (.pth, .pt, .ckpt, .safetensors) or a DeepForest folder. Data
    types do not change.

    Raises:
        ModelError: when the file cannot be read safely, or its weights do not fit the card.
    """
    if source.is_dir():
        _check_order(source, card)
        source = source / "model.safetensors"
    return fit_to_card(read_weights(source).tensors, card, origin=str(source))


def fit_to_card(weights: dict[str, Tensor], card: ModelCard, *, origin: str) -> dict[str, Tensor]:
    """Rename `weights` to the names of the card's network and check that all of them fit.

    Raises:
        ModelError: when they do not fit. It names `origin`, the card, and the parameters that are
            missing, unknown, not finite or of another shape. It says when the number of classes
            differs, and which lines the card of a torchvision RetinaNet needs.
    """
    special = [key for key, value in weights.items() if not _is_plain(value)]
    if special:
        raise ModelError(
            f"{origin}: expected dense tensors of real numbers, got others: {_some(special)}"
        )
    weights = from_other_library(weights, card, origin=origin)
    expected = build(card).state_dict()
    renamed = _rename_heads(_strip_prefix(weights, expected, origin), expected)
    named = _match_counters(renamed, expected)
    differences = _differences(named, expected, card)
    if differences:
        raise ModelError(
            f"{origin}: weights do not fit the card {card.name}: {_some(differences, '; ')}"
            + _description(weights)
        )
    return named


def describe_weights(source: Path) -> str:
    """Describe a file of tensors and the card that it needs; empty for unknown networks.

    Raises:
        ModelError: when the file cannot be read safely.
    """
    return _description(read_weights(source).tensors).removeprefix("; ")


def write_model(path: Path, card: ModelCard, weights: dict[str, Tensor]) -> None:
    """Write card and weights to one file. The bits of the weights do not change."""
    own = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    write_tensors(path, card, own)


def deepforest_card(
    folder: Path, *, gsd_m: float = DEEPFOREST_GSD_M, patch_px: int = DEEPFOREST_PATCH_PX
) -> ModelCard:
    """Make the card of a DeepForest folder.

    DeepForest cuts patches of `patch_px` from imagery of `gsd_m` metres, and torchvision enlarges
    each to 800 px for the network. So the ground sample distance of the card is
    `gsd_m * patch_px / 800`. The network is the one that DeepForest builds to load the folder:
    ResNet-50 with frozen batch norm and torchvision's first RetinaNet head.

    Raises:
        ModelError: when config.json is missing or not DeepForest's.
    """
    config = _read_config(folder)
    # torchvision rounds the paper's sizes to whole numbers
    sizes = [(x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)]
    values = {
        "name": _slug("-".join(("deepforest", *config.classes))),
        "description": f"DeepForest, {', '.join(config.classes)}: patches of {patch_px} px at "
        f"{gsd_m:g} m, enlarged to {config.min_size} px",
        "classes": config.classes,
        "bands": ("red", "green", "blue"),
        "gsd_m": gsd_m * patch_px / config.min_size,
        "chip_px": 800,
        "margin_px": 96,
        "architecture": Architecture(
            backbone_norm="frozen", extra_levels_from="p5", anchor_sizes_px=tuple(sizes)
        ),
        "losses": Losses(boxes="l1"),
        "scaling": Scaling(mean=config.image_mean, std=config.image_std),
        "inference": _inference(config).model_dump(),
        "training": {
            "imported_from": "DeepForest",
            "imagery_gsd_m": gsd_m,
            "patch_px": patch_px,
            "enlarged_to_px": config.min_size,
        },
    }
    return parse_card(values, origin=str(folder / "config.json"))


def _inference(config: _DeepForest) -> Inference:
    try:
        return Inference(
            score_threshold=config.score_thresh,
            nms_iou=config.nms_thresh,
            topk_per_level=config.topk_candidates,
            max_detections_per_chip=config.detections_per_img,
        )
    except ValidationError as error:
        raise ModelError(f"config.json of DeepForest: {explain(error)}") from error


def _read_config(folder: Path) -> _DeepForest:
    path = folder / "config.json"
    try:
        return _DeepForest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ModelError(f"{path}: not a DeepForest configuration: {explain(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{folder}: expected a DeepForest folder with config.json and model.safetensors: "
            f"{error}"
        ) from error


def _check_order(folder: Path, card: ModelCard) -> None:
    """Refuse a card that has the folder's classes in another order, which would swap labels."""
    given = [name.casefold() for name in _read_config(folder).classes]
    expected = [name.casefold() for name in card.classes]
    if given != expected and sorted(given) == sorted(expected):
        raise ModelError(
            f"{folder}: its classes are {', '.join(given)}, in this order; the card {card.name} "
            f"has {', '.join(expected)}"
        )


def _is_plain(value: Tensor) -> bool:
    return (
        value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _strip_prefix(
    weights: dict[str, Tensor], expected: dict[str, Tensor], origin: str
) -> dict[str, Tensor]:
    """Remove the prefix (such as a Lightning module's `model.`) that makes the most names fit."""
    ours = max(_shared_prefixes(expected), key=len)
    fitting = {
        theirs: sum(
            ours + key[len(theirs) :] in expected for key in weights if key.startswith(theirs)
        )
        for theirs in _prefixes(weights)
    }
    best = max(fitting, key=lambda theirs: (fitting[theirs], -len(theirs)))
    if not fitting[best]:
        raise ModelError(
            f"{origin}: expected names such as {_some(expected, count=2)}, "
            f"got {_some(weights, count=2) or 'none'}"
        )
    outside = [key for key in weights if not key.startswith(best)]
    if outside:
        log.warning("%s: ignored, outside the prefix %r: %s", origin, best, _some(outside))
    return {
        ours + key[len(best) :]: value for key, value in weights.items() if key.startswith(best)
    }


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return every prefix of a name that ends with a dot, and the empty prefix."""
    prefixes = {""}
    for name in names:
        prefixes.update(name[: match.end()] for match in re.finditer(r"\.", name))
    return sorted(prefixes)


def _shared_prefixes(names: Iterable[str]) -> list[str]:
    return [p for p in _prefixes(names) if all(name.startswith(p) for name in names)]


def _rename_heads(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a head's convolutions: until 0.12 torchvision also numbered the ReLUs between them."""
    renamed = {}
    for key, value in weights.items():
        match = _LEGACY.fullmatch(key)
        if match and key not in expected:
            stem, number, kind = match.groups()
            current = f"{stem}.{int(number) // 2}.0.{kind}"
            key = current if current in expected else key
        renamed[key] = value
    return renamed


def _match_counters(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add or drop counters of batches: frozen batch norms have none, other batch norms do."""
    kept = {k: v for k, v in weights.items() if k in expected or not k.endswith(_COUNTER)}
    added = {k: v for k, v in expected.items() if k not in kept and k.endswith(_COUNTER)}
    return kept | added


def _differences(
    weights: dict[str, Tensor], expected: dict[str, Tensor], card: ModelCard
) -> list[str]:
    """Describe what does not fit: first numbers of anchors and classes, then single parameters."""
    problems = differences_of(weights, expected)
    per_cell = card.architecture.anchors_per_cell
    boxes = weights.get("head.regression_head.bbox_reg.bias")
    logits = weights.get("head.classification_head.cls_logits.bias")
    if card.architecture.kind != "retinanet" or boxes is None or logits is None:
        return problems
    anchors = max(boxes.numel() // 4, 1)
    classes = logits.numel() // anchors
    if classes != len(card.classes):
        counted = "1 class" if classes == 1 else f"{classes} classes"
        names = f"{len(card.classes)}: {_some(card.classes)}"
        problems = [f"the file has {counted}, the card names {names}", *problems]
    if anchors != per_cell:
        problems = [f"the file has {anchors} anchors per cell, the card {per_cell}", *problems]
    return problems


def _description(weights: dict[str, Tensor]) -> str:
    library = library_of(weights)
    recognised = recognise(in_torchvisions_names(weights, library), library)
    return f"; {recognised.describe()}" if recognised else ""


def _slug(text: str) -> str:
    """Return `text` as a valid name of a card."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.").lower()[:60]


def _some(items: Iterable[str], separator: str = ", ", *, count: int = _MOST_NAMES) -> str:
    """Join the first `count` items and add the number of the others."""
    given = list(items)
    more = [f"and {len(given) - count} more"] if len(given) > count else []
    return separator.join([*given[:count], *more])
