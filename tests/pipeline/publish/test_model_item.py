"""The STAC item of a model, read back by pystac and checked against STAC's own schemas."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pystac
import pytest
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import MLMExtension
from pystac.extensions.version import VersionExtension
from pystac.stac_object import STACObjectType
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.model.networks.network import build
from scenesweep.pipeline.publish.stac.model_item import SIZES_MEANINGFUL, model_item
from tests.rasters import make_card


def make_item(folder: Path, **changes: Any) -> tuple[dict[str, Any], ModelFile]:
    card = make_card(**changes)
    save_model(folder / "m.safetensors", card, build(card).state_dict())
    model = open_model(str(folder / "m.safetensors"))
    return model_item(model, href="./m.safetensors"), model


def test_item_is_valid_stac(tmp_path: Path) -> None:
    item, _ = make_item(tmp_path, description="Finds squares", licence="Apache-2.0")
    validator = JsonSchemaSTACValidator()
    assert validator.validate_core(item, STACObjectType.ITEM, item["stac_version"])
    assert item["properties"]["license"] == "Apache-2.0"
    assert item["properties"]["datetime"] is None


def test_pystac_reads_what_the_card_says(tmp_path: Path) -> None:
    classes = ("square", "blue car/van")
    item, model = make_item(tmp_path, classes=classes, bands=("red", "nir"))
    read = pystac.Item.from_dict(json.loads(json.dumps(item, allow_nan=False)))
    mlm = MLMExtension.ext(read)
    assert (mlm.mlm_name, mlm.architecture, mlm.framework) == ("squares", "RetinaNet", "PyTorch")
    assert mlm.tasks == ["object-detection"]
    assert mlm.input[0].bands == ["red", "nir"] == [b["name"] for b in read.properties["bands"]]
    assert mlm.input[0].input.shape == [-1, 2, 64, 64]
    names = [(c.value, c.name, c.description) for c in mlm.output[0].classes or []]
    assert names == [(0, "square", "square"), (1, "blue-car-van", "blue car/van")]
    assert read.properties["gsd"] == model.card.gsd_m
    assert VersionExtension.ext(read).version == "1"


def test_only_an_item_whose_sizes_mean_nothing_says_so(tmp_path: Path) -> None:
    item, _ = make_item(tmp_path)
    assert SIZES_MEANINGFUL not in item["properties"]
    item, _ = make_item(tmp_path, sizes_meaningful=False)
    assert item["properties"][SIZES_MEANINGFUL] is False


def test_asset_can_be_checked(tmp_path: Path) -> None:
    item, model = make_item(tmp_path)
    asset = pystac.Item.from_dict(item).assets["model"]
    file = FileExtension.ext(asset)
    assert file.size == len(model.content)
    digest = hashlib.sha256(model.content).digest()
    assert file.checksum == "1220" + digest.hex()  # multihash: sha2-256, 32 bytes
    assert bytes.fromhex(file.checksum)[:2] == bytes([0x12, len(digest)])


def test_required_fields_of_mlm_1_5(tmp_path: Path) -> None:
    """What the extension's text and schema demand, in our words: no schema of it lies at hand."""
    item, model = make_item(tmp_path)
    properties, asset = item["properties"], item["assets"]["model"]
    assert "https://stac-extensions.github.io/mlm/v1.5.0/schema.json" in item["stac_extensions"]
    for field in ("name", "architecture", "tasks", "input", "output"):
        assert properties[f"mlm:{field}"]
        assert f"mlm:{field}" not in asset
    assert "mlm:model" in asset["roles"]
    assert asset["mlm:artifact_type"]
    for side, array in (("input", "input"), ("output", "result")):
        assert {"name", array} <= properties[f"mlm:{side}"][0].keys()
        assert properties[f"mlm:{side}"][0][array].keys() == {"shape", "dim_order", "data_type"}
    # Inputs that name bands have a dimension of that name; the version's schema rejects others.
    assert "bands" in properties["mlm:input"][0]["input"]["dim_order"]
    scaling = properties["mlm:input"][0]["value_scaling"]
    assert len(scaling) == len(model.card.bands)
    assert all(one.keys() == {"type", "mean", "stddev"} for one in scaling)


def test_scaling_is_the_detectors(tmp_path: Path) -> None:
    scaling = {"mean": (0.2, 0.4), "std": (0.1, 0.3), "source_range": (0, 4000)}
    item, _ = make_item(tmp_path, bands=("red", "nir"), scaling=scaling)
    given = item["properties"]["mlm:input"][0]
    assert [one["mean"] for one in given["value_scaling"]] == pytest.approx([51, 102])
    assert [one["stddev"] for one in given["value_scaling"]] == pytest.approx([25.5, 76.5])
    assert "0..4000" in given["description"]


@pytest.mark.parametrize(
    ("name", "told"), [("trees", "trees"), ("9", "scenesweep-9"), ("a_", "scenesweep-a")]
)
def test_name_is_one_that_mlm_takes(tmp_path: Path, name: str, told: str) -> None:
    assert make_item(tmp_path, name=name)[0]["properties"]["mlm:name"] == told


def test_long_licence_is_other(tmp_path: Path) -> None:
    item, _ = make_item(tmp_path, licence="Weights Apache-2.0; labels CC BY 4.0")
    assert item["properties"]["license"] == "other"


def test_all_parameters_are_counted(tmp_path: Path) -> None:
    item, model = make_item(tmp_path)
    trained = sum(p.numel() for p in build(model.card).parameters())
    assert item["properties"]["mlm:total_parameters"] >= trained  # and batch norm's statistics


def test_same_model_same_item(tmp_path: Path) -> None:
    item, model = make_item(tmp_path)
    assert model_item(model, href="./m.safetensors") == item
