"""torchvision's RetinaNets for tests: made at random, and enlivened so that they find boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from scenesweep.model.boxes import Boxes
from scenesweep.model.card import ModelCard
from scenesweep.model.files.convert import import_weights, write_model
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.detector import load_detector
from scenesweep.model.settings import DetectorSettings

CHIP = 128
SIZES = [[x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))] for x in (32, 64, 128, 256, 512)]
FLOAT32 = DetectorSettings(device="cpu", precision="float32")


def card(*classes: str, **architecture: Any) -> ModelCard:
    """Return the card of torchvision's first RetinaNet, or of a change of it."""
    return ModelCard.model_validate(
        {
            "name": "imported",
            "classes": classes or ("car", "boat", "plane"),
            "bands": ("red", "green", "blue"),
            "gsd_m": 0.3,
            "chip_px": CHIP,
            "architecture": {"anchor_sizes_px": SIZES, "extra_levels_from": "p5"} | architecture,
            "scaling": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            "inference": {"max_detections_per_chip": 300},
        }
    )


def small_retinanet(classes: int) -> RetinaNet:
    """Return torchvision's RetinaNet on a ResNet-18: quick to make."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return RetinaNet(backbone, classes)


def enliven(model: RetinaNet, chip: NDArray[np.uint8], *, seed: int = 0) -> None:
    """Give a random network statistics and outputs by which it finds some 100 boxes."""
    torch.manual_seed(seed)
    for part in model.modules():
        if isinstance(getattr(part, "running_var", None), Tensor):
            with torch.no_grad():
                part.running_mean.normal_(std=0.1)
                part.running_var.uniform_(0.5, 2.0)
    size = chip.shape[-1]  # no resizing
    model.transform = GeneralizedRCNNTransform(
        size, size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    model.eval()
    with torch.no_grad():
        images, _ = model.transform([torch.from_numpy(chip) / 255])
        raw = model.head(list(model.backbone(images.tensors).values()))
        logits = model.head.classification_head.cls_logits
        logits.weight /= raw["cls_logits"].std() / 1.5
        logits.bias.fill_(-5.0)
        model.head.regression_head.bbox_reg.weight /= raw["bbox_regression"].std() / 0.2


def make_chip() -> NDArray[np.uint8]:
    """Return a chip (3, CHIP, CHIP) in steps of 16: enlarged by two, it is in whole numbers."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 16, (3, CHIP, CHIP), np.uint8) * 16


def assert_same(found: Boxes, expected: dict[str, Tensor], *, scale: float = 1.0) -> None:
    """Each of torchvision's boxes is ours too, to 1e-3 px and 1e-5 of score; we have no more."""
    boxes = expected["boxes"].numpy() * scale
    assert 20 < len(boxes) == len(found.score)
    for xyxy, score, label in zip(
        boxes, expected["scores"].numpy(), expected["labels"].numpy(), strict=True
    ):
        near = (
            (np.abs(found.xyxy - xyxy).max(axis=1) < 1e-3)
            & (np.abs(found.score - score) < 1e-5)
            & (found.label == label)
        )
        assert near.sum() == 1


def found_by(model: RetinaNet, chip: NDArray[np.uint8]) -> dict[str, Tensor]:
    with torch.inference_mode():
        return model([torch.from_numpy(chip) / 255])[0]


def found_by_import(source: Path, card: ModelCard, chip: NDArray[np.uint8]) -> Boxes:
    """Import to a file, open it, and look at one chip."""
    out = source.parent / "imported.safetensors"
    write_model(out, card, import_weights(source, card))
    detector = load_detector(open_model(str(out)), FLOAT32)
    return detector.detect(chip[None]).boxes
