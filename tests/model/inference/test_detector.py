"""Card, network, checkpoint and detector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from scenesweep.model.card import parse_card, read_card
from scenesweep.model.errors import ModelError
from scenesweep.model.files.checkpoint import load_network, save_model
from scenesweep.model.files.model_file import built_in_models, open_model
from scenesweep.model.inference.detector import Detector, load_detector, use_process
from scenesweep.model.inference.windows import chips_of
from scenesweep.model.networks.network import build
from scenesweep.model.settings import DetectorSettings
from tests.rasters import make_card
from tests.small_models import a_model, noise


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gsd_m": -1}, "gsd_m"),
        ({"colour": "red"}, "colour: there is no such name"),
        ({"chip_px": 100}, "multiple of 8"),
        ({"margin_px": 40}, "margin_px: expected less than half of chip_px"),
        ({"classes": ()}, "classes"),
        ({"scaling": {"mean": (0.1, 0.2)}}, r"scaling\.mean: expected one number for each"),
        ({"architecture": {"levels": (1, 3)}}, "levels: expected a first"),
        ({"architecture": {"levels": (6, 7)}}, "levels: expected a first"),
        (
            {"architecture": {"levels": (3, 6), "anchor_sizes_px": [[8], [], [], []]}},
            "P6 is of no use",
        ),
        (
            {"architecture": {"kind": "fcos", "head_convs": 2}},
            "of its own; remove head_convs",
        ),
        (
            {"architecture": {"head_norm": "group", "channels": 40}},
            "multiple of 32 channels, got 40",
        ),
        (
            {"architecture": {"kind": "ssd"}, "losses": {"gamma": 1}},
            "has targets and losses",
        ),
        (
            {"assignment": {"background_iou": 0.6}},
            "background_iou: expected at most",
        ),
        ({"losses": {"alpha": (0.1, 0.2)}}, r"losses\.alpha: expected one number for each"),
        ({"losses": {"class_counts": (1, 2)}}, r"losses\.class_counts: expected one"),
        ({"missing_bands_ok": ("nir",)}, "missing_bands_ok: expected names of bands, got nir"),
        ({"architecture": {"levels": (2, 3)}}, "one tuple for each of the 2 levels"),
    ],
)
def test_a_wrong_card_is_refused_with_its_key(changes: dict[str, Any], said: str) -> None:
    values = make_card().model_dump() | changes
    with pytest.raises(ModelError, match=said):
        parse_card(values, origin="card.yaml")


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    model = a_model(tmp_path)
    assert model.card == make_card()
    assert len(model.sha256) == 64
    for name, value in load_network(model).state_dict().items():
        assert torch.isfinite(value.float()).all(), name


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "nan", "no card", "not ours"])
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    weights = build(make_card()).state_dict()
    key = "head.classification_head.cls_logits.bias"
    if fault == "missing":
        del weights[key]
    elif fault == "extra":
        weights["more"] = torch.zeros(1)
    elif fault == "shape":
        weights[key] = torch.zeros(7)
    elif fault == "nan":
        weights[key] = weights[key] * torch.nan
    path = tmp_path / "m.safetensors"
    save_model(path, make_card(), weights)
    if fault == "no card":
        safetensors.torch.save_file(weights, path, metadata={"a": "b"})
    elif fault == "not ours":
        path.write_bytes(b"PK\x03\x04" + b"0" * 100)
    said = {
        "missing": f"{key} is missing",
        "extra": "more is not part of the network",
        "shape": r"has shape \(7,\), expected \(1,\)",
        "nan": "contains NaN or infinity",
        "no card": "without a scenesweep model card",
        "not ours": "expected a safetensors file",
    }
    with pytest.raises(ModelError, match=said[fault]):
        load_network(open_model(str(path)))


def test_an_unknown_model_names_the_built_in_ones() -> None:
    with pytest.raises(ModelError, match="naip-trees"):
        open_model("nothing-of-that-name")
    with pytest.raises(ModelError, match="cannot read a model card"):
        read_card(Path("no-such-card.yaml"))


@pytest.mark.parametrize(
    ("name", "bands", "f_score"),
    [
        ("naip-trees", ("red", "green", "blue", "nir"), 0.75),
        ("overhead-buildings", ("red", "green", "blue"), 0.61),
    ],
)
def test_a_shipped_model_is_small_and_says_how_it_was_made(
    name: str, bands: tuple[str, ...], f_score: float
) -> None:
    assert built_in_models()[name].stat().st_size < 20_000_000
    card = open_model(name).card
    assert card.name == name
    assert card.bands == bands
    assert json.loads(card.model_dump_json())["training"]["validation"]["f_score"] >= f_score
    detector = load_detector(open_model(name), DetectorSettings())
    scores = detector.detect(noise(1, len(bands), 128)).boxes.score
    assert scores.min(initial=1) >= card.inference.score_threshold >= 0.3


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_chips_boxes_do_not_depend_on_its_companions(
    tmp_path: Path, batch: int, precision: Any
) -> None:
    settings = DetectorSettings(device="cpu", batch=batch, precision=precision)
    detector = load_detector(a_model(tmp_path), settings)
    chips = noise(5)
    together = detector.detect(chips).boxes
    assert len(together) > 20
    backwards = detector.detect(chips[::-1].copy()).boxes
    for i in range(5):
        one = together.take(together.chip == i)
        for other in (detector.detect(chips[i : i + 1]).boxes, backwards):
            same = other.take(other.chip == (4 - i if other is backwards else 0))
            np.testing.assert_array_equal(one.xyxy, same.xyxy)
            np.testing.assert_array_equal(one.score, same.score)


@pytest.mark.parametrize("cap", ["topk_per_level", "max_detections_per_chip"])
def test_reaching_a_cap_is_said(tmp_path: Path, cap: str) -> None:
    model = a_model(tmp_path, bias=2.0)
    free = load_detector(model, DetectorSettings(device="cpu")).detect(noise(2))
    assert not free.capped.any()
    inference = model.card.inference.model_copy(update={cap: 5})
    capped = load_detector(model, DetectorSettings(device="cpu"), inference=inference).detect(
        noise(2)
    )
    assert capped.capped.all()
    assert 0 < len(capped.boxes) <= 10
    best = free.boxes.score[free.boxes.chip == 0].max()
    assert capped.boxes.score[capped.boxes.chip == 0].max() == best


def test_boxes_stay_in_their_chip_and_scores_above_the_threshold(tmp_path: Path) -> None:
    found = load_detector(a_model(tmp_path), DetectorSettings(device="cpu"))
    boxes = found.detect(noise(3)).boxes
    assert (boxes.xyxy >= 0).all()
    assert (boxes.xyxy <= 64).all()
    assert (boxes.score > 0.05).all()
    assert boxes.xyxy.dtype == np.float32
    assert boxes.label.max() == 0


def test_chips_of_another_shape_are_refused(tmp_path: Path) -> None:
    detector = load_detector(a_model(tmp_path), DetectorSettings(device="cpu"))
    with pytest.raises(ValueError, match=r"expected chips \(N, 1, H, W\)"):
        detector.detect(noise(1, 2))
    assert len(detector.detect(noise(0)).boxes) == 0


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="expected a CUDA GPU, found none"):
        Detector(build(make_card()), make_card(), DetectorSettings(device="cuda"))


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Watch the calls that set up the allocator; put torch's threads back at the end."""
    threads, calls = torch.get_num_threads(), list[str]()
    monkeypatch.setattr(
        "scenesweep.model.inference.process.keep_freed_memory", lambda: calls.append("kept")
    )
    yield calls
    torch.set_num_threads(threads)


