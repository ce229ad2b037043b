"""A state dict of torchvision's is recognised, and the cards of docs/model.md fit it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from torch import nn
from torchvision.models.detection import (
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)

from scenesweep.jobs.cli import main
from scenesweep.model.card import parse_card
from scenesweep.model.errors import ModelError
from scenesweep.model.files.convert import fit_to_card
from scenesweep.model.files.recognise import recognise
from tests.retinanets import assert_same, card, enliven, found_by, found_by_import, make_chip

PAGE = Path(__file__).parents[3] / "docs" / "model.md"
SECTION = PAGE.read_text(encoding="utf-8").partition("\n## Weights of torchvision")[2]
V1, V2 = re.findall(r"^```yaml\n(.*?)^```", SECTION, re.M | re.S)
MAKERS = {"v1": retinanet_resnet50_fpn, "v2": retinanet_resnet50_fpn_v2}


def made(version: str, classes: int) -> nn.Module:
    network: nn.Module = MAKERS[version](
        weights=None, weights_backbone=None, num_classes=classes
    ).eval()
    return network


@pytest.mark.parametrize(("version", "text"), [("v1", V1), ("v2", V2)])
def test_the_cards_of_the_page_find_what_torchvision_finds(
    tmp_path: Path, version: str, text: str
) -> None:
    chip = make_chip()
    model = MAKERS[version](weights=None, weights_backbone=None, num_classes=2)
    enliven(model, chip)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    of_page = parse_card(yaml.safe_load(text), origin="docs/model.md")
    found = found_by_import(tmp_path / "weights.pth", of_page, chip)
    assert_same(found, found_by(model, chip))


@pytest.mark.parametrize(
    ("version", "needed"),
    [
        ("v1", "{backbone: resnet50, extra_levels_from: p5, head_norm: none}"),
        ("v2", "{backbone: resnet50, extra_levels_from: c5, head_norm: group}"),
    ],
)
def test_a_card_that_does_not_fit_is_told_what_the_file_looks_like(
    version: str, needed: str
) -> None:
    other = {"v1": "c5", "v2": "p5"}[version]
    wrong = card("building", extra_levels_from=other)
    with pytest.raises(ModelError) as caught:
        fit_to_card(made(version, 2).state_dict(), wrong, origin="a file")
    said = str(caught.value)
    assert f"looks like torchvision's RetinaNet {version} (retinanet_resnet50_fpn" in said
    assert f"with 2 classes and 9 anchors per cell; its card needs architecture: {needed}" in said
    assert "classes: [background, NAME], 2 in all" in said
    assert "\n" not in said


def test_without_a_card_the_file_is_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {f"model.{key}": value for key, value in made("v1", 5).state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    assert main(["models", "import", str(tmp_path / "weights.pth")]) == 2
    said = capsys.readouterr().err
    assert "expected --as card.yaml" in said
    assert "torchvision's RetinaNet v1 (retinanet_resnet50_fpn) with 5 classes" in said
    assert "classes: [background, NAME, NAME, NAME, ...], 5 in all" in said


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet101", "resnext101_64x4d"])
def test_backbones_are_told_apart(name: str) -> None:
    with torch.device("meta"):
        body = torchvision.models.get_model(name, weights=None).state_dict()
        heads = {
            "head.classification_head.cls_logits.bias": torch.zeros(9),
            "head.regression_head.bbox_reg.bias": torch.zeros(36),
            "backbone.fpn.inner_blocks.0.0.bias": torch.zeros(256),
        }
    seen = recognise({f"backbone.body.{key}": value for key, value in body.items()} | heads)
    assert seen is not None
    assert seen.architecture["backbone"] == name
    assert "classes: [NAME]" in seen.describe()


def test_another_network_is_not_described() -> None:
    assert recognise({"a.b": torch.zeros(1)}) is None
    fcos = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    assert recognise(fcos.state_dict()) is None
