"""ONNX files: the boxes of onnxruntime against our detector's, and what Deepness reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms, box_convert, nms

from scenesweep.jobs import cli
from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.files import onnx_file
from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.model.files.onnx_file import INPUT, OUTPUT, onnx_content
from scenesweep.model.inference.detector import load_detector
from scenesweep.model.networks.network import build
from scenesweep.model.settings import DetectorSettings
from tests.rasters import SMALL, make_card
from tests.small_models import a_model, noise

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter uses what torch deprecates
FLOAT32 = DetectorSettings(device="cpu", precision="float32", convolution="direct")


def boxes_of(content: bytes, chip: NDArray[np.uint8], card: ModelCard) -> dict[str, Any]:
    """Run a file as Deepness does: divide by 255, drop low scores, NMS."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    pixels = (chip[None] / 255).astype(np.float32)
    (found,) = session.run([OUTPUT], {INPUT: pixels})
    assert found.shape[:2] == (1, 4 + len(card.classes))
    columns = torch.from_numpy(found[0])
    score, label = columns[4:].max(dim=0)
    kept = score > card.inference.score_threshold
    xyxy = box_convert(columns[:4].T, "cxcywh", "xyxy")[kept]
    score, label = score[kept], label[kept]
    if card.inference.class_agnostic:
        rows = nms(xyxy, score, card.inference.nms_iou)
    else:
        rows = batched_nms(xyxy, score, label, card.inference.nms_iou)
    return {"xyxy": xyxy[rows].numpy(), "score": score[rows].numpy(), "label": label[rows].numpy()}


def assert_our_boxes(model: ModelFile, content: bytes, chip: NDArray[np.uint8]) -> None:
    ours = load_detector(model, FLOAT32).detect(chip[None]).boxes
    theirs = boxes_of(content, chip, model.card)
    assert 5 < len(ours) == len(theirs["score"])
    distance = np.abs(ours.xyxy[:, None] - theirs["xyxy"][None]).max(axis=2)
    distance[np.abs(ours.score[:, None] - theirs["score"][None]) > 1e-4] = np.inf
    distance[ours.label[:, None] != theirs["label"][None]] = np.inf
    nearest = distance.argmin(axis=1)
    assert sorted(nearest) == list(range(len(ours)))
    assert distance.min(axis=1).max() < 1e-2


@pytest.mark.parametrize(
    "changes",
    [{}, {"iou_branch": True, "head_channels": 32, "head_norm": "group"}],
    ids=["plain", "iou-group"],
)
def test_onnxruntime_finds_the_boxes_of_our_detector(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    card = make_card(
        bands=(1, 2, 3, 4),
        architecture=SMALL.model_copy(update=changes),
        inference={"score_threshold": 0.2, "nms_iou": 0.4},
        scaling={"mean": (0.1, 0.2, 0.3, 0.4), "std": (0.2, 0.3, 0.2, 0.1)},
    )
    model = a_model(tmp_path, card)
    assert_our_boxes(model, onnx_content(model), noise(1, bands=4, size=card.chip_px)[0])


def test_the_command_writes_what_deepness_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = make_card(
        classes=("car", "boat"),
        architecture=SMALL.model_copy(update={"backbone": "timm/efficientnet_lite0"}),
        inference={"score_threshold": 0.3, "nms_iou": 0.4, "class_agnostic": True},
    )
    pytest.importorskip("timm")
    model = a_model(tmp_path, card)
    out = tmp_path / "new" / "m.onnx"
    given = ["models", "export", str(tmp_path / "m.safetensors"), "--onnx"]
    assert cli.main([*given, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 1, card.chip_px, card.chip_px]
    assert len(session.get_outputs()) == 1
    assert len(session.get_outputs()[0].shape) == 3
    meta = session.get_modelmeta().custom_metadata_map
    read = {key: json.loads(value) for key, value in meta.items()}
    assert ModelCard.model_validate(read.pop("scenesweep_card")) == model.card
    assert read == {
        "model_type": "Detector",
        "det_type": "YOLO_Ultralytics",
        "class_names": {"0": "car", "1": "boat"},
        "resolution": 100 * card.gsd_m,
        "tile_size": card.chip_px,
        "tiles_overlap": -(-200 * card.margin_px // card.chip_px),
        "det_conf": 0.3,
        "det_iou_thresh": 0.4,
        "det_remove_overlap": True,
        "standardization_mean": [0.0],
        "standardization_std": [1.0],
        "bands": list(card.bands),
    }
    assert cli.main([*given, "--href", "x"]) == 2


def test_a_file_with_other_boxes_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MOST_PX", -1.0)
    with pytest.raises(ModelError, match="the file is not written"):
        onnx_content(a_model(tmp_path))


def test_other_kinds_of_networks_are_refused(tmp_path: Path) -> None:
    architecture = {"kind": "fcos", "backbone": "resnet18", "levels": (3, 5), "channels": 32}
    a_card = make_card(architecture=architecture)
    save_model(tmp_path / "m.safetensors", a_card, build(a_card).state_dict())
    with pytest.raises(ModelError, match=r"expected architecture\.kind retinanet for ONNX"):
        onnx_content(open_model(str(tmp_path / "m.safetensors")))
