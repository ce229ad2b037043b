"""Labels in every form, rasters painted with their objects, and what is read from them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.pipeline.geometry.georef import corners, to_map
from scenesweep.pipeline.labels import (
    LabelReport,
    LabelSettings,
    Objects,
    cut_chips,
    plan_chips,
    read_objects,
)
from scenesweep.pipeline.raster.inspect import inspect
from tests.rasters import TRANSFORM, UTM, make_card, paint_squares, write_raster

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


def cut(raster: Path, objects: Objects, **changes: Any) -> LabelledChips:
    settings = LabelSettings(**changes)
    scene = inspect(str(raster))
    return cut_chips(plan_chips([scene], make_card(), settings), {scene.id: objects}, settings)
