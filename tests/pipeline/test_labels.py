"""Labels of every form become the same objects, and objects the chips that show them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import CRS

from model.samples import Samples
from pipeline.errors import LabelError, UsageError
from pipeline.georef import corners, to_chip, to_map, to_scene
from pipeline.grid import Window
from pipeline.labels import (
    LabelReport,
    LabelSettings,
    Objects,
    cut_samples,
    open_samples,
    plan_cuts,
    read_objects,
    read_samples,
    read_split,
    split_east,
    store_samples,
)
from pipeline.labels.cuts import ground, objects_on
from pipeline.scene import Band, Scene, inspect
from tests.rasters import (
    SHARED,
    TRANSFORM,
    UTM,
    SquareDetector,
    make_card,
    paint_squares,
    write_raster,
)

ROTATED = TRANSFORM @ Affine.rotation(30)
SQUARE = ("square",)


def shapes_of(boxes: NDArray[np.float64], transform: Affine) -> gpd.GeoDataFrame:
    polygons = shapely.polygons(to_map(corners(boxes), transform))
    return gpd.GeoDataFrame({"class_name": ["square"] * len(boxes)}, geometry=polygons, crs=UTM)


def write_coco(path: Path, boxes: NDArray[np.float64], image: str, **changes: Any) -> Path:
    data = {
        "images": [{"id": 7, "file_name": f"some/folder/{image}"}],
        "categories": [{"id": 3, "name": "square"}],
        "annotations": [
            {"id": n, "image_id": 7, "category_id": 3, "bbox": [a, b, c - a, d - b], "iscrowd": 0}
            for n, (a, b, c, d) in enumerate(boxes.tolist())
        ],
    }
    path.write_text(json.dumps(data | changes))
    return path


def write_csv(path: Path, header: str, rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def as_coco(folder: Path, boxes: NDArray[np.float64], _: Affine) -> Path:
    return write_coco(folder / "labels.json", boxes, "s.tif")


def as_deepforest(folder: Path, boxes: NDArray[np.float64], _: Affine) -> Path:
    rows: list[tuple[Any, ...]] = [("s.tif", *box, "square") for box in boxes.tolist()]
    return write_csv(folder / "labels.csv", "image_path,xmin,ymin,xmax,ymax,label", rows)


def as_wkt(folder: Path, boxes: NDArray[np.float64], _: Affine) -> Path:
    rows: list[tuple[Any, ...]] = [
        (shapely.box(*box).wkt, "square", "s.tif") for box in boxes.tolist()
    ]
    return write_csv(folder / "labels.csv", "geometry,label,image_path", rows)


def as_geojson(folder: Path, boxes: NDArray[np.float64], transform: Affine) -> Path:
    frame = shapes_of(boxes, transform).to_crs("OGC:CRS84")
    frame.to_file(folder / "labels.geojson", engine="pyogrio", COORDINATE_PRECISION=12)
    return folder / "labels.geojson"


def as_gpkg(folder: Path, boxes: NDArray[np.float64], transform: Affine) -> Path:
    frame = shapes_of(boxes, transform)
    frame.to_file(folder / "labels.gpkg", engine="pyogrio", layer="squares")
    return folder / "labels.gpkg"


def as_parquet(folder: Path, boxes: NDArray[np.float64], transform: Affine) -> Path:
    shapes_of(boxes, transform).to_crs("EPSG:3857").to_parquet(folder / "labels.parquet")
    return folder / "labels.parquet"


WRITERS = (as_coco, as_deepforest, as_wkt, as_geojson, as_gpkg, as_parquet)


def painted(folder: Path, *, width: int = 300, height: int = 220) -> tuple[Path, NDArray[Any]]:
    pixels, boxes = paint_squares(width, height, largest=30, seed=3)
    return write_raster(folder / "s.tif", pixels), boxes


def objects_from(
    labels: Path, *rasters: Path, classes: tuple[str, ...] = SQUARE, **changes: Any
) -> tuple[dict[str, Objects], LabelReport]:
    scenes = [inspect(str(path)) for path in rasters]
    return read_objects(labels, scenes, classes, LabelSettings(**changes))


@pytest.mark.parametrize("transform", [TRANSFORM, ROTATED], ids=["upright", "rotated"])
@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_the_same_objects(
    tmp_path: Path, write: Callable[[Path, NDArray[Any], Affine], Path], transform: Affine
) -> None:
    pixels, boxes = paint_squares(300, 220, largest=30, seed=3)
    raster = write_raster(tmp_path / "s.tif", pixels, transform=transform)
    objects, report = objects_from(write(tmp_path, boxes, transform), raster)
    np.testing.assert_allclose(objects["s"].xyxy, boxes, atol=1e-3)
    assert objects["s"].label.tolist() == [0] * len(boxes)
    assert not objects["s"].points
    assert (report.labels, report.used, report.wrong) == (len(boxes), len(boxes), ())


def test_points_are_squares_of_metres_round_pixel_centres(tmp_path: Path) -> None:
    raster, _ = painted(tmp_path)
    whole = np.array([[0, 0], [10, 20], [299, 219]], np.float64)
    by_index = write_csv(tmp_path / "i.csv", "image,x,y", [("s", *xy) for xy in whole.tolist()])
    by_place = write_csv(
        tmp_path / "p.csv", "image,x,y", [("s", *xy) for xy in (whole + 0.5).tolist()]
    )
    dots = shapely.points(to_map(whole + 0.5, TRANSFORM))
    gpd.GeoDataFrame(geometry=dots, crs=UTM).to_crs("EPSG:4326").to_file(tmp_path / "d.gpkg")
    for labels in (by_index, by_place, tmp_path / "d.gpkg"):
        found = objects_from(labels, raster, box_m=6.0)[0]["s"]
        assert found.points
        np.testing.assert_allclose(found.centres(), whole + 0.5, atol=1e-5)
        np.testing.assert_allclose(found.xyxy[:, 2:] - found.xyxy[:, :2], 10, rtol=2e-3)
    bare = objects_from(by_index, raster)[0]["s"]
    np.testing.assert_array_equal(bare.xyxy[:, 2:] - bare.xyxy[:, :2], 1)


def test_a_label_on_two_rasters_is_an_object_of_both(tmp_path: Path) -> None:
    ground_px = np.full((1, 100, 100), 9, np.uint8)
    west = write_raster(tmp_path / "west.tif", ground_px)
    east = write_raster(
        tmp_path / "east.tif", ground_px, transform=TRANSFORM @ Affine.translation(100, 0)
    )
    boxes = np.array([[90, 10, 110, 30], [94, 50, 114, 60], [20, 20, 30, 30]], np.float64)
    objects, report = objects_from(as_gpkg(tmp_path, boxes, TRANSFORM), west, east)
    np.testing.assert_allclose(
        objects["west"].xyxy, [[90, 10, 100, 30], [94, 50, 100, 60], boxes[2]]
    )
    np.testing.assert_allclose(objects["east"].xyxy, [[0, 10, 10, 30], [0, 50, 14, 60]], atol=1e-6)
    assert (report.labels, report.used) == (3, 3)
    cut = objects_from(tmp_path / "labels.gpkg", west, east, min_visible=0.4)[0]
    assert (len(cut["west"]), len(cut["east"])) == (2, 2)  # 6 of the second's 20 px lie in the west
    whole = objects_from(tmp_path / "labels.gpkg", west, east, clip=False)[0]
    np.testing.assert_allclose(whole["west"].xyxy, boxes, atol=1e-6)


def reasons(report: LabelReport) -> dict[str, int]:
    return {count.reason: count.number for count in report.wrong}


def test_wrong_coco_labels_are_counted_and_named(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path)
    box = {"image_id": 7, "category_id": 3}
    wrong = [
        {"id": 900, "image_id": 8, "category_id": 3, "bbox": [1, 1, 9, 9]},
        {"id": 901, "image_id": 9, "category_id": 3, "bbox": [1, 1, 9, 9]},
        {"id": 902, "image_id": 7, "category_id": 4, "bbox": [1, 1, 9, 9]},
        {"id": 903, **box, "bbox": [1, 1, 0, 9]},
        {"id": 904, **box, "bbox": [1000, 1, 9, 9]},
        {"id": 905, **box, "bbox": [292, 1, 80, 9]},
        {"id": 906, **box, "bbox": [1, 1, 9, 1]},
        {"id": 907, **box, "bbox": [1, 1, None, 9]},
        {"id": 908, **box, "bbox": [1, 1, 9, 9], "iscrowd": 1},
        {"id": 909, "image_id": 6, "category_id": 3, "bbox": [1, 1, 9, 9]},
    ]
    good = json.loads(write_coco(tmp_path / "c.json", boxes, "s.tif").read_text())
    images = [*good["images"], {"id": 8, "file_name": "t.tif"}]
    images.append({"id": 6, "file_name": "u.tif", "width": 10, "height": 10})
    write_raster(tmp_path / "u.tif", np.ones((1, 20, 20), np.uint8))
    categories = [*good["categories"], {"id": 4, "name": "circle"}]
    labels = write_coco(
        tmp_path / "c.json",
        boxes,
        "s.tif",
        images=images,
        categories=categories,
        annotations=good["annotations"] + wrong,
    )
    objects, report = objects_from(labels, raster, tmp_path / "u.tif")
    assert len(objects["s"]) == len(boxes)
    assert reasons(report) == {
        "of an image that is not among the rasters": 1,
        "of an image that the file does not list": 1,
        "of an unknown class": 1,
        "without area": 1,
        "outside the raster": 1,
        "mostly outside the raster": 1,
        "too small": 1,
        "without a bbox of four numbers": 1,
        "of an image whose size is not the raster's": 1,
    }
    text = "\n".join(report.describe())
    assert "1 of an unknown class (for example annotation 902 of some/folder/s.tif: circle)" in text
    assert "annotation 904 of some/folder/s.tif: 9 x 9 px at 1000, 1" in text
    assert "note: 1 groups (iscrowd)" in text


def test_wrong_rows_and_features_are_counted_and_named(tmp_path: Path) -> None:
    raster, _ = painted(tmp_path)
    rows: list[tuple[Any, ...]] = [
        ("s.tif", 1, 1, 9, 9, "square"),
        ("s.tif", 1, "x", 9, 9, "square"),
        ("t.tif", 1, 1, 9, 9, "square"),
        ("s.tif", 9, 1, 1, 9, "square"),
        ("s.tif", 0, 0, 0, 0, ""),
        ("s.tif", 1, 1, 9, 9, "circle"),
    ]
    table = write_csv(tmp_path / "l.csv", "image_path,xmin,ymin,xmax,ymax,label", rows)
    _, report = objects_from(table, raster)
    assert (report.labels, report.used) == (5, 1)
    assert sum(reasons(report).values()) == 4
    assert "line 3 (s.tif)" in str(report.describe())
    assert "note: 1 rows that say an image has no objects" in str(report.describe())

    frame = shapes_of(np.array([[5.0, 5, 25, 25], [1e4, 0, 1e4 + 9, 9]]), TRANSFORM)
    x, y = TRANSFORM @ (10, 10)
    crossed = shapely.Polygon([(x, y), (x + 9, y - 9), (x + 9, y), (x, y - 9)])
    odd = [None, shapely.Polygon(), shapely.LineString([(x, y), (x + 9, y)]), crossed]
    more = gpd.GeoDataFrame({"class_name": ["square"] * 4}, geometry=odd, crs=UTM)
    labels = tmp_path / "l.parquet"
    gpd.GeoDataFrame(
        {"class_name": [*frame.class_name, *more.class_name]},
        geometry=[*frame.geometry, *more.geometry],
        crs=UTM,
    ).to_parquet(labels)
    objects, report = objects_from(labels, raster)
    assert len(objects["s"]) == 2
    assert reasons(report) == {
        "outside every raster": 1,
        "without geometry": 2,
        "neither point nor polygon": 1,
    }
    assert "cross themselves" in str(report.describe())


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("image,x\ns,1\n", "expected the columns image_path or image, and xmin,ymin,xmax,ymax"),
        ("image,x,y\nt,1,1\n", "none of 1 labels can be used.*Labels mean rasters by file name"),
        ("image,x,y\ns,500,1\n", "none of 1 labels.*outside the raster.*right rasters"),
        ("image,x,y,label\ns,5,1,circle\n", "unknown class.*The card has square"),
        ("", "expected the columns"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path: Path, labels: str, said: str) -> None:
    raster, _ = painted(tmp_path)
    (tmp_path / "l.csv").write_text(labels)
    with pytest.raises(LabelError, match=f"(?s){said}"):
        objects_from(tmp_path / "l.csv", raster)


def test_vector_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path)
    frame = shapes_of(boxes, TRANSFORM)
    frame.to_file(tmp_path / "two.gpkg", layer="a")
    frame.to_file(tmp_path / "two.gpkg", layer="b")
    with pytest.raises(LabelError, match="expected one layer, found a, b"):
        objects_from(tmp_path / "two.gpkg", raster)
    assert len(objects_from(tmp_path / "two.gpkg", raster, layer="b")[0]["s"]) == len(boxes)
    with pytest.raises(LabelError, match="cannot be read"):
        objects_from(tmp_path / "two.gpkg", raster, layer="c")
    frame.set_crs("EPSG:32633", allow_override=True).to_file(tmp_path / "far.gpkg")
    with pytest.raises(LabelError, match=r"outside every raster.*Is the CRS right"):
        objects_from(tmp_path / "far.gpkg", raster)
    frame.set_crs(None, allow_override=True).to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(LabelError, match="expected labels with a CRS"):
        objects_from(tmp_path / "bare.parquet", raster)
    mixed = gpd.GeoDataFrame(geometry=[frame.geometry[0], frame.geometry[1].centroid], crs=UTM)
    mixed.to_parquet(tmp_path / "mixed.parquet")
    with pytest.raises(LabelError, match="either points or polygons"):
        objects_from(tmp_path / "mixed.parquet", raster)
    with pytest.raises(LabelError, match=r"2 classes.*found none"):
        objects_from(tmp_path / "mixed.parquet", raster, classes=("square", "circle"))
    (tmp_path / "torn.geojson").write_text('{"type": "FeatureColl')
    with pytest.raises(LabelError, match="cannot be read as vector labels"):
        objects_from(tmp_path / "torn.geojson", raster)
    with pytest.raises(LabelError, match="there is none"):
        objects_from(tmp_path / "no.geojson", raster)
    with pytest.raises(LabelError, match=r"expected the column 'kind', found class_name"):
        objects_from(tmp_path / "two.gpkg", raster, layer="a", class_column="kind")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_labels_in_pixels_go_with_one_raster_without_georeference(tmp_path: Path) -> None:
    pixels, boxes = paint_squares(90, 80, largest=9, seed=1)
    raster = write_raster(tmp_path / "s.tif", pixels, crs=None, transform=None)
    gpd.GeoDataFrame(geometry=shapely.box(*boxes.T)).to_parquet(tmp_path / "l.parquet")
    card = make_card()
    data, _ = read_samples([str(raster)], tmp_path / "l.parquet", card, LabelSettings(chip_px=128))
    np.testing.assert_array_equal(data.boxes[0], boxes)
    as_geojson(tmp_path, boxes, TRANSFORM)
    with pytest.raises(LabelError, match="the raster has no georeference"):
        read_samples([str(raster)], tmp_path / "labels.geojson", card, LabelSettings())


def cut(raster: Path, objects: Objects, **changes: Any) -> Samples:
    settings = LabelSettings(**changes)
    scene = inspect(str(raster))
    return cut_samples(plan_cuts([scene], make_card(), settings), {scene.id: objects}, settings)


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
    (cuts,) = plan_cuts([flat_scene(200, 150)], make_card(), settings)
    for row, column in np.argwhere(cuts.kept).tolist():
        tile = cuts.grid.tile(row, column)
        rows, found = objects_on(cuts, tile, objects, settings)
        assert rows.tolist() == found.label.tolist()
        expected = [n for n in range(len(xyxy)) if belongs(xyxy[n], tile.window, share, points)]
        assert found.label.tolist() == expected
        back = to_scene(found.xyxy, tile.window, cuts.source.scale)
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
        "flat", "flat.tif", "GTiff", width, height, (Band("", "gray"),), "uint8", None, False,
        CRS(UTM).to_wkt(), transform, (0.6, 0.6), None, (), (64, 64), "",
    )  # fmt: skip


def test_a_whole_object_in_a_core_is_on_its_chip(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path)
    objects = Objects(boxes, np.arange(len(boxes)))
    settings = LabelSettings()
    (cuts,) = plan_cuts([inspect(str(raster))], make_card(), settings)
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
    (cuts,) = plan_cuts([inspect(str(raster))], make_card(), LabelSettings())
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
    _, report = read_samples([str(raster)], labels, make_card(), LabelSettings())
    assert report.used == 3
    (note,) = report.notes
    assert note.number == 2
    assert note.examples == ("s: 320 x 64 px at 0, 0", "s: 10 x 10 px at 200, 20")


def test_small_rasters_are_one_chip_each(tmp_path: Path) -> None:
    card = make_card(chip_px=256)
    for name, side in (("a", 90), ("b", 70)):
        write_raster(tmp_path / "i" / f"{name}.tif", np.full((1, side, side), 9, np.uint8))
    labels = write_csv(tmp_path / "l.csv", "image,x,y", [("a", 3, 4), ("a.tif", 80, 4)])
    data, report = read_samples([str(tmp_path / "i")], labels, card, LabelSettings(box_m=6))
    assert data.names == ("a", "b")
    assert data.chip_px == 96
    assert (data.chips[1, 0] == 9).all()  # filled with the rasters' own mean
    np.testing.assert_allclose(data.centres(0), [[3.5, 4.5], [80.5, 4.5]], rtol=1e-6)
    assert [len(boxes) for boxes in data.boxes] == [2, 0]
    assert "chips: 2, 1 with objects and 1 without" in report.describe()
    assert report.counts()["chips without objects"] == 1
    wide = make_card(chip_px=256, margin_px=96)
    again, _ = read_samples([str(tmp_path / "i")], labels, wide, LabelSettings(chip_px=96))
    np.testing.assert_array_equal(again.chips, data.chips)
    with pytest.raises(UsageError, match="chip must be a multiple"):
        read_samples([str(tmp_path / "i")], labels, card, LabelSettings(chip_px=100))


def test_names_select_images_and_other_labels_are_not_wrong(tmp_path: Path) -> None:
    for name in "abc":
        write_raster(tmp_path / "i" / f"{name}.tif", np.full((1, 64, 64), 9, np.uint8))
    labels = write_csv(tmp_path / "l.csv", "image,x,y", [(name, 3, 4) for name in "abbx"])
    (tmp_path / "n.txt").write_text("c\na.tif\n\n")
    images = [str(tmp_path / "i" / "*.tif")]
    card, settings = make_card(), LabelSettings()
    data, report = read_samples(images, labels, card, settings, names=tmp_path / "n.txt")
    assert data.names == ("c", "a")
    assert (report.labels, report.used) == (2, 1)
    assert "note: 2 of images not asked for" in report.describe()
    (tmp_path / "n.txt").write_text("c\nz\n")
    with pytest.raises(LabelError, match="names z, but none of 3 images"):
        read_samples(images, labels, card, settings, names=tmp_path / "n.txt")
    write_raster(tmp_path / "j" / "a.tif", np.full((1, 64, 64), 9, np.uint8))
    with pytest.raises(LabelError, match="no two may have the same"):
        read_samples([*images, str(tmp_path / "j")], labels, card, settings)


def test_coco_speaks_only_of_the_images_it_lists(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path / "i")
    write_raster(tmp_path / "i" / "unlisted.tif", np.full((1, 64, 64), 9, np.uint8))
    labels = write_coco(tmp_path / "l.json", boxes, raster.name)
    images = [str(tmp_path / "i")]
    data, report = read_samples(images, labels, make_card(), LabelSettings())
    assert {name.split("@")[0] for name in data.names} == {"s"}
    assert "rasters not among its images, left out (for example unlisted)" in str(report.notes[0])


def test_mapped_samples_equal_those_in_memory(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path)
    labels = as_gpkg(tmp_path, boxes, TRANSFORM)
    card, settings = make_card(), LabelSettings()
    here, _ = read_samples([str(raster)], labels, card, settings)
    mapped, _ = read_samples([str(raster)], labels, card, settings, cache=tmp_path / "cache")
    assert isinstance(mapped.chips, np.memmap)
    store_samples(tmp_path / "cache", mapped)
    store_samples(tmp_path / "other", here)
    for folder in ("cache", "other"):
        again = open_samples(tmp_path / folder)
        assert isinstance(again.chips, np.memmap)
        np.testing.assert_array_equal(again.chips, here.chips)
        assert (again.names, again.points) == (here.names, here.points)
        for one, two in zip(again.boxes + again.labels, here.boxes + here.labels, strict=True):
            np.testing.assert_array_equal(one, two)
            assert one.dtype == two.dtype
    (tmp_path / "other" / "labels.npz").unlink()
    with pytest.raises(LabelError, match="expected labelled chips"):
        open_samples(tmp_path / "other")


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_held_out_chips_lie_east_and_share_no_ground(share: float) -> None:
    cuts = plan_cuts([flat_scene(640, 300)], make_card(), LabelSettings())
    split = split_east(cuts, share)
    (training,), (held_out,) = split.training, split.held_out
    assert len(training) + len(held_out) + split.dropped == len(cuts[0])
    assert len(held_out) / len(cuts[0]) == pytest.approx(share, abs=0.501 / cuts[0].grid.shape[1])
    assert ground(training)[:, 2].max() <= ground(held_out)[:, 0].min()
    assert (held_out.kept.sum(axis=0) % cuts[0].grid.shape[0] == 0).all()  # whole columns


def test_a_split_needs_chips_on_both_sides() -> None:
    cuts = plan_cuts([flat_scene(64, 640)], make_card(), LabelSettings())
    with pytest.raises(LabelError, match="on both sides"):
        split_east(cuts, 0.25)


def test_a_split_reads_each_side_once(tmp_path: Path) -> None:
    raster, boxes = painted(tmp_path)
    labels = as_gpkg(tmp_path, boxes, TRANSFORM)
    card, settings = make_card(), LabelSettings()
    whole, _ = read_samples([str(raster)], labels, card, settings)
    training, held_out, report = read_split([str(raster)], labels, card, settings, share=0.3)
    order = {name: number for number, name in enumerate(whole.names)}
    for part in (training, held_out):
        for number, name in enumerate(part.names):
            np.testing.assert_array_equal(part.chips[number], whole.chips[order[name]])
            np.testing.assert_array_equal(part.boxes[number], whole.boxes[order[name]])
    assert report.chips == len(training) + len(held_out)
    assert report.notes[-1].number == len(whole) - report.chips


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
    by_chip, report = read_samples(images, data / "annotations_coco.json", card, settings)
    assert by_chip.chips.shape == (32, 3, 512, 512)
    assert (report.labels, report.used) == (1197, by_chip.objects)
    polygons, _ = read_samples(images, data / "buildings.geojson", card, settings)
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
    samples, report = read_samples(
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


def test_chips_of_a_card_without_means_are_filled_with_the_rasters_own(tmp_path: Path) -> None:
    for name, value in (("a", 40), ("b", 60)):
        pixels = np.full((1, 70, 70), value, np.uint8)
        pixels[0, :, 60:] = 255
        write_raster(tmp_path / "i" / f"{name}.tif", pixels, nodata=255)
    labels = write_csv(tmp_path / "l.csv", "image,x,y", [("a", 3, 4), ("b", 8, 4)])
    settings = LabelSettings(box_m=6)
    data, _ = read_samples([str(tmp_path / "i")], labels, make_card(chip_px=256), settings)
    assert [set(np.unique(chip)) for chip in data.chips] == [{40, 50}, {50, 60}]
    known = make_card(chip_px=256, scaling={"mean": (0.1,), "std": (0.2,)})
    data, _ = read_samples([str(tmp_path / "i")], labels, known, settings)
    assert [set(np.unique(chip)) for chip in data.chips] == [{26, 40}, {26, 60}]
