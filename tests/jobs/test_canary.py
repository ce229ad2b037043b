"""The canary finds 20 faults, raises no false alarm on any way of computing, and can stop a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scenesweep.jobs import cli
from scenesweep.jobs.shared import canary as shared
from scenesweep.jobs.shared.canary import canary_key, sweep_canary
from scenesweep.jobs.suburb import Suburb, paint_suburb
from scenesweep.model.card import ModelCard
from scenesweep.model.files.checkpoint import load_network, save_model
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.pipeline.errors import Exit
from scenesweep.pipeline.runs.canary import Answer, compare, known_answer
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.settings import Settings, validated
from scenesweep.pipeline.storage.paths import Output
from scenesweep.pipeline.sweep import take_order
from tests.rasters import paint_squares, write_raster
from tests.small_models import a_model

Weights = dict[str, torch.Tensor]
MODEL = open_model("naip-trees")
CLASSES = "head.classification_head.cls_logits"


def found_on(folder: Path, model: ModelFile = MODEL, **settings: Any) -> tuple[str, ...]:
    """Sweep the canary with a model and settings, and compare with the package's answer."""
    order = take_order([], model, str(folder / "out"), None, validated(Settings, settings))
    return differences(order)


def differences(order: Order) -> tuple[str, ...]:
    expected = known_answer(order.job.out, canary_key(MODEL.card, Settings()))
    assert expected is not None
    return compare(expected, sweep_canary(order, expected.pixel_m, address="none"))


def with_card(**changes: Any) -> ModelFile:
    """Return naip-trees with another card, as a faulty file or a bug would give it."""
    card = MODEL.card.model_dump()
    for key, value in changes.items():
        card[key] = card[key] | value if isinstance(value, dict) else value
    return replace(MODEL, card=ModelCard.model_validate(card))


def with_weights(folder: Path, change: Callable[[Weights], None]) -> ModelFile:
    """Return naip-trees with changed weights, under the same name and version."""
    path = folder / "changed.safetensors"
    weights = {name: value.clone() for name, value in load_network(MODEL).state_dict().items()}
    change(weights)
    save_model(path, MODEL.card, weights)
    return open_model(str(path))


def noisy(weights: Weights) -> None:
    generator = torch.Generator().manual_seed(0)
    for tensor in weights.values():
        if tensor.ndim == 4:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor += 0.05 * tensor.float().std() * noise


def scaled_layer(weights: Weights) -> None:
    weights[f"{CLASSES}.weight"] *= 1.1


def shifted_bias(weights: Weights) -> None:
    weights[f"{CLASSES}.bias"] += 0.1


def overflowed(weights: Weights) -> None:
    """Saturated scores. Numbers that are not finite are refused when a model is loaded."""
    weights[f"{CLASSES}.weight"] *= 1e4


WEIGHTS = [noisy, scaled_layer, shifted_bias, overflowed]
CARDS: dict[str, dict[str, Any]] = {
    "another NMS threshold": {"inference": {"nms_iou": 0.5}},
    "a lower score threshold": {"inference": {"score_threshold": 0.25}},
    "few candidates for a level": {"inference": {"topk_per_level": 50}},
    "few detections for a chip": {"inference": {"max_detections_per_chip": 20}},
    "GSD twice as large": {"gsd_m": 1.2},
    "GSD half as large": {"gsd_m": 0.3},
    "another mean": {"scaling": {"mean": (0.4, 0.4, 0.4, 0.4)}},
    "another deviation": {"scaling": {"std": (0.35, 0.35, 0.35, 0.35)}},
    "other anchors": {"architecture": {"anchor_sizes_px": ((14,), (), ())}},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "red and near infrared swapped": {"read": {"bands": ("nir", "green", "blue", "red")}},
    "red and blue swapped": {"read": {"bands": ("blue", "green", "red", "nir")}},
    "another merge": {"merge": {"iou": 0.05, "containment": 0.1}},
}
Pixels = NDArray[np.uint8]


def darker(pixels: Pixels) -> Pixels:
    return (pixels * 0.9).astype(np.uint8)


def shifted(pixels: Pixels) -> Pixels:
    return np.roll(pixels, 1, axis=2)


def without_infrared(pixels: Pixels) -> Pixels:
    return np.concatenate([pixels[:3], np.ones_like(pixels[:1])])


def upside_down(pixels: Pixels) -> Pixels:
    return pixels[:, ::-1].copy()


READING = [darker, shifted, without_infrared, upside_down]


def test_there_are_twenty_faults() -> None:
    assert len(WEIGHTS) + len(CARDS) + len(SETTINGS) + len(READING) == 20


@pytest.mark.parametrize("change", WEIGHTS, ids=lambda change: change.__name__)
def test_changed_weights_are_found(tmp_path: Path, change: Callable[[Weights], None]) -> None:
    assert found_on(tmp_path, with_weights(tmp_path, change))


@pytest.mark.parametrize("fault", CARDS)
def test_a_changed_card_is_found(tmp_path: Path, fault: str) -> None:
    assert found_on(tmp_path, with_card(**CARDS[fault]))


