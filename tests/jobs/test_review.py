"""`scenesweep review` as a user types it, and the labels of its page in `scenesweep train`."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from scenesweep.jobs import cli
from scenesweep.jobs import review as review_job
from scenesweep.model.card import noted, read_card
from scenesweep.model.files.model_file import open_model, with_card
from scenesweep.pipeline.errors import Exit, SceneError
from scenesweep.pipeline.raster.chips import Chips, Source
from scenesweep.pipeline.results.review import ReviewChip, read_chip
from tests.pages import Parsed
from tests.rasters import make_card, paint_squares, write_raster
from tests.small_models import a_model


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweep a scene with an untrained model, which finds something everywhere."""
    folder = tmp_path_factory.mktemp("swept")
    a_model(folder, make_card(inference={"score_threshold": 0.2}))
    pixels, _ = paint_squares(300, 200, largest=14, seed=3)
    scene = write_raster(folder / "scene.tif", pixels)
    run = ("detect", scene, "--model", folder / "m.safetensors", "--out", folder / "out")
    assert cli.main([*map(str, run), "--address", "none"]) == 0
    return folder


def review(folder: Path, *more: object) -> int:
    common = ("review", folder / "out", "--model", folder / "m.safetensors")
    return cli.main([*map(str, common), *map(str, more)])


def accepted(page: Path) -> dict[str, Any]:
    """Return the labels that the page saves when all boxes are accepted.

    `tests/pipeline/results/test_review_page.py` tests the page's own.
    """
    data = Parsed(page.read_text()).data
    images, annotations = [], []
    for number, chip in enumerate(data["chips"], 1):
        size = {"width": chip["width"], "height": chip["height"]}
        images.append({"id": number, "file_name": chip["name"], **size})
        right, bottom = chip["left"] + chip["width"], chip["top"] + chip["height"]
        for box in data["scenes"][chip["scene"]]["boxes"]:
            x0, y0, x1, y1 = box["xyxy"]
            across = min(x1, right) - max(x0, chip["left"])
            down = min(y1, bottom) - max(y0, chip["top"])
            if across > 0 and down > 0 and across * down >= 0.3 * (x1 - x0) * (y1 - y0):
                bbox = [x0 - chip["left"], y0 - chip["top"], x1 - x0, y1 - y0]
                annotations.append({"image_id": number, "category_id": 1, "bbox": bbox})
    categories = [{"id": 1, "name": name} for name in data["classes"]]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_from_errors_to_a_model_in_two_commands(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "review"
    assert review(swept, "--uncertain", 40, "--chip-px", 64, "--to", folder) == 0
    text = capsys.readouterr().out
    assert "review: 40 uncertain detections on" in text
    assert f"scenesweep train --images {folder / 'images'} --labels labels.json" in text
    labels = accepted(folder / "review.html")
    assert {image["file_name"] for image in labels["images"]} == {
        path.name for path in (folder / "images").iterdir()
    }
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    train = (
        *("train", "--images", folder / "images", "--labels", tmp_path / "labels.json"),
        *("--card", folder / "card.yaml", "--init", swept / "m.safetensors"),
        *("--out", tmp_path / "better", "--epochs", 1, "--threads", 1),
    )
    assert cli.main([*map(str, train)]) == 0
    better = open_model(str(tmp_path / "better" / "model.safetensors")).card
    assert better.training["initial"] == "m.safetensors"
    assert better.training["training"]["objects"] > 0
    counts = better.training["labels"]["training and validation"]
    assert counts["labels"] == counts["used"] == len(labels["annotations"])


def test_the_page_is_in_out_unless_it_is_named(swept: Path) -> None:
    assert review(swept, "--scene", "scene", "--uncertain", 3) == 0
    folder = swept / "out" / "review"
    assert {path.name for path in folder.iterdir()} == {"review.html", "images", "card.yaml"}
    card = read_card(folder / "card.yaml")
    assert card.name == "squares"
    assert not card.training
    assert cli.main(["verify", str(swept / "out")]) == 0


def test_a_scene_that_is_gone_is_left_out(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = swept / "scene.tif"
    aside = scene.rename(tmp_path / "aside.tif")
    try:
        assert review(swept) == Exit.USAGE
        assert "none of 1 can be read" in capsys.readouterr().err
    finally:
        aside.rename(scene)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--uncertain", 0], "--uncertain: expected at least 1"),
        (["--chip-px", 8], "--chip-px: expected at least 64"),
        (["--scene", "other"], "--scene: other: expected the id of a published scene (scene)"),
    ],
)
def test_wrong_arguments_are_one_line(
    swept: Path, capsys: pytest.CaptureFixture[str], more: list[object], said: str
) -> None:
    assert review(swept, *more) == Exit.USAGE
    assert said in capsys.readouterr().err


def test_the_model_must_be_known(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["review", str(swept / "out")]) == Exit.USAGE
    assert "expected --model, the file of the model that made the" in capsys.readouterr().err
    other = tmp_path / "m.safetensors"
    model = open_model(str(swept / "m.safetensors"))
    other.write_bytes(with_card(model, noted(model.card, other={"a": 1})).content)
    assert cli.main(["review", str(swept / "out"), "--model", str(other)]) == Exit.USAGE
    said = capsys.readouterr().err
    assert f"squares@1 ({model.sha256[:12]}); got {other}, which is squares@1 (" in said
    assert cli.main(["review", str(tmp_path)]) == Exit.USAGE
    assert "expected published scenes" in capsys.readouterr().err


def test_detections_of_two_models_are_refused(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = open_model(str(swept / "m.safetensors"))
    other = tmp_path / "other.safetensors"
    other.write_bytes(with_card(model, noted(model.card, other={"a": 1})).content)
    shutil.copytree(swept / "out", tmp_path / "out")
    scene = tmp_path / "later.tif"
    shutil.copy(swept / "scene.tif", scene)
    run = ("detect", scene, "--model", other, "--out", tmp_path / "out", "--address", "none")
    assert cli.main([*map(str, run)]) == 0
    common = ("review", str(tmp_path / "out"), "--model", str(other), "--uncertain", "2")
    assert cli.main([*common]) == Exit.USAGE
    said = capsys.readouterr().err
    for sha256 in (model.sha256, open_model(str(other)).sha256):
        assert f"squares@1 ({sha256[:12]}) made" in said
    assert cli.main([*common, "--scene", "later"]) == 0


def test_only_detections_on_chips_that_are_written_are_counted(
    swept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read, broken = read_chip, {"first"}

    def fails_first(source: Source, chip: ReviewChip) -> Chips:
        if broken:
            broken.clear()
            raise SceneError("painted: cannot be read")
        return read(source, chip)

    def fails(source: Source, chip: ReviewChip) -> Chips:
        raise SceneError("painted: cannot be read")

    folder = tmp_path / "a folder"
    size = ("--uncertain", 30, "--chip-px", 64, "--to", folder)
    monkeypatch.setattr(review_job, "read_chip", fails_first)
    assert review(swept, *size) == 0
    text = capsys.readouterr().out
    shown = Parsed((folder / "review.html").read_text()).data["scenes"][0]["boxes"]
    assert f"review: {sum(box['uncertain'] for box in shown)} uncertain detections on" in text
    assert len(list((folder / "images").iterdir())) > 0
    words = shlex.split(text.splitlines()[-1])
    assert words[words.index("--card") + 1] == str(folder / "card.yaml")
    monkeypatch.setattr(review_job, "read_chip", fails)
    assert review(swept, *size) == Exit.USAGE
    assert "expected chips that can be read, but none of" in capsys.readouterr().err
