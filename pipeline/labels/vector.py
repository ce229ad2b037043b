"""Points and polygons on the ground, transformed into pixels of the rasters that they touch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS
from shapely import STRtree
from shapely.geometry.base import BaseGeometry

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.geometry.georef import between, corners, to_map, to_pixels
from scenesweep.pipeline.labels.objects import LabelFile
from scenesweep.pipeline.labels.raw_labels import (
    NO_BOX,
    LabelRowBuilder,
    Tally,
    choose_class_column,
)
from scenesweep.pipeline.labels.request import LabelRequest
from scenesweep.pipeline.labels.settings import LabelSettings
from scenesweep.pipeline.scene import Scene

_PARQUET = (".parquet", ".geoparquet", ".pq")
_STYLES = "layer_styles"  # a table of QGIS in a GeoPackage, not labels
_POINT, _MULTIPOINT = 0, 4
_KINDS = {_POINT: "point", _MULTIPOINT: "point", 3: "polygon", 6: "polygon"}

Shapes = NDArray[np.object_]


def read_vector(path: Path, request: LabelRequest, settings: LabelSettings) -> LabelFile:
    """Read points or polygons from any vector file or from GeoParquet.

    Each is transformed from the CRS of the file to that of the raster, and from there to pixels. A
    polygon becomes its bounding box; a polygon of several parts is one object. A shape that
    touches several rasters is an object in each. A file without CRS is in pixels; then there must
    be only one raster, also without georeference.

    Raises:
        LabelError: when the file cannot be read, contains both points and polygons, or when the
            file or a raster has no CRS.
    """
    frame = _read(path, settings.layer).reset_index(drop=True)
    column = choose_class_column(
        [str(name) for name in frame.columns if name != frame.geometry.name],
        request.classes,
        chosen=settings.class_column,
        origin=str(path),
    )
    names = [request.classes[0]] * len(frame) if column is None else _words(frame[column])
    shapes: Shapes = np.array(frame.geometry.array, dtype=object)
    faults = _faults(shapes)
    points = _are_points(path, shapes)
    notes = _count_invalid(shapes, faults)
    usable = shapes.copy()
    usable[faults != ""] = None
    builder = LabelRowBuilder()
    touching = np.zeros(len(shapes), np.bool_)
    for scene, rows, bounds in _placed(path, usable, frame.crs, request.scenes):
        touching[rows] = True
        for row, xyxy in zip(rows.tolist(), bounds.tolist(), strict=True):
            where = f"feature {row} on {request.scenes[scene].id}"
            builder.add(row, scene, tuple(xyxy), name=names[row], where=where, fault="")
    for row in np.flatnonzero(~touching).tolist():
        fault = faults[row] or "outside every raster"
        where = f"feature {row}{_at(shapes[row])}"
        builder.add(row, -1, NO_BOX, name=names[row], where=where, fault=fault)
    scenes = tuple(range(len(request.scenes)))
    return LabelFile(builder.build(), scenes, points, notes.result())


def _read(path: Path, layer: str | None) -> gpd.GeoDataFrame:
    try:
        if path.suffix.lower() in _PARQUET:
            return gpd.read_parquet(path)
        layers = [name for name in pyogrio.list_layers(path)[:, 0].tolist() if name != _STYLES]
        if layer is None and len(layers) > 1:
            raise LabelError(
                f"{path}: expected one layer, found {', '.join(layers)}: choose one with --layer"
            )
        layer = layer or next(iter(layers), None)
        with warnings.catch_warnings():
            # we count invalid geometries ourselves, and other warnings of GDAL do not matter
            warnings.simplefilter("ignore", RuntimeWarning)
            frame = gpd.read_file(path, layer=layer, on_invalid="ignore")
    except (DataSourceError, DataLayerError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LabelError(f"{path}: cannot be read as vector labels: {reason}") from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise LabelError(f"{path}: expected points or polygons, found a table without geometry")
    return frame


def _words(column: Any) -> list[str]:
    return ["" if word is None or word != word else str(word).strip() for word in column]


def _faults(shapes: Shapes) -> NDArray[np.object_]:
    """Return (N,): the reason why a geometry cannot be used, or ''."""
    faults = np.full(len(shapes), "", object)
    known = np.isin(shapely.get_type_id(shapes), list(_KINDS))
    faults[~known] = "neither point nor polygon"
    several = (shapely.get_type_id(shapes) == _MULTIPOINT) & (
        shapely.get_num_geometries(shapes) > 1
    )
    faults[several] = "with several points in one feature"
    finite = np.isfinite(shapely.bounds(shapes)).all(axis=1)
    faults[~finite] = "without finite coordinates"
    faults[shapely.is_missing(shapes) | shapely.is_empty(shapes)] = "without geometry"
    return faults


def _are_points(path: Path, shapes: Shapes) -> bool:
    kinds = {_KINDS[kind] for kind in set(shapely.get_type_id(shapes).tolist()) & set(_KINDS)}
    if len(kinds) > 1:
        raise LabelError(f"{path}: expected either points or polygons, found both: split the file")
    return kinds == {"point"}


def _count_invalid(shapes: Shapes, faults: NDArray[np.object_]) -> Tally:
    notes = Tally()
    for row in np.flatnonzero((faults == "") & ~shapely.is_valid(shapes)).tolist():
        notes.add("polygons that cross themselves, used by the box round them", f"feature {row}")
    return notes


def _placed(
    path: Path, shapes: Shapes, crs: CRS | None, scenes: tuple[Scene, ...]
) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.float64]]]:
    """Yield for each raster its index, and the rows and pixel boxes of the shapes that touch it."""
    if crs is None:
        yield _in_pixels(path, shapes, scenes)
        return
    by_crs: dict[str, tuple[Shapes, STRtree]] = {}
    for index, scene in enumerate(scenes):
        if scene.crs is None or scene.transform is None:
            raise LabelError(
                f"{scene.href}: expected a raster with georeference: {path} is in {crs.name}"
            )
        if scene.crs not in by_crs:
            moved = _move(shapes, crs.to_wkt(), scene.crs)
            by_crs[scene.crs] = moved, STRtree(moved)
        moved, tree = by_crs[scene.crs]
        rows = np.sort(tree.query(_footprint(scene), predicate="intersects"))
        yield index, rows, _pixel_bounds(moved[rows], scene.transform)


def _in_pixels(
    path: Path, shapes: Shapes, scenes: tuple[Scene, ...]
) -> tuple[int, NDArray[np.intp], NDArray[np.float64]]:
    if len(scenes) != 1 or scenes[0].crs is not None:
        raise LabelError(
            f"{path}: expected labels with a CRS, found none; labels in pixels need a single "
            "raster without georeference"
        )
    frame = shapely.box(0, 0, scenes[0].width, scenes[0].height)
    rows = np.flatnonzero(shapely.intersects(shapes, frame))
    return 0, rows, shapely.bounds(shapes[rows])


def _move(shapes: Shapes, source: str, target: str) -> Shapes:
    """Reproject shapes. A shape outside the range of the CRS becomes None."""

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return between(points, source, target)

    moved: Shapes = shapely.transform(shapes, move)
    moved[~np.isfinite(shapely.bounds(moved)).all(axis=1)] = None
    return moved


def _footprint(scene: Scene) -> shapely.Polygon:
    assert scene.transform is not None
    edges = np.array([[0, 0, scene.width, scene.height]], np.float64)
    return shapely.Polygon(to_map(corners(edges)[0], scene.transform))


def _pixel_bounds(shapes: Shapes, transform: Affine) -> NDArray[np.float64]:
    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return to_pixels(points, transform)

    return shapely.bounds(shapely.transform(shapes, move)).reshape(-1, 4)


def _at(shape: BaseGeometry | None) -> str:
    if shape is None or shape.is_empty:
        return ""
    x, y = shape.bounds[:2]
    return f" at {x:.6g}, {y:.6g}"
