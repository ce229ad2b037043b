"""Objects become chips that show them, at whatever scale, and chips are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import CRS

from scenesweep.pipeline.errors import LabelError, UsageError
from scenesweep.pipeline.geometry.georef import to_chip, to_scene
from scenesweep.pipeline.geometry.grid import Window
from scenesweep.pipeline.labels import (
    LabelSettings,
    Objects,
    open_chips,
    plan_chips,
    read_chips,
    read_split,
    split_east,
    store_chips,
)
from scenesweep.pipeline.labels.label_chips import chip_footprints, objects_on
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.scene import Band, Scene
from tests.labelled import as_gpkg, cut, painted, write_coco, write_csv
from tests.rasters import TRANSFORM, UTM, SquareDetector, make_card, paint_squares, write_raster


def test_chips_show_their_objects_to_the_pixel(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path)
    objects = Objects(boxes, np.zeros(len(boxes), np.int64))
    data = cut(raster, objects, min_visible=1e-6, min_side_px=0)
    assert len(data) > 20
    seen = SquareDetector().detect(data.chips).boxes
    for chip, truth in enumerate(data.boxes):
        found = seen.xyxy[seen.chip == chip]
        assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, truth.tolist()))


BOX = st.tuples(*[st.floats(-20, 220)] * 2, *[st.floats(0.5, 90)] * 2)


@given(boxes=st.lists(BOX, min_size=1, max_size=5), share=st.floats(0.05, 1), points=st.booleans())
def test_an_object_is_on_exactly_the_chips_that_show_enough_of_it(
    boxes: list[tuple[float, ...]], share: float, points: bool
) -> None:
    xyxy = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes])
    objects = Objects(xyxy, np.arange(len(xyxy)), points)
    settings = LabelSettings(min_visible=share, min_side_px=0)
    (cuts,) = plan_chips([flat_scene(200, 150)], make_card(), settings)
    for row, column in np.argwhere(cuts.kept).tolist():
        tile = cuts.grid.tile(row, column)
        rows, found = objects_on(cuts, tile, objects, settings)
        assert rows.tolist() == found.label.tolist()
        expected = [n for n in range(len(xyxy)) if belongs(xyxy[n], tile.window, share, points)]
        assert found.label.tolist() == expected
        back = to_scene(found.xyxy, tile.window.origin, cuts.source.scale)
        left, top = tile.window.col_off, tile.window.row_off
        window = np.array([left, top, left + 64, top + 64])
        for box, number in zip(back, found.label, strict=True):
            whole = xyxy[number]
            part = np.r_[np.maximum(whole[:2], window[:2]), np.minimum(whole[2:], window[2:])]
            np.testing.assert_allclose(box, whole if points else part, atol=1e-9)


def belongs(box: NDArray[np.float64], window: Window, share: float, points: bool) -> bool:
    left, top, right, bottom = box.tolist()
    if points:
        x, y = to_chip(box[None], window, (1, 1))[0].reshape(2, 2).mean(axis=0)
        return bool(0 <= x < 64 and 0 <= y < 64)
    box_px = shapely.box(left - window.col_off, top - window.row_off, right - window.col_off,
                         bottom - window.row_off)  # fmt: skip
    part = shapely.area(shapely.intersection(box_px, shapely.box(0, 0, 64, 64)))
    visible = float(part / shapely.area(box_px))
    return visible >= share if abs(visible - share) > 1e-9 else bool(_as_ours(box, window) >= share)


def _as_ours(box: NDArray[np.float64], window: Window) -> float:
    """Return the share in the order of operations of the code: for ties only."""
    moved = to_chip(box[None], window, (1, 1))[0]
    part = np.clip(moved, 0, 64)
    return float(np.prod(part[2:] - part[:2]) / np.prod(moved[2:] - moved[:2]))


def flat_scene(width: int, height: int, transform: Affine = TRANSFORM) -> Scene:
    return Scene(
        "flat", "flat.tif", "GTiff", ("GTiff",), width, height, (Band("", "gray"),), "uint8",
        None, False,
        CRS(UTM).to_wkt(), transform, (0.6, 0.6), None, (), (64, 64), "",
    )  # fmt: skip


def test_a_whole_object_in_a_core_is_on_its_chip(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path)
    objects = Objects(boxes, np.arange(len(boxes)))
    settings = LabelSettings()
    (cuts,) = plan_chips([inspect(str(raster))], make_card(), settings)
    rows, columns = cuts.grid.shape
    for tile in (cuts.grid.tile(r, c) for r in range(rows) for c in range(columns)):
        core = tile.core
        inside = (boxes[:, :2] >= (core.col_off, core.row_off)).all(axis=1)
        inside &= (boxes[:, 2:] <= (core.right, core.bottom)).all(axis=1)
        _, found = objects_on(cuts, tile, objects, settings)
        assert set(np.flatnonzero(inside)) <= set(found.label.tolist())


def test_resampled_chips_move_their_boxes(tmp_path: Path) -> None:
    pixels, boxes = paint_squares(240, 180, largest=40, seed=5, count=20)
    fine = np.kron(pixels, np.ones((1, 2, 2), np.uint8))
    raster = write_raster(tmp_path / "s.tif", fine, transform=TRANSFORM @ Affine.scale(0.5))
    objects = Objects(boxes * 2, np.zeros(len(boxes), np.int64))
    data = cut(raster, objects, min_visible=1e-6, min_side_px=0)
    seen = SquareDetector().detect(data.chips).boxes
    for chip, truth in enumerate(data.boxes):
        found = seen.xyxy[seen.chip == chip]
        assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, truth.tolist()))


def test_slivers_that_a_chip_cuts_off_are_left_out(tmp_path: Path) -> None:
    raster, _ = painted(tmp_path)
    objects = Objects(np.array([[30.0, 30, 34, 60]]), np.zeros(1, np.int64))
    (cuts,) = plan_chips([inspect(str(raster))], make_card(), LabelSettings())
    tile = cuts.grid.tile(0, 1)  # begins at column 32
    for least, count in ((2, 1), (2.5, 0)):
        rows, _ = objects_on(cuts, tile, objects, LabelSettings(min_side_px=least))
        assert len(rows) == count


def test_ground_without_pixels_gives_neither_chips_nor_objects(tmp_path: Path) -> None:
    pixels = np.full((1, 64, 640), 9, np.uint8)
    pixels[:, :, 100:] = 0
    raster = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    boxes = np.array([[20.0, 20, 30, 30], [105, 20, 115, 30], [300, 20, 310, 30]])
    data = cut(raster, Objects(boxes, np.zeros(3, np.int64)))
    assert set(data.names) >= {"s@0,0", "s@32,0", "s@64,0"}
    assert len(data) < 6  # of 19: the mask is sampled every 16 px
    assert [len(found) for found in data.boxes] == [1] + [0] * (len(data) - 1)


def test_objects_on_no_chip_are_named(tmp_path: Path) -> None:
    pixels = np.full((1, 64, 320), 9, np.uint8)
    pixels[:, :, 160:] = 0
    raster = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    boxes = np.array([[20.0, 20, 30, 30], [0, 0, 320, 64], [200, 20, 210, 30]])
    labels = as_gpkg(tmp_path, boxes, TRANSFORM)
    _, report = read_chips([str(raster)], labels, make_card(), LabelSettings())
    assert report.used == 3
    (note,) = report.notes
    assert note.number == 2
    assert note.examples == ("s: 320 x 64 px at 0, 0", "s: 10 x 10 px at 200, 20")


def test_small_rasters_are_one_chip_each(tmp_path: Path) -> None:
    card = make_card(chip_px=256)
    for name, side in (("a", 90), ("b", 70)):
        write_raster(tmp_path / "i" / f"{name}.tif", np.full((1, side, side), 9, np.uint8))
    labels = write_csv(tmp_path / "l.csv", "image,x,y", [("a", 3, 4), ("a.tif", 80, 4)])
    data, report = read_chips([str(tmp_path / "i")], labels, card, LabelSettings(box_m=6))
    assert data.names == ("a", "b")
    assert data.chip_px == 96
    assert (data.chips[1, 0] == 9).all()  # filled with the rasters' own mean
    np.testing.assert_allclose(data.centres(0), [[3.5, 4.5], [80.5, 4.5]], rtol=1e-6)
    assert [len(boxes) for boxes in data.boxes] == [2, 0]
    assert "chips: 2, 1 with objects and 1 without" in report.describe()
    assert report.counts()["chips without objects"] == 1
    wide = make_card(chip_px=256, margin_px=96)
    again, _ = read_chips([str(tmp_path / "i")], labels, wide, LabelSettings(chip_px=96))
    np.testing.assert_array_equal(again.chips, data.chips)
    with pytest.raises(UsageError, match="chip must be a multiple"):
        read_chips([str(tmp_path / "i")], labels, card, LabelSettings(chip_px=100))


def test_names_select_images_and_other_labels_are_not_wrong(tmp_path: Path) -> None:
    for name in "abc":
        write_raster(tmp_path / "i" / f"{name}.tif", np.full((1, 64, 64), 9, np.uint8))
    labels = write_csv(tmp_path / "l.csv", "image,x,y", [(name, 3, 4) for name in "abbx"])
    (tmp_path / "n.txt").write_text("c\na.tif\n\n")
    images = [str(tmp_path / "i" / "*.tif")]
    card, settings = make_card(), LabelSettings()
    data, report = read_chips(images, labels, card, settings, names=tmp_path / "n.txt")
    assert data.names == ("c", "a")
    assert (report.labels, report.used) == (2, 1)
    assert "note: 2 of images not asked for" in report.describe()
    (tmp_path / "n.txt").write_text("c\nz\n")
    with pytest.raises(LabelError, match="expected names of the 3 images, got z"):
        read_chips(images, labels, card, settings, names=tmp_path / "n.txt")
    write_raster(tmp_path / "j" / "a.tif", np.full((1, 64, 64), 9, np.uint8))
    with pytest.raises(LabelError, match="expected rasters with different file names"):
        read_chips([*images, str(tmp_path / "j")], labels, card, settings)


def test_coco_speaks_only_of_the_images_it_lists(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path / "i")
    write_raster(tmp_path / "i" / "unlisted.tif", np.full((1, 64, 64), 9, np.uint8))
    labels = write_coco(tmp_path / "l.json", boxes, raster.name)
    images = [str(tmp_path / "i")]
    data, report = read_chips(images, labels, make_card(), LabelSettings())
    assert {name.split("@")[0] for name in data.names} == {"s"}
    assert "rasters not among its images, left out (for example unlisted)" in str(report.notes[0])


def test_mapped_samples_equal_those_in_memory(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path)
    labels = as_gpkg(tmp_path, boxes, TRANSFORM)
    card, settings = make_card(), LabelSettings()
    here, _ = read_chips([str(raster)], labels, card, settings)
    mapped, _ = read_chips([str(raster)], labels, card, settings, cache=tmp_path / "cache")
    assert isinstance(mapped.chips, np.memmap)
    store_chips(tmp_path / "cache", mapped)
    store_chips(tmp_path / "other", here)
    for folder in ("cache", "other"):
        again = open_chips(tmp_path / folder)
        assert isinstance(again.chips, np.memmap)
        np.testing.assert_array_equal(again.chips, here.chips)
        assert (again.names, again.points) == (here.names, here.points)
        for one, two in zip(again.boxes + again.labels, here.boxes + here.labels, strict=True):
            np.testing.assert_array_equal(one, two)
            assert one.dtype == two.dtype
    (tmp_path / "other" / "labels.npz").unlink()
    with pytest.raises(LabelError, match="expected labelled chips"):
        open_chips(tmp_path / "other")


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_held_out_chips_lie_east_and_share_no_ground(share: float) -> None:
    cuts = plan_chips([flat_scene(640, 300)], make_card(), LabelSettings())
    split = split_east(cuts, share)
    (training,), (held_out,) = split.training, split.held_out
    assert len(training) + len(held_out) + split.dropped == len(cuts[0])
    assert len(held_out) / len(cuts[0]) == pytest.approx(share, abs=0.501 / cuts[0].grid.shape[1])
    assert chip_footprints(training)[:, 2].max() <= chip_footprints(held_out)[:, 0].min()
    assert (held_out.kept.sum(axis=0) % cuts[0].grid.shape[0] == 0).all()  # whole columns


def test_a_split_needs_chips_on_both_sides() -> None:
    cuts = plan_chips([flat_scene(64, 640)], make_card(), LabelSettings())
    with pytest.raises(LabelError, match="on both sides"):
        split_east(cuts, 0.25)


def test_a_split_reads_each_side_once(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path)
    labels = as_gpkg(tmp_path, boxes, TRANSFORM)
    card, settings = make_card(), LabelSettings()
    whole, _ = read_chips([str(raster)], labels, card, settings)
    training, held_out, report = read_split([str(raster)], labels, card, settings, share=0.3)
    order = {name: number for number, name in enumerate(whole.names)}
    for part in (training, held_out):
        for number, name in enumerate(part.names):
            np.testing.assert_array_equal(part.chips[number], whole.chips[order[name]])
            np.testing.assert_array_equal(part.boxes[number], whole.boxes[order[name]])
    assert report.chips == len(training) + len(held_out)
    assert report.notes[-1].number == len(whole) - report.chips


def test_chips_of_a_card_without_means_are_filled_with_the_rasters_own(tmp_path: Path) -> None:
    for name, value in (("a", 40), ("b", 60)):
        pixels = np.full((1, 70, 70), value, np.uint8)
        pixels[0, :, 60:] = 255
        write_raster(tmp_path / "i" / f"{name}.tif", pixels, nodata=255)
    labels = write_csv(tmp_path / "l.csv", "image,x,y", [("a", 3, 4), ("b", 8, 4)])
    settings = LabelSettings(box_m=6)
    data, _ = read_chips([str(tmp_path / "i")], labels, make_card(chip_px=256), settings)
    assert [set(np.unique(chip)) for chip in data.chips] == [{40, 50}, {50, 60}]
    known = make_card(chip_px=256, scaling={"mean": (0.1,), "std": (0.2,)})
    data, _ = read_chips([str(tmp_path / "i")], labels, known, settings)
    assert [set(np.unique(chip)) for chip in data.chips] == [{26, 40}, {26, 60}]
