"""Real labels: outlines of buildings, points of trees."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from scenesweep.pipeline.labels import LabelSettings, read_chips, read_objects, read_split
from scenesweep.pipeline.raster.inspect import inspect
from tests.rasters import SHARED, make_card


def needs(folder: str) -> Path:
    path = SHARED / folder
    if not path.exists():
        pytest.skip("needs ../shared/data")
    return path


def test_real_buildings_agree_between_chips_and_scene() -> None:
    data = needs("banepa_buildings")
    card = make_card(
        classes=("building",), bands=("red", "green", "blue"), gsd_m=0.132, chip_px=512
    )
    settings = LabelSettings(min_side_px=8)
    images = [str(data / "chips")]
    by_chip, report = read_chips(images, data / "annotations_coco.json", card, settings)
    assert by_chip.chips.shape == (32, 3, 512, 512)
    assert (report.labels, report.used) == (1197, by_chip.objects)
    polygons, _ = read_chips(images, data / "buildings.geojson", card, settings)
    assert polygons.names == by_chip.names
    matched = sum(best_iou(p, b) for p, b in zip(polygons.boxes, by_chip.boxes, strict=True))
    assert matched > 0.98 * polygons.objects
    training, held_out, _ = read_split(
        images, data / "annotations_coco.json", card, settings, share=0.25
    )
    assert {name.split("-")[1] for name in held_out.names} == {"386693"}
    assert (len(training), len(held_out)) == (24, 8)
    scene, _ = read_objects(
        data / "buildings.geojson", [inspect(str(data / "scene.tif"))], ("building",), settings
    )
    assert len(scene["scene"]) == pytest.approx(919, abs=5)


def best_iou(found: NDArray[np.float32], truth: NDArray[np.float32]) -> int:
    """Return how many of the boxes found have a true box with an IoU above 0.7."""
    top = np.maximum(found[:, None, :2], truth[None, :, :2])
    low = np.minimum(found[:, None, 2:], truth[None, :, 2:])
    common = np.prod(np.maximum(low - top, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (found, truth)]
    iou = common / (areas[0][:, None] + areas[1][None] - common)
    return int((iou.max(axis=1, initial=0) > 0.7).sum())


def test_real_points_are_those_of_the_file() -> None:
    data = needs("naip_trees")
    card = make_card(classes=("tree",), bands=("red", "green", "blue", "nir"), chip_px=512)
    samples, report = read_chips(
        [str(data / "images")],
        data / "trees.csv",
        card,
        LabelSettings(box_m=7.2),
        names=data / "val.txt",
    )
    assert samples.chips.shape == (86, 4, 256, 256)
    assert not report.wrong
    with (data / "trees.csv").open() as file:
        rows = [(row["image"], float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
    for number in (0, 40, 85):
        truth = [(x + 0.5, y + 0.5) for image, x, y in rows if image == samples.names[number]]
        np.testing.assert_allclose(samples.centres(number), truth, atol=1e-4)
        assert np.allclose(np.diff(samples.boxes[number][:, ::2]), 12, rtol=1e-3)
