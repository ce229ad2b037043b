"""Model files of others: they run no code, and what is wrong with them is said in one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from scenesweep.model.card import ModelCard, read_card
from scenesweep.model.errors import ModelError
from scenesweep.model.files.checkpoint import load_network, read_weights, save_model, shrink_model
from scenesweep.model.files.model_file import (
    CARD_KEY,
    SCALE,
    built_in_models,
    open_model,
    parameter_count,
)
from scenesweep.model.networks.network import build
from tests.rasters import make_card


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(path, make_card(), build(make_card()).state_dict())
    return path


def large() -> ModelCard:
    """A card whose backbone has convolutions of a million weights and more."""
    return make_card(
        architecture=make_card().architecture.model_copy(
            update={"levels": (2, 5), "anchor_sizes_px": ((16,), (32,), (64,), (128,))}
        )
    )


def test_large_convolutions_are_kept_in_eight_bits(tmp_path: Path) -> None:
    """Half the room of float16, each weight within half a step, and nothing else changed."""
    path, whole = tmp_path / "m.safetensors", tmp_path / "whole.safetensors"
    weights = build(large()).state_dict()
    weights["backbone.body.layer4.1.conv2.weight"][7] = 0.0  # a channel with nothing in it
    save_model(whole, large(), weights)
    shrink_model(open_model(str(whole)), path)
    before = load_network(open_model(str(whole))).state_dict()
    after = load_network(open_model(str(path))).state_dict()
    coarse = {key for key in before if not torch.equal(before[key], after[key])}
    assert coarse == {key for key, value in before.items() if value.numel() >= 1e6}
    assert len(coarse) == 4
    for key in coarse:
        step = before[key].abs().amax(dim=(1, 2, 3), keepdim=True) / 127
        assert bool(((before[key] - after[key]).abs() <= step * 0.501).all())
    saved = whole.stat().st_size - path.stat().st_size
    assert saved == pytest.approx(sum(before[key].numel() for key in coarse), rel=0.01)
    assert parameter_count(path.read_bytes()) == parameter_count(whole.read_bytes())
    assert torch.equal(read_weights(path).tensors[min(coarse)], after[min(coarse)])


def test_a_model_file_has_the_rights_of_any_file(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "any").touch()
    assert whole.stat().st_mode == (tmp_path / "any").stat().st_mode
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({SCALE: None}, "layer4.0.conv2.weight is in 8 bits without a scale"),
        ({SCALE: torch.ones(3)}, "layer4.0.conv2.weight is in 8 bits without a scale"),
        ({SCALE: torch.full((512,), float("nan"))}, "layer4.0.conv2.weight contains NaN"),
        ({"": torch.zeros(512, 512, 3, 3)}, "scale_of_int8 is not part of the network"),
    ],
)
def test_eight_bits_and_scales_belong_together(
    tmp_path: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    path, key = tmp_path / "m.safetensors", "backbone.body.layer4.0.conv2.weight"
    save_model(path, large(), build(large()).state_dict(), eight_bits=True)
    stored = safetensors.torch.load_file(path)
    for suffix, value in change.items():
        stored.pop(key + suffix)
        if value is not None:
            stored[key + suffix] = value
    safetensors.torch.save_file(stored, path, metadata={CARD_KEY: large().model_dump_json()})
    with pytest.raises(ModelError, match=said):
        load_network(open_model(str(path)))


def safetensors_with(card: str) -> bytes:
    """Return a safetensors file of no tensors that holds this text as its card."""
    header = json.dumps({"__metadata__": {CARD_KEY: card}}).encode()
    return struct.pack("<Q", len(header)) + header


def test_a_header_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ModelError, match=r"claims 4,611,686,018,427,387,904 bytes"):
        open_model(str(path))


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ('{"gsd_m": NaN}', "NaN is not a number in JSON"),
        ('{"gsd_m": -Infinity}', "-Infinity is not a number"),
        ("[]", "not a model card"),
        ('{"hook": "os.system"}', "hook: there is no such name"),
    ],
)
def test_a_card_is_plain_json_with_known_names(tmp_path: Path, card: str, said: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_with(card))
    with pytest.raises(ModelError, match=said):
        open_model(str(path))


def test_a_card_that_asks_for_more_than_its_weights_takes_no_memory(tmp_path: Path) -> None:
    """Ten million channels would take terabytes: the shapes are compared first."""
    path = tmp_path / "m.safetensors"
    card = make_card(
        architecture=make_card().architecture.model_copy(update={"channels": 8_000_000})
    )
    safetensors.torch.save_file(
        {"a": torch.zeros(1)}, path, metadata={CARD_KEY: card.model_dump_json()}
    )
    with pytest.raises(ModelError, match="weights do not fit the card"):
        load_network(open_model(str(path)))


def test_a_damaged_model_file_is_refused_or_sound(whole: Path, tmp_path: Path) -> None:
    """100 files with bytes changed, most of them in the header: one line, or a finite network."""
    content = whole.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    refused = _damage_many(
        content,
        header,
        tmp_path / "m.safetensors",
        lambda path: load_network(open_model(str(path))),
    )
    assert len(refused) > 30
    assert not any("\n" in said for said in refused)


def test_a_damaged_pytorch_file_is_refused_or_holds_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(12.0), "b": torch.ones(3, 4)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    refused = _damage_many(content, len(content), tmp_path / "w.pth", read_weights)
    assert len(refused) > 20
    assert not any("\n" in said for said in refused)


def _damage_many(content: bytes, header: int, path: Path, load: Callable[[Path], Any]) -> list[str]:
    """Load files with some bytes changed; what is said of those that are refused."""
    rng, refused = np.random.default_rng(0), []
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, header if rng.random() < 0.9 else len(content)))
            damaged[at] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try:
            load(path)
        except ModelError as error:
            refused.append(str(error))
    return refused


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch sprung']",
        "a: !!python/name:os.system",
        "[" * 1500,
        "made: 2020-99-99",
        "\x00",
        "name: &a [*a]",
    ],
)
def test_a_card_in_yaml_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("card.yaml").write_text(text)
    with pytest.raises(ModelError, match=r"card\.yaml"):
        read_card(Path("card.yaml"))
    assert not Path("sprung").exists()


@pytest.mark.parametrize("name", sorted(built_in_models()))
def test_a_built_in_model_says_of_sizes_what_its_yaml_card_says(name: str) -> None:
    cards = Path(str(resources.files("scenesweep.model"))) / "cards"
    written = read_card(cards / f"{name}.yaml")
    assert open_model(name).card.sizes_meaningful is written.sizes_meaningful
    assert written.sizes_meaningful is (name != "naip-trees")  # its labels are points
