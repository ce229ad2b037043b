"""`scenesweep evaluate` as a user types it: chips and published scenes, boxes and points."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import CRS
from shapely import Polygon, box

from scenesweep.jobs import cli, evaluate
from scenesweep.model.boxes import Boxes, DetectorOutput
from scenesweep.model.card import ModelCard
from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.files.model_file import open_model
from scenesweep.model.networks.network import build
from scenesweep.pipeline.geometry.georef import corners, to_lonlat, to_map
from tests.rasters import (
    SHARED,
    TRANSFORM,
    UTM,
    SquareDetector,
    make_card,
    make_job,
    needs_data,
    paint_squares,
    write_raster,
)
from tests.servers import files_served
from tests.sweeps import sweep


class Guessing(SquareDetector):
    """Finds every square, large ones with confidence, and as many faint false ones beside them."""

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        found = super().detect(chips).boxes
        side = found.xyxy[:, 2] - found.xyxy[:, 0]
        sure = replace(found, score=np.where(side > 6, 0.8, 0.5).astype(np.float32))
        false = replace(
            found, xyxy=found.xyxy + np.float32(30), score=np.full(len(found), 0.3, np.float32)
        )
        both = Boxes.join(sure, false)
        in_order = both.take(np.argsort(both.chip, kind="stable"))
        return DetectorOutput(in_order, np.arange(len(chips)) == 3)


@pytest.fixture
def card() -> ModelCard:
    return make_card(chip_px=64, inference={"score_threshold": 0.2})


@pytest.fixture
def model(tmp_path: Path, card: ModelCard) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, card, build(card).state_dict())
    return path


@pytest.fixture
def guessing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "load_with_views", lambda *_, **__: Guessing())


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Eight chips with points and boxes, as CSV; the last chip is empty and has no row."""
    points, boxes = ["image,x,y"], ["image_path,xmin,ymin,xmax,ymax,label"]
    for i in range(8):
        pixels, truth = paint_squares(64, 64, largest=12, seed=i, count=0 if i == 7 else 12)
        write_raster(tmp_path / "chips" / f"c{i}.tif", pixels)
        for x0, y0, x1, y1 in truth.astype(int).tolist():
            points.append(f"c{i},{(x0 + x1) // 2},{(y0 + y1) // 2}")
            boxes.append(f"c{i}.tif,{x0},{y0},{x1},{y1},square")
    (tmp_path / "points.csv").write_text("\n".join(points))
    (tmp_path / "boxes.csv").write_text("\n".join(boxes))
    (tmp_path / "all.txt").write_text("".join(f"c{i}\n" for i in range(8)))
    return tmp_path / "chips"


def run(*arguments: object) -> int:
    return cli.main(["evaluate", *map(str, arguments)])


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


