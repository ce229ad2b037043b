"""`scenesweep models`: what is printed, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torchvision.models.detection import retinanet_resnet50_fpn

from scenesweep.jobs.cli import main
from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.files.model_file import built_in_models, open_model
from scenesweep.model.networks.network import build
from tests.rasters import make_card
from tests.retinanets import small_retinanet

CARD = {
    "name": "cars",
    "classes": ["car"],
    "bands": ["red", "green", "blue"],
    "gsd_m": 0.3,
    "architecture": {"backbone": "resnet18", "extra_levels_from": "p5"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one model of ours and one file of another's."""
    card = make_card(description="Finds squares")
    save_model(tmp_path / "ours.safetensors", card, build(card).state_dict())
    (tmp_path / "other.safetensors").write_bytes(b"not ours")
    return tmp_path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The state_dict of a torchvision RetinaNet with one class."""
    torch.save(small_retinanet(1).state_dict(), tmp_path / "cars.pth")
    return tmp_path / "cars.pth"


def write_card(folder: Path, **changes: Any) -> Path:
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(CARD | changes))
    return path


def test_list(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["models", "list", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(built_in_models()) + 1
    assert lines[-1] == f"{folder / 'ours.safetensors'}\tsquare\t0.6 m\tFinds squares"
    assert "other.safetensors" in caplog.text


def test_list_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json", str(folder)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[-1]["file"] == str(folder / "ours.safetensors")
    assert rows[-1]["classes"] == ["square"]
    assert rows[-1]["sha256"] == open_model(rows[-1]["file"]).sha256


def test_list_of_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", str(tmp_path / "none")]) == 2
    assert "expected a folder" in capsys.readouterr().err


def test_shrink(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, out = str(folder / "ours.safetensors"), folder / "small" / "ours.safetensors"
    assert main(["models", "shrink", name, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert open_model(str(out)).card == open_model(name).card
    assert main(["models", "shrink", "none", "--out", str(out)]) == 2
    assert "expected a file or a built-in model" in capsys.readouterr().err


def test_show_prints_the_card(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(folder / "ours.safetensors")
    assert main(["models", "show", name]) == 0
    from_yaml = yaml.safe_load(capsys.readouterr().out)
    assert main(["models", "show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == from_yaml
    assert from_yaml.pop("sha256") == open_model(name).sha256
    assert type(make_card()).model_validate(from_yaml) == open_model(name).card


def test_import_makes_a_model(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = weights.parent / "new" / "cars.safetensors"
    card = write_card(weights.parent)
    assert main(["models", "import", str(weights), "--as", str(card), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert open_model(str(out)).card.classes == ("car",)


def test_import_names_the_file_after_the_card(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent)
    card = write_card(weights.parent)
    assert main(["models", "import", str(weights), "--as", str(card)]) == 0
    assert Path("cars.safetensors").is_file()


def test_import_that_does_not_fit_writes_nothing(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, out = write_card(weights.parent, classes=["car", "boat"]), weights.parent / "no.file"
    assert main(["models", "import", str(weights), "--as", str(card), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "the file has 1 class, the card names 2: car, boat" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_import_needs_a_card(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "import", str(weights)]) == 2
    assert "expected --as card.yaml" in capsys.readouterr().err


def test_import_takes_one_scale(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = write_card(weights.parent)
    assert main(["models", "import", str(weights), "--as", str(card), "--gsd-m", "0.2"]) == 2
    assert "expected either --as, or --gsd-m" in capsys.readouterr().err


def test_import_of_a_deepforest_folder(tmp_path: Path) -> None:
    """The layout is DeepForest's, see test_convert.py; the network is torchvision's."""
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=1)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"label_dict": {"Tree": 0}, "num_classes": 1}')
    out = tmp_path / "tree.safetensors"
    given = ["--gsd-m", "0.2", "--patch-px", "200", "--out", str(out)]
    assert main(["models", "import", str(tmp_path), *given]) == 0
    card = open_model(str(out)).card
    assert (card.name, card.classes, card.gsd_m) == ("deepforest-tree", ("Tree",), 0.05)


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_impossible_scale_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    (tmp_path / "config.json").write_text('{"label_dict": {"Tree": 0}, "num_classes": 1}')
    assert main(["models", "import", str(tmp_path), "--gsd-m", value]) == 2
    assert "gsd_m" in capsys.readouterr().err


def test_export_writes_an_item(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "catalogue" / "item.json"
    model = folder / "ours.safetensors"
    assert main(["models", "export", str(model), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    item = json.loads(out.read_text())
    href = item["assets"]["model"]["href"]
    assert (out.parent / href).resolve() == model.resolve()
    assert item["properties"]["mlm:name"] == "squares"


def test_export_names_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    url = "https://example.com/squares.safetensors"
    assert main(["models", "export", "ours.safetensors", "--href", url]) == 0
    assert json.loads(Path("squares.json").read_text())["assets"]["model"]["href"] == url


def test_export_of_every_built_in_model(tmp_path: Path) -> None:
    for name in built_in_models():
        assert main(["models", "export", name, "--out", str(tmp_path / f"{name}.json")]) == 0
        item = json.loads((tmp_path / f"{name}.json").read_text())
        assert item["properties"]["mlm:name"] == name
