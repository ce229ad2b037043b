"""`scenesweep crops`: pictures of detections, in the order of the table."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenesweep.jobs import cli
from scenesweep.pipeline.errors import Exit
from scenesweep.pipeline.results.crops import CropSettings, squares
from tests.jobs.test_view import report
from tests.pages import published
from tests.rasters import write_raster


def picture(row: dict[str, bytes]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(row["bytes"])))


def test_each_detection_gets_a_picture_of_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, to = tmp_path / "out", tmp_path / "crops"
    scene = published(out, count=40)
    report(out, [{"scene_id": "scene", "href": str(scene), "status": "done"}])
    assert cli.main(["crops", str(out), "--to", str(to), "--px", "32"]) == 0
    assert capsys.readouterr().out == f"{to / 'scene.parquet'}: 40 crops\n"
    (table,) = (out / "detections").rglob("*.parquet")
    detections, crops = pq.read_table(table), pq.read_table(to / "scene.parquet")
    for name in ("detection_id", "scene_id", "class_name", "score", "model_sha256"):
        assert crops[name].to_pylist() == detections[name].to_pylist()
    boxes = np.column_stack([detections[n] for n in ("x_min", "y_min", "x_max", "y_max")])
    crop = np.column_stack([crops[f"crop_{n}"] for n in ("x_min", "y_min", "x_max", "y_max")])
    assert crop == pytest.approx(squares(boxes, CropSettings()))
    for place, image in zip(crop, crops["image"].to_pylist(), strict=True):
        shown = picture(image)
        assert shown.shape == (32, 32, 3)
        inside = place.min() >= 0 and place.max() <= 300
        assert (shown.min() > 85) == inside, "what is outside the scene is black"
        assert shown.max() <= 121
    assert image["path"] == f"{detections['detection_id'][-1]}.png"


def test_a_scene_that_changed_is_not_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    scene = published(out, count=5)
    report(out, [{"scene_id": "scene", "href": str(scene), "status": "done"}])
    write_raster(scene, np.random.default_rng(0).integers(1, 255, (1, 300, 300), dtype=np.uint8))
    assert cli.main(["crops", str(out), "--to", str(tmp_path / "to")]) == Exit.SOME_FAILED
    assert "expected the scene as it was swept" in caplog.text


def test_squares_are_around_the_centre_and_never_tiny() -> None:
    boxes = np.array([[10, 10, 30, 20], [5, 5, 6, 6]], np.float64)
    around = squares(boxes, CropSettings(around=2.0, least_px=16))
    assert around.tolist() == [[0, -5, 40, 35], [-2.5, -2.5, 13.5, 13.5]]


def test_scores_and_scenes_can_be_chosen(tmp_path: Path) -> None:
    out, to = tmp_path / "out", tmp_path / "to"
    results = []
    for name in ("one", "two"):
        href = str(published(out, name=name, count=30))
        results.append({"scene_id": name, "href": href, "status": "done"})
    report(out, results)
    assert cli.main(["crops", str(out), "two", "--to", str(to), "--min-score", "0.5"]) == 0
    assert [path.name for path in to.iterdir()] == ["two.parquet"]
    scores = pq.read_table(to / "two.parquet")["score"].to_numpy()
    assert 0 < len(scores) < 30
    assert scores.min() >= 0.5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--px", "2"], "--px: expected 8 to 2048, got 2"),
        (["--around", "0"], "--around: expected 0.5 to 20, got 0"),
        (["lost"], "expected published scenes, found no scene lost"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    out = tmp_path / "out"
    published(out, count=3)
    assert cli.main(["crops", str(out), *more, "--to", str(tmp_path / "to")]) == Exit.USAGE
    assert said in capsys.readouterr().err