def test_loading_a_detector_leaves_the_callers_process_alone(
    tmp_path: Path, allocator: list[str]
) -> None:
    a_model(tmp_path)
    torch.set_num_threads(3)
    detector = Detector.load(str(tmp_path / "m.safetensors"), device="cpu")
    detector.detect(noise(1))
    assert torch.get_num_threads() == 3
    assert allocator == []
    assert not detector.winograd  # which is for one thread


def test_threads_are_set_when_they_are_asked_for(tmp_path: Path, allocator: list[str]) -> None:
    a_model(tmp_path)
    torch.set_num_threads(3)
    Detector.load(str(tmp_path / "m.safetensors"), device="cpu", threads=2)
    assert torch.get_num_threads() == 2
    assert allocator == []


def test_a_process_for_a_detector_alone_is_set_up_for_it(allocator: list[str]) -> None:
    torch.set_num_threads(3)
    use_process(DetectorSettings(device="cpu", threads=1))
    assert torch.get_num_threads() == 1
    assert allocator == ["kept"]


def test_a_gpu_detector_says_what_decides_its_last_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = load_detector(a_model(tmp_path), DetectorSettings(device="cpu", batch=8))
    detector.device, detector.dtype = torch.device("cuda"), torch.bfloat16
    detector.winograd = False
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    said = f"cuda bfloat16, NVIDIA H200, batch 8, torch {torch.__version__}, cuDNN 91900"
    assert detector.runs_on == said


def test_submit_and_collect_on_a_cpu_are_detect(tmp_path: Path) -> None:
    detector = load_detector(a_model(tmp_path), DetectorSettings(device="cpu"))
    chips = noise(5)
    ticket = detector.submit(chips_of(chips[:2]), chips_of(chips[2:]))
    found, wanted = detector.collect(ticket), detector.detect(chips)
    assert len(wanted.boxes)
    np.testing.assert_array_equal(found.boxes.xyxy, wanted.boxes.xyxy)
    np.testing.assert_array_equal(found.boxes.chip, wanted.boxes.chip)
    np.testing.assert_array_equal(found.capped, wanted.capped)
