"""Weights of Detectron2 and mmdetection: the same boxes as a second implementation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.files.convert import describe_weights, import_weights
from tests.other_retinanets import CLASSES, SIZES, Net, boxes_of, detectron2, mmdetection
from tests.retinanets import CHIP, found_by_import, make_chip

PAGE = Path(__file__).parents[3] / "docs" / "model.md"
NETWORKS = {"detectron2": detectron2, "mmdetection": mmdetection}
OUTPUTS = {
    "detectron2": ("head.cls_score", "head.bbox_pred"),
    "mmdetection": ("bbox_head.retina_cls", "bbox_head.retina_reg"),
}
BGR = {"mean": (103.53 / 255, 116.28 / 255, 123.675 / 255), "std": (1 / 255,) * 3}
RGB = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SCORE, NMS = 0.3, 0.5


def card_for(library: str, *, stride_in_1x1: bool, **changes: Any) -> ModelCard:
    architecture = {
        "anchor_sizes_px": SIZES,
        "extra_levels_from": "c5",
        "backbone_norm": "frozen",
        "conventions": library,
        "stride_in_1x1": stride_in_1x1,
    }
    return ModelCard.model_validate(
        {
            "name": "imported",
            "classes": [f"class{n}" for n in range(CLASSES)],
            "bands": ("blue", "green", "red") if stride_in_1x1 else ("red", "green", "blue"),
            "gsd_m": 0.3,
            "chip_px": CHIP,
            "architecture": architecture | changes,
            "scaling": BGR if stride_in_1x1 else RGB,
            "inference": {"score_threshold": SCORE, "nms_iou": NMS},
        }
    )


def lively(library: str, pixels: Tensor, *, stride_in_1x1: bool) -> tuple[Net, Any]:
    """Make weights at random, and scale the last layers so that some hundred boxes are found."""
    net = Net()
    with torch.no_grad():
        outputs = NETWORKS[library](net, pixels, stride_in_1x1=stride_in_1x1)
        for number, (name, wanted) in enumerate(zip(OUTPUTS[library], (1.0, 0.2), strict=True)):
            spread = torch.cat([level[number].flatten() for level in outputs]).std()
            net.values[f"{name}.weight"] *= wanted / spread
        net.values[f"{OUTPUTS[library][0]}.bias"].fill_(-4.2)
        return net, NETWORKS[library](net, pixels, stride_in_1x1=stride_in_1x1)


@pytest.mark.parametrize("library", NETWORKS)
@pytest.mark.parametrize("stride_in_1x1", [True, False], ids=["caffe", "pytorch"])
def test_imported_weights_find_the_boxes_of_the_other_library(
    tmp_path: Path, library: str, stride_in_1x1: bool
) -> None:
    card = card_for(library, stride_in_1x1=stride_in_1x1)
    chip = make_chip()
    mean, std = (torch.tensor(card.scaling.model_dump()[n])[:, None, None] for n in ("mean", "std"))
    net, outputs = lively(
        library, (torch.from_numpy(chip) / 255 - mean)[None] / std, stride_in_1x1=stride_in_1x1
    )
    other = {"pixel_mean": torch.zeros(3, 1, 1)} if library == "detectron2" else {}
    key = "model" if library == "detectron2" else "state_dict"
    torch.save({key: net.values | other, "iteration": 9}, tmp_path / "w.pth")
    ours = found_by_import(tmp_path / "w.pth", card, chip)
    theirs = boxes_of(outputs, CHIP, by_size=library == "detectron2", nms=NMS, score=SCORE)
    assert 20 < len(theirs["scores"]) < 1000
    distance = np.abs(ours.xyxy[:, None] - theirs["boxes"][None]).max(axis=2)
    distance[np.abs(ours.score[:, None] - theirs["scores"][None]) > 1e-4] = np.inf
    distance[ours.label[:, None] != theirs["labels"][None]] = np.inf
    sure = theirs["scores"] > SCORE + 1e-3
    assert distance.min(axis=0)[sure].max() < 1e-2
    assert distance.min(axis=1)[ours.score > SCORE + 1e-3].max() < 1e-2


def test_the_card_of_the_page_is_that_of_the_tests() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Weights of Detectron2")[2]
    (text,) = re.findall(r"^```yaml\n(.*?)^```", section.partition("\n## ")[0], re.M | re.S)
    expected = card_for("detectron2", stride_in_1x1=True)
    card = ModelCard.model_validate(expected.model_dump() | yaml.safe_load(text))
    assert card.bands == expected.bands
    for field in ("mean", "std"):
        ours, theirs = (c.scaling.model_dump()[field] for c in (card, expected))
        assert ours == pytest.approx(theirs, abs=1e-5)
    sizes = np.array(card.architecture.anchor_sizes_px)
    assert sizes == pytest.approx(np.array(SIZES), abs=1e-3)
    plain = {"anchor_sizes_px": expected.architecture.anchor_sizes_px}
    assert card.architecture.model_copy(update=plain) == expected.architecture


@pytest.mark.parametrize("library", NETWORKS)
def test_a_card_of_another_library_is_refused_with_the_line_it_needs(
    tmp_path: Path, library: str
) -> None:
    net = Net()
    with torch.no_grad():
        NETWORKS[library](net, torch.zeros(1, 3, 128, 128), stride_in_1x1=False)
    prefixed = {f"detector.{key}": value for key, value in net.values.items()}
    torch.save(prefixed, tmp_path / "w.pth")
    path = tmp_path / "w.pth"
    with pytest.raises(ModelError, match=rf"needs architecture\.conventions: {library}, it has"):
        import_weights(path, card_for("torchvision", stride_in_1x1=False))
    card = card_for(library, stride_in_1x1=False)
    assert set(import_weights(path, card)) >= {"backbone.body.layer4.2.bn3.running_var"}
    with pytest.raises(ModelError, match=r"extra_blocks\.p6\.weight has shape"):
        import_weights(path, card_for(library, stride_in_1x1=False, extra_levels_from="p5"))
    text = describe_weights(path)
    assert f"a RetinaNet of {library} on resnet50 with 80 classes and 9 anchors" in text
    assert f"conventions: {library}" in text
    assert "background" not in text