@pytest.mark.usefixtures("guessing")
def test_boxes_on_chips(
    tmp_path: Path, model: Path, chips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", model, "--images", chips, "--labels", tmp_path / "boxes.csv")
    said = told(capsys, *common, "--iou", 0.9)
    objects = said["card"]["true_positives"]
    assert said["card"]["threshold"] == 0.2
    assert said["card"]["recall"] == 1
    assert said["card"]["false_positives"] == objects
    assert said["best"]["f_score"] == 1
    assert said["best"]["threshold"] == 0.32
    assert said["average_precision"]["ap50"] == pytest.approx(1)
    assert said["average_precision"]["class_ap50"] == {"square": pytest.approx(1)}
    assert said["count_error"]["relative"] == 1
    assert len(said["count_error"]["samples"]) == 8
    assert said["labels"]["counts"]["chips without objects"] == 1
    assert said["rule"] == {"kind": "boxes", "iou": 0.9}
    assert said["capped_chips"] == 1
    assert said["bootstrap"]["best_threshold"] == {"low": 0.32, "high": 0.32}
    assert run(*common) == 0
    text = capsys.readouterr().out
    assert f"chips: 8, objects: {objects:,}, matched by boxes, IoU >= 0.5" in text
    assert "at the best threshold" in text
    assert "+100.0% in all" in text
    assert "1 chips reached a limit" in text
    assert "COCO AP 1.000, AP50 1.000, AP75 1.000, small 1.000, medium -, large -" in text


@pytest.mark.usefixtures("guessing")
def test_points_on_chips(
    tmp_path: Path, model: Path, chips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", model, "--images", chips, "--labels", tmp_path / "points.csv")
    said = told(capsys, *common, "--list", tmp_path / "all.txt", "--radius-m", 1.2)
    assert {"card", "best", "megapixels_per_second"} < set(said)
    assert said["best"]["f_score"] == 1
    assert 0 < said["best"]["rmse"] < 1
    assert said["average_precision"] is None
    assert said["rule"] == {"kind": "centres", "radius_m": 1.2, "px_m": 0.6}
    assert run(*common, "--iou", 0.5) == 2
    assert "expected --radius-m instead" in capsys.readouterr().err
    (tmp_path / "wrong.txt").write_text("no-such-image.tif\n")
    with files_served(tmp_path) as server:
        again = told(capsys, *common, "--list", f"{server.url}/all.txt", "--radius-m", 1.2)
        assert again["best"] == said["best"]
        wrong = f"{server.url}/wrong.txt"
        assert run(*common, "--list", f"{wrong}?sig=SECRET", "--radius-m", 1.2) == 2
    assert f"{wrong}: expected names of the " in capsys.readouterr().err


@pytest.mark.usefixtures("guessing")
def test_the_best_threshold_goes_into_the_card(
    tmp_path: Path, model: Path, chips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--images", chips, "--labels", tmp_path / "boxes.csv")
    chosen = tmp_path / "new" / "chosen.safetensors"
    assert run("--model", model, *common, "--write-threshold", chosen) == 0
    card = open_model(str(chosen)).card
    assert card.inference.score_threshold == 0.32
    assert card.training["validation"]["f_score"] == 1
    assert card.training["validation"]["chips"] == 8
    assert str(tmp_path) not in card.model_dump_json()
    assert [p.name for p in chosen.parent.iterdir()] == ["chosen.safetensors"]
    said = told(capsys, "--model", chosen, *common)
    assert said["card"]["f_score"] == said["best"]["f_score"] == 1


@pytest.mark.usefixtures("guessing")
def test_a_threshold_is_chosen_for_a_wanted_precision(
    tmp_path: Path, model: Path, chips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", model, "--images", chips, "--labels", tmp_path / "boxes.csv")
    chosen = tmp_path / "chosen.safetensors"
    write = ("--write-threshold", chosen, "--threshold-for")
    assert run(*common, *write, "recall=0.9") == 0
    assert open_model(str(chosen)).card.training["validation"]["recall"] >= 0.9
    assert run(*common, *write, "precision=2") == 2
    assert "expected f, precision=P or recall=R" in capsys.readouterr().err
    assert run(*common, "--threshold-for", "f") == 2
    assert "expected --write-threshold with it" in capsys.readouterr().err


@pytest.mark.usefixtures("guessing")
def test_a_calibration_goes_into_the_card(
    tmp_path: Path, model: Path, chips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores of 0.3 are never correct, those of 0.5 and 0.8 always."""
    common = ("--images", chips, "--labels", tmp_path / "boxes.csv")
    written = tmp_path / "calibrated.safetensors"
    said = told(capsys, "--model", model, *common, "--calibrate", written)["calibration"]
    assert said["folds"] == 8
    assert said["published"]["detections"] == said["every"]["detections"] > 100
    assert said["published"]["expected_calibration_error"] < 0.2
    before, after = open_model(str(model)), open_model(str(written))
    knots = after.card.calibration["square"]
    low, high = knots.at(np.array([0.3, 0.8], np.float32))
    assert low < 0.1 < 0.9 < high
    record = after.card.training["calibration"]
    assert record["chips"] == 8
    assert record["rule"] == {"kind": "boxes", "iou": 0.5}
    changed = {"calibration", "training"}
    assert after.card.model_dump(exclude=changed) == before.card.model_dump(exclude=changed)
    again = told(capsys, "--model", written, *common)
    assert again["calibration"]["folds"] is None
    assert again["card"] == told(capsys, "--model", model, *common)["card"]
    assert run("--model", written, *common) == 0
    text = capsys.readouterr().out
    assert "calibration of the card: " in text
    assert "expected calibration error 0." in text
    assert "probability    detections  mean   correct" in text
    assert "####" in text


@pytest.mark.usefixtures("guessing")
def test_threshold_and_calibration_go_into_one_card(
    tmp_path: Path, model: Path, chips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", model, "--images", chips, "--labels", tmp_path / "boxes.csv")
    chosen, both = tmp_path / "chosen.safetensors", tmp_path / "both.safetensors"
    assert run(*common, "--write-threshold", chosen, "--calibrate", both) == 0
    assert "cross-validated over 8 groups of chips" in capsys.readouterr().out
    card = open_model(str(both)).card
    assert card.inference.score_threshold == 0.32
    assert {"validation", "calibration"} <= card.training.keys()
    assert not open_model(str(chosen)).card.calibration
    (tmp_path / "one.txt").write_text("c0")
    assert run(*common, "--list", tmp_path / "one.txt", "--calibrate", both) == 2
    assert "--calibrate: expected at least 2 chips" in capsys.readouterr().err


@pytest.mark.usefixtures("guessing")
def test_a_calibration_is_of_the_views_it_was_measured_in(
    tmp_path: Path, model: Path, chips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--images", chips, "--labels", tmp_path / "boxes.csv")
    written, views = tmp_path / "calibrated.safetensors", ("--views", "plain", "flip-x")
    assert run("--model", model, *common, "--calibrate", written, *views) == 0
    knots = open_model(str(written)).card.calibration["square"]
    assert knots.measured_in.views == ("plain", "flip-x")
    assert "calibration" not in told(capsys, "--model", written, *common)
    assert "calibration" in told(capsys, "--model", written, *common, *views)


@pytest.mark.usefixtures("guessing")
def test_the_figures_are_printed_before_a_calibration_fails(
    tmp_path: Path, model: Path, chips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", model, "--images", chips, "--labels", tmp_path / "boxes.csv")
    chosen, none = tmp_path / "chosen.safetensors", tmp_path / "none.safetensors"
    (tmp_path / "few.txt").write_text("c0\nc7")
    few = (*common, "--list", tmp_path / "few.txt")
    assert run(*few, "--write-threshold", chosen, "--calibrate", none) == 2
    said = capsys.readouterr()
    assert "at the best threshold" in said.out
    assert "--calibrate: expected at least 40 detections" in said.err
    assert chosen.is_file()
    assert not none.exists()
    assert run(*few, "--calibrate", none, "--json") == 2
    assert json.loads(capsys.readouterr().out)["best"]["f_score"] == 1


def test_an_untrained_network_is_judged_too(
    tmp_path: Path, model: Path, chips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", model, "--images", chips, "--labels", tmp_path / "boxes.csv")
    assert told(capsys, *common)["best"]["f_score"] < 0.5


def vector(path: Path, truth: NDArray[np.float64], *, points: bool) -> Path:
    """Write true boxes, or their centres, as a vector file on the ground."""
    corner = to_map(truth[:, :2], TRANSFORM), to_map(truth[:, 2:], TRANSFORM)
    shapes = [box(*a, *b) for a, b in zip(*corner, strict=True)]
    frame = gpd.GeoDataFrame({"class_name": ["square"] * len(shapes)}, geometry=shapes, crs=UTM)
    if points:
        frame = frame.set_geometry(frame.centroid)
    frame.to_file(path, driver="GPKG")
    return path


def test_a_sweep_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two objects more in the truth than there are: they are missed, and told."""
    pixels, truth = paint_squares(304, 208, largest=10, seed=2, count=150)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    sweep([scene], make_job(tmp_path / "out"), Guessing())
    more = np.vstack([truth, [[200.5, 100.5, 210.5, 110.5], [20.5, 30.5, 30.5, 40.5]]])
    common = ("--detections", tmp_path / "out", "--images", scene, "--min-side-px", 1)
    labels = ("--labels", vector(tmp_path / "boxes.gpkg", more, points=False))
    said = told(capsys, *common, *labels, "--iou", 0.95)
    assert said["published"]["true_positives"] == len(truth)
    assert said["published"]["false_negatives"] == 2
    assert said["best"]["threshold"] == 0.32
    assert said["best"]["false_positives"] == 0
    assert said["curve"]["threshold"][0] == said["published"]["threshold"]
    seams = said["seams"]
    assert seams["near"]["recall"]["whole"] + seams["elsewhere"]["recall"]["whole"] == len(more)
    assert said["count_error"]["samples"][0]["name"] == "scene"
    assert said["bootstrap"]["places"] > 20
    dots = ("--labels", vector(tmp_path / "dots.gpkg", truth, points=True))
    assert told(capsys, *common, *dots, "--radius-m", 0.1)["best"]["f_score"] == 1
    assert run(*common, *dots) == 0
    text = capsys.readouterr().out
    assert "scenes: 1" in text
    assert "matched by centres within 6 m" in text
    assert "px of window seams" in text


def test_labels_outside_the_swept_area_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, truth = paint_squares(304, 208, largest=10, seed=2, count=150)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    ring = to_map(corners(np.array([[0.0, 0, 150, 208]])), TRANSFORM)
    area = Polygon(to_lonlat(ring, CRS(UTM).to_wkt())[0])
    sweep([scene], make_job(tmp_path / "out", area=area), SquareDetector())
    common = ("--detections", tmp_path / "out", "--images", scene, "--min-side-px", 1)
    labels = ("--labels", vector(tmp_path / "boxes.gpkg", truth, points=False))
    said = told(capsys, *common, *labels, "--iou", 0.95)
    inside = int((truth[:, [0, 2]].mean(axis=1) < 150).sum())
    assert said["objects_not_swept"] == len(truth) - inside > 0
    assert said["published"]["true_positives"] == inside
    assert said["published"]["false_negatives"] == 0
    assert run(*common, *labels, "--iou", 0.95) == 0
    line = f"left out: {len(truth) - inside} objects outside the area of interest of the sweep"
    assert line in capsys.readouterr().out.splitlines()


def test_options_that_do_not_go_together(
    tmp_path: Path, chips: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--images", chips, "--labels", tmp_path / "boxes.csv")
    with_model = (*common, "--model", model)
    for arguments, expected in (
        (common, "expected --model"),
        ((*with_model, "--aoi", chips), "--aoi: expected --detections"),
        ((*with_model, "--iou", 1.5), "--iou: expected"),
        ((*with_model, "--radius-m", 0), "--radius-m: expected"),
        ((*common, "--detections", chips, "--list", chips), "--list: works on chips only"),
        ((*common, "--detections", chips), "no published table"),
    ):
        assert run(*arguments) == 2
        assert expected in capsys.readouterr().err


@needs_data
def test_the_shipped_models_reach_their_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/models; a little below its figures, for kernels differ."""
    trees = SHARED / "naip_trees"
    said = told(
        capsys,
        *("--model", "naip-trees", "--images", trees / "images"),
        *("--labels", trees / "trees.csv", "--list", trees / "val.txt"),
    )
    assert len(said["count_error"]["samples"]) == 86
    assert said["card"]["f_score"] > 0.745
    assert said["calibration"]["published"]["expected_calibration_error"] < 0.04
    buildings = SHARED / "banepa_buildings"
    held_out = [path.stem for path in (buildings / "chips").glob("*386693*.tif")]
    (tmp_path / "held-out.txt").write_text("\n".join(held_out))
    said = told(
        capsys,
        *("--model", "overhead-buildings", "--images", buildings / "chips"),
        *("--labels", buildings / "annotations_coco.json", "--min-side-px", 4),
        *("--list", tmp_path / "held-out.txt"),
    )
    assert len(said["count_error"]["samples"]) == len(held_out) == 8
    assert said["average_precision"]["ap50"] >= 0.60
    assert said["card"]["f_score"] > 0.61
    assert said["calibration"]["every"]["expected_calibration_error"] < 0.04
