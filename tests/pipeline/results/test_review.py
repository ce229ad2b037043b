"""Chips to review: which ones, with which pixels, and what the page holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from scenesweep.model.card import ModelCard
from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.geometry.grid import Window
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.results.review import (
    ReviewChip,
    ReviewPage,
    SceneBoxes,
    chip_side,
    choose_chips,
    image_name,
    open_scene_boxes,
    picture,
    read_chip,
    source_for,
    write_image,
    write_review_page,
)
from scenesweep.pipeline.results.view import find_published
from tests.pages import EVIL, Parsed
from tests.rasters import SquareDetector, make_card, make_job, paint_squares, write_raster
from tests.sweeps import sweep


def scene_of(
    count: int, *, name: str = "scene", size: int = 1000, side: float = 10, seed: int = 0
) -> SceneBoxes:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, size - side, (count, 2))
    return SceneBoxes(
        name,
        (size, size),
        np.hstack([corner, corner + side]),
        rng.uniform(0.3, 1, count),
        np.full(count, np.nan),
        np.zeros(count, np.int64),
        np.full(count, 0.3),
        pa.array([f"{seed:08x}{number:08x}" for number in range(count)], pa.string()),
    )


def test_the_lowest_scores_are_doubtful_and_each_is_wholly_on_a_chip() -> None:
    scenes = [scene_of(300, name="a"), scene_of(300, name="b", seed=1)]
    chips, uncertain = choose_chips(scenes, 50, 128)
    doubtful = np.concatenate([uncertain[scene.scene_id] for scene in scenes])
    score = np.concatenate([scene.score for scene in scenes])
    assert doubtful.sum() == 50
    assert score[doubtful].max() < score[~doubtful].min()
    assert len(chips) < 50
    for scene in scenes:
        windows = [chip.window for chip in chips if chip.scene_id == scene.scene_id]
        for x0, y0, x1, y1 in scene.xyxy[uncertain[scene.scene_id]]:
            assert any(
                w.col_off <= x0 and w.row_off <= y0 and x1 <= w.right and y1 <= w.bottom
                for w in windows
            )
        assert all(w.col_off >= 0 and w.right <= 1000 for w in windows)
        assert all((w.width, w.height) == (128, 128) for w in windows)


def test_probabilities_near_a_half_are_doubtful() -> None:
    scene = scene_of(100)
    scene = replace(scene, probability=np.linspace(0, 1, 100))
    _, uncertain = choose_chips([scene], 10, 128)
    assert np.flatnonzero(uncertain["scene"]).tolist() == list(range(45, 55))
    partly = replace(scene, probability=np.where(scene.score > 0.9, np.nan, scene.probability))
    _, by_score = choose_chips([partly], 10, 128)
    assert scene.score[by_score["scene"]].max() < np.sort(scene.score)[10] + 1e-9


def test_few_detections_or_none() -> None:
    chips, uncertain = choose_chips([scene_of(3)], 200, 128)
    assert uncertain["scene"].all()
    assert len(chips) <= 3
    assert choose_chips([scene_of(0)], 200, 128)[0] == []
    assert choose_chips([], 200, 128)[0] == []


def test_a_scene_smaller_than_a_chip_is_one_chip() -> None:
    (chip,), _ = choose_chips([scene_of(4, size=50)], 200, 128)
    assert chip.window == Window(0, 0, 50, 50)


@pytest.mark.parametrize(("side", "expected"), [(4, 128), (12, 128), (20, 192), (200, 512)])
def test_about_eight_objects_fit_along_a_chip(side: float, expected: int) -> None:
    assert chip_side([scene_of(20, side=side)], make_card(chip_px=512)) == expected
    assert chip_side([scene_of(0)], make_card(chip_px=512)) == 128


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return make_card(chip_px=128, margin_px=16, gsd_m=1.2)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, card: ModelCard) -> Path:
    """Sweep a scene of 0.6 m with a model of 1.2 m; some of its pixels are nodata."""
    folder = tmp_path_factory.mktemp("review")
    pixels, _ = paint_squares(400, 300, largest=30, seed=1)
    pixels[0, :, :40] = 0
    scene = write_raster(folder / "scene.tif", pixels, nodata=0)
    (result,) = sweep([scene], make_job(folder / "out", card=card), SquareDetector())
    assert result.status == "done"
    return folder / "out"


def test_a_chip_has_the_pixels_that_the_model_saw(
    tmp_path: Path, out: Path, card: ModelCard
) -> None:
    (published,) = find_published(out).values()
    boxes = open_scene_boxes(published, card)
    scene = inspect(str(out.parent / "scene.tif"))
    source = source_for(published, scene, card)
    assert boxes.size == (200, 150)
    table = pq.ParquetFile(published.table).read(["x_min"])
    np.testing.assert_allclose(boxes.xyxy[:, 0], table["x_min"].to_numpy() / 2)
    chip = ReviewChip("scene", Window(10, 20, 64, 64))
    pixels = read_chip(source, chip)
    write_image(tmp_path / image_name(chip), pixels, source, card)
    assert image_name(chip) == "scene-10-20.tif"
    with rasterio.open(tmp_path / "scene-10-20.tif") as dataset, rasterio.open(scene.href) as whole:
        west, north = whole.bounds.left + 10 * 1.2, whole.bounds.top - 20 * 1.2
        assert tuple(dataset.transform)[:6] == pytest.approx((1.2, 0, west, 0, -1.2, north))
        assert dataset.crs == whole.crs
        np.testing.assert_array_equal(dataset.read(), pixels.pixels)
        assert not dataset.dataset_mask()[:, :10].any()
        assert dataset.dataset_mask()[:, 11:].all()
    again = inspect(str(tmp_path / "scene-10-20.tif"))
    assert again.gsd_m == pytest.approx((1.2, 1.2), rel=1e-3)
    assert picture(pixels, card)[:4] == b"RIFF"


def test_the_page_holds_all_boxes_of_its_chips(tmp_path: Path) -> None:
    scene = scene_of(200)
    chips, uncertain = choose_chips([scene], 5, 128)
    names = make_card(classes=(EVIL,))
    page = ReviewPage(names, [scene], chips, uncertain, [b"x"] * len(chips))
    write_review_page(tmp_path / "a.html", page)
    write_review_page(tmp_path / "b.html", page)
    text = (tmp_path / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    parsed = Parsed(text)
    (told,) = parsed.data["scenes"]
    shown = {box["id"] for box in told["boxes"]}
    x, y = (scene.xyxy[:, :2] + 5).T
    for chip in chips:
        w = chip.window
        here = (x > w.col_off) & (x < w.right) & (y > w.row_off) & (y < w.bottom)
        assert {scene.ids[row].as_py() for row in np.flatnonzero(here)} <= shown
    assert sum(box["uncertain"] for box in told["boxes"]) == 5
    assert len(parsed.data["chips"]) == len(chips)
    assert parsed.data["classes"] == [EVIL]
    assert not [a for tag, attrs in parsed.tags for a in attrs if a.startswith("on")]


def test_a_table_of_another_model_is_refused(out: Path) -> None:
    (published,) = find_published(out).values()
    with pytest.raises(UnreadableOutput, match=r"was made with the model squares .*--model"):
        open_scene_boxes(published, make_card(classes=("ship",)))
    with pytest.raises(UnreadableOutput, match="expected a table that scenesweep detect"):
        open_scene_boxes(replace(published, provenance=None), make_card())
