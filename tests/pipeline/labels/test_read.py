"""Labels of every form become the same objects; what is wrong with them is counted and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from numpy.typing import NDArray

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.geometry.georef import to_map
from scenesweep.pipeline.labels import LabelReport, LabelSettings, read_chips
from tests.labelled import (
    ROTATED,
    WRITERS,
    as_geojson,
    as_gpkg,
    objects_from,
    painted,
    shapes_of,
    write_coco,
    write_csv,
)
from tests.rasters import TRANSFORM, UTM, make_card, paint_squares, write_raster


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
        (
            "image,x,y\nt,1,1\n",
            "none of 1 labels can be used.*A label names its raster by file name",
        ),
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
    with pytest.raises(LabelError, match="there is no such file"):
        objects_from(tmp_path / "no.geojson", raster)
    with pytest.raises(LabelError, match=r"expected the column 'kind', found class_name"):
        objects_from(tmp_path / "two.gpkg", raster, layer="a", class_column="kind")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_labels_in_pixels_go_with_one_raster_without_georeference(tmp_path: Path) -> None:
    pixels, boxes = paint_squares(90, 80, largest=9, seed=1)
    raster = write_raster(tmp_path / "s.tif", pixels, crs=None, transform=None)
    gpd.GeoDataFrame(geometry=shapely.box(*boxes.T)).to_parquet(tmp_path / "l.parquet")
    card = make_card()
    data, _ = read_chips([str(raster)], tmp_path / "l.parquet", card, LabelSettings(chip_px=128))
    np.testing.assert_array_equal(data.boxes[0], boxes)
    as_geojson(tmp_path, boxes, TRANSFORM)
    with pytest.raises(LabelError, match="expected a raster with georeference"):
        read_chips([str(raster)], tmp_path / "labels.geojson", card, LabelSettings())
