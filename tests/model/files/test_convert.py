"""Weights that torchvision and Lightning wrote, imported: they find the same."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import (
    RetinaNet,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.files.convert import fit_to_card, import_weights, write_model
from tests.retinanets import (
    assert_same,
    card,
    enliven,
    found_by,
    found_by_import,
    make_chip,
    small_retinanet,
)

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def chip() -> NDArray[np.uint8]:
    return make_chip()


@pytest.fixture(scope="module")
def first(chip: NDArray[np.uint8]) -> RetinaNet:
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    enliven(model, chip)
    return model


@pytest.fixture(scope="module")
def small(chip: NDArray[np.uint8]) -> RetinaNet:
    model = small_retinanet(3)
    enliven(model, chip)
    return model


def test_torchvision_v1_finds_the_same(
    first: RetinaNet, chip: NDArray[np.uint8], tmp_path: Path
) -> None:
    torch.save(first.state_dict(), tmp_path / "v1.pth")
    found = found_by_import(tmp_path / "v1.pth", card(), chip)
    assert_same(found, found_by(first, chip))


def test_torchvision_v2_finds_the_same(chip: NDArray[np.uint8], tmp_path: Path) -> None:
    model = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2)
    enliven(model, chip)
    torch.save(model.state_dict(), tmp_path / "v2.pth")
    v2 = card("car", "boat", extra_levels_from="c5", head_norm="group")
    assert_same(found_by_import(tmp_path / "v2.pth", v2, chip), found_by(model, chip))


def test_nothing_is_lost(small: RetinaNet, tmp_path: Path) -> None:
    weights = fit_to_card(small.state_dict(), card(backbone="resnet18"), origin="a file")
    write_model(tmp_path / "kept.safetensors", card(backbone="resnet18"), weights)
    kept = safetensors.torch.load_file(tmp_path / "kept.safetensors")
    assert kept.keys() == small.state_dict().keys()
    assert all(torch.equal(kept[key], value) for key, value in small.state_dict().items())


def test_names_before_torchvision_0_13(small: RetinaNet) -> None:
    old = {}
    for key, value in small.state_dict().items():
        parts = key.split(".")
        if parts[0] == "head" and parts[2] == "conv":  # conv.1.0.weight was conv.2.weight
            parts[3:5] = [str(2 * int(parts[3]))]
        old[".".join(parts)] = value
    assert "head.regression_head.conv.6.bias" in old
    small_retinanet(3).load_state_dict(old)  # torchvision reads them so
    assert_fits(old, small)


def assert_fits(weights: Weights, model: RetinaNet) -> None:
    named = fit_to_card(weights, card(backbone="resnet18"), origin="a file")
    wanted = model.state_dict()
    assert named.keys() == wanted.keys()
    assert all(torch.equal(named[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("prefix", ["", "model.", "detector.net."])
def test_prefixes(small: RetinaNet, prefix: str) -> None:
    assert_fits({prefix + key: value for key, value in small.state_dict().items()}, small)


def test_what_lies_beside_the_prefix_is_left_out(
    small: RetinaNet, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {"model." + key: value for key, value in small.state_dict().items()}
    assert_fits(weights | {"metric.total": torch.zeros(1)}, small)
    assert "metric.total" in caplog.text


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_dictionaries_are_looked_into(small: RetinaNet, tmp_path: Path, key: str) -> None:
    torch.save({key: small.state_dict(), "epoch": 3, "lr": [0.1]}, tmp_path / "run.ckpt")
    named = import_weights(tmp_path / "run.ckpt", card(backbone="resnet18"))
    assert named.keys() == small.state_dict().keys()


@pytest.mark.parametrize("norm", ["batch", "frozen", "sync"])
def test_counters_of_batches_do_not_matter(small: RetinaNet, norm: str) -> None:
    wanted = card(backbone="resnet18", backbone_norm=norm)
    with_counters = small.state_dict()
    without = {k: v for k, v in with_counters.items() if "num_batches" not in k}
    one, other = (
        fit_to_card(with_counters, wanted, origin="a"),
        fit_to_card(without, wanted, origin="b"),
    )
    assert one.keys() == other.keys()
    assert any("num_batches" in key for key in one) == (norm != "frozen")


def refusal(weights: Weights, wanted: ModelCard) -> str:
    with pytest.raises(ModelError) as caught:
        fit_to_card(weights, wanted, origin="a file")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_class_count_is_told(small: RetinaNet) -> None:
    message = refusal(small.state_dict(), card("car", "boat", backbone="resnet18"))
    assert "the file has 3 classes, the card names 2: car, boat" in message
    assert "cls_logits.bias has shape (27,), expected (18,)" in message


def test_number_of_anchors_is_told(small: RetinaNet) -> None:
    one = [[size] for size in (32, 64, 128, 256, 512)]
    message = refusal(small.state_dict(), card(backbone="resnet18", anchor_sizes_px=one))
    assert "the file has 9 anchors per cell, the card 3" in message
    assert "the card names" not in message


def test_differences_are_listed(small: RetinaNet) -> None:
    weights = small.state_dict()
    weights["backbone.extra.weight"] = weights.pop("backbone.fpn.inner_blocks.0.0.bias")
    weights["backbone.body.bn1.bias"] = torch.full((64,), float("nan"))
    message = refusal(weights, card(backbone="resnet18"))
    assert "backbone.fpn.inner_blocks.0.0.bias is missing" in message
    assert "backbone.extra.weight is not part of the network" in message
    assert "backbone.body.bn1.bias contains NaN" in message


def test_a_long_list_is_cut(small: RetinaNet) -> None:
    message, seen = refusal(small.state_dict(), card()).split("; the file looks like ")
    assert "backbone: resnet18" in seen  # the card's is a ResNet-50
    assert message.count(";") == 10
    assert message.split("; ")[-1].startswith("and ")


def test_another_network_is_told_by_its_names() -> None:
    assert "expected names such as backbone." in refusal({"a.b": torch.zeros(1)}, card())
    assert "got none" in refusal({}, card())


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch: sparse and quantised are unfinished
def test_odd_tensors_are_refused(small: RetinaNet) -> None:
    odd = [
        torch.eye(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.ones(2).to("meta"),
    ]
    for tensor in odd:
        weights = small.state_dict() | {"backbone.body.bn1.bias": tensor}
        assert "expected dense tensors of real numbers" in refusal(
            weights, card(backbone="resnet18")
        )


class Trap:
    """Runs when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize("name", ["trap.pth", "trap.ckpt", "plain.pkl"])
def test_objects_are_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "plain.pkl":
        Path(name).write_bytes(pickle.dumps(Trap(), protocol=2))
    else:
        torch.save({"state_dict": {"a": torch.zeros(1)}, "hyper_parameters": Trap()}, name)
    with pytest.raises(ModelError, match=name) as caught:
        import_weights(Path(name), card())
    assert "\n" not in str(caught.value)
    assert not Path("sprung").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"weights", bytes(100)])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_rubbish_gets_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        import_weights(tmp_path / name, card())
    assert name in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_lightning_checkpoint(small: RetinaNet, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self, model: nn.Module, rate: float) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=["model"])
            self.model = model

    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(Module(small, 0.1))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    named = import_weights(tmp_path / "run.ckpt", card(backbone="resnet18"))
    assert named.keys() == small.state_dict().keys()