@pytest.mark.parametrize("fault", SETTINGS)
def test_other_ways_of_reading_and_merging_are_found(tmp_path: Path, fault: str) -> None:
    assert found_on(tmp_path, **SETTINGS[fault])


@pytest.mark.parametrize("change", READING, ids=lambda change: change.__name__)
def test_wrong_pixels_are_found(
    tmp_path: Path, change: Callable[[Pixels], Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a driver or a library read other pixels."""

    def painted(size_px: int, *, seed: int) -> Suburb:
        suburb = paint_suburb(size_px, seed=seed)
        return Suburb(change(suburb.pixels), suburb.trees)

    monkeypatch.setattr(shared, "paint_suburb", painted)
    assert found_on(tmp_path)


@pytest.mark.parametrize(
    "computing",
    [
        {},
        {"precision": "float32"},
        {"precision": "bfloat16"},
        {"convolution": "direct", "precision": "float32"},
        {"threads": 2},
        {"batch": 4},
    ],
    ids=str,
)
def test_no_way_of_computing_is_a_false_alarm(tmp_path: Path, computing: dict[str, Any]) -> None:
    assert found_on(tmp_path, detect=computing) == ()


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_no_kind_of_processor_is_a_false_alarm(tmp_path: Path, capability: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.jobs.test_canary import found_on; "
        "sys.exit(str(found_on(Path(sys.argv[1])) or 0))"
    )
    isa = {"default": "SSE41", "avx2": "AVX2"}[capability]
    environment = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stderr[-500:].strip() in ("", "0")


def test_the_painted_scene_has_the_bands_of_any_model(tmp_path: Path) -> None:
    order = take_order([], a_model(tmp_path), str(tmp_path / "out"), None, Settings())
    first = sweep_canary(order, 1.0, address="none")
    assert len(first.scores) > 10
    assert compare(first, sweep_canary(order, 1.0, address="none")) == ()


def test_compare_matches_each_detection_once() -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]]
    two = Answer(1.0, boxes, [0.5, 0.6], ["a", "a"])
    assert compare(two, Answer(1.0, boxes[::-1], [0.6, 0.5], ["a", "a"])) == ()
    (said,) = compare(two, Answer(1.0, boxes, [0.5, 0.6], ["b", "b"]))
    assert said == "2 of 2 expected detections are missing, and 2 others are there"
    (said,) = compare(two, Answer(1.0, boxes, [0.5, 0.7], ["a", "a"]))
    assert said.startswith("scores differ by 0.05 on average and by up to 0.1")
    moved = [[x + 0.5 for x in box] for box in boxes]
    (said,) = compare(two, Answer(1.0, moved, [0.5, 0.6], ["a", "a"]))
    assert said.startswith("edges of boxes differ by 0.5 pixels")
    assert compare(two, Answer(1.0))
    assert compare(Answer(1.0), Answer(1.0)) == ()


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    a_model(tmp_path)
    pixels, _ = paint_squares(200, 150, largest=10, seed=1)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    named = {"--model": tmp_path / "m.safetensors", "--out": tmp_path / "out"}
    words = [word for pair in named.items() for word in map(str, pair)]
    return ["detect", str(scene), *words, "--address", "none", "--set", "name=nightly"]


def reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "out/runs").glob("*.json"))]


def test_a_model_without_an_answer_records_its_own_and_is_compared_later(
    tmp_path: Path, command: list[str]
) -> None:
    assert cli.main(command) == 0
    assert cli.main([*command, "--set", "merge.iou=0.4"]) == 0  # other settings: another answer
    assert [report["canary"]["state"] for report in reports(tmp_path)] == ["recorded"] * 2
    (tmp_path / "out" / "detections").rename(tmp_path / "gone")
    assert cli.main(command) == 0
    assert reports(tmp_path)[-1]["canary"]["state"] == "good"
    assert [path.name for path in (tmp_path / "out/items").iterdir()] == ["scene.json"]
    figures = (tmp_path / "out/runs/nightly.prom").read_text()
    assert 'scenesweep_last_run_canary{night="nightly"} 1\n' in figures


@pytest.mark.parametrize(("policy", "code"), [("warn", 0), ("stop", Exit.CANARY)])
def test_another_model_of_the_same_name_is_noticed_and_can_stop_the_run(
    tmp_path: Path,
    command: list[str],
    policy: str,
    code: int,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(command) == 0
    a_model(tmp_path, bias=-1.0)
    assert cli.main([*command, "--canary", policy]) == code
    report = reports(tmp_path)[-1]
    assert report["canary"]["state"] == "changed"
    assert report["scenes"]["unfinished"] == (policy == "stop")
    assert "expected detections are missing" in caplog.text
    assert "canary: " in capsys.readouterr().out
    figures = (tmp_path / "out/runs/nightly.prom").read_text()
    assert 'scenesweep_last_run_canary{night="nightly"} 0\n' in figures


def test_a_run_without_a_name_or_without_work_has_no_canary(
    tmp_path: Path, command: list[str]
) -> None:
    assert cli.main(command[:-2]) == 0
    assert reports(tmp_path)[-1]["canary"] is None
    assert cli.main(command) == 0  # up to date
    assert reports(tmp_path)[-1]["canary"] is None
    assert not Output(tmp_path / "out").canary.exists()
