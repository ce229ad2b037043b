"""DeepForest's folders, imported: its card, and the same boxes at its scale."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from scenesweep.model.errors import ModelError
from scenesweep.model.files.convert import deepforest_card, import_weights
from tests.retinanets import CHIP, assert_same, card, enliven, found_by, found_by_import, make_chip


def make_folder(folder: Path, **changes: Any) -> Path:
    """Make the config.json of a DeepForest folder; None drops a key."""
    config = {"label_dict": {"Tree": 0}, "nms_thresh": 0.05, "num_classes": 1, "score_thresh": 0.1}
    given = {key: value for key, value in (config | changes).items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(given))
    return folder


def test_deepforest_card(tmp_path: Path) -> None:
    labels = {"Dead tree": 1, "Alive tree": 0}
    made = deepforest_card(make_folder(tmp_path, label_dict=labels, num_classes=2), gsd_m=0.2)
    assert made.name == "deepforest-alive-tree-dead-tree"
    assert made.classes == ("Alive tree", "Dead tree")
    assert made.gsd_m == pytest.approx(0.1)  # 400 px become 800
    assert (made.inference.nms_iou, made.inference.score_threshold) == (0.05, 0.1)
    assert made.training["patch_px"] == 400


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_classes": 2}, "label_dict: expected 2 classes"),
        ({"label_dict": {"a": 0, "b": 0}, "num_classes": 2}, "label_dict: expected 2 classes"),
        ({"label_dict": None}, "label_dict: is missing"),
        ({"label_dict": ["Tree"]}, "label_dict"),
        ({"backbone": "vit"}, "backbone: there is no such name"),
        ({"nms_thresh": 7}, "nms_iou"),
        ({"score_thresh": "high"}, "score_thresh"),
    ],
)
def test_deepforest_config_is_checked(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        deepforest_card(make_folder(tmp_path, **changes))
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "nothing", "[" * 100_000])
def test_deepforest_config_is_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        deepforest_card(tmp_path)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, label_dict={"alive": 0, "dead": 1}, num_classes=2)
    with pytest.raises(ModelError, match="alive, dead, in this order"):
        import_weights(folder, card("Dead", "Alive"))


@pytest.fixture(scope="module")
def deepforest(monkeypatch_module: pytest.MonkeyPatch) -> Any:
    """The real library's RetinaNet; its backbone's ImageNet weights are made, not downloaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports
        pytest.importorskip("deepforest")
        module = importlib.import_module("deepforest.models.retinanet")
    backbone = torchvision.models.resnet50(weights=None).state_dict()
    monkeypatch_module.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(backbone)
    )
    return module.RetinaNetHub


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.filterwarnings("ignore")  # what other libraries warn of is theirs
def test_deepforest_finds_the_same_at_its_scale(deepforest: Any, tmp_path: Path) -> None:
    patch = make_chip()[:, : CHIP // 2, : CHIP // 2]
    twice = nn.functional.interpolate(
        torch.from_numpy(patch)[None].float(), scale_factor=2.0, mode="bilinear"
    )
    assert torch.equal(twice, twice.round())
    enlarged = twice[0].numpy().astype(np.uint8)

    labels = {"Alive": 0, "Dead": 1}
    made = deepforest(num_classes=2, score_thresh=0.05, nms_thresh=0.5, label_dict=labels)
    enliven(made, enlarged)
    made.save_pretrained(tmp_path / "folder")
    theirs = deepforest.from_pretrained(tmp_path / "folder").eval()
    theirs.transform.min_size = (CHIP,)  # its 400 -> 800 px, in small

    ours = deepforest_card(tmp_path / "folder")
    found = found_by_import(tmp_path / "folder", ours, enlarged)
    assert_same(found, found_by(theirs, patch), scale=2.0)
