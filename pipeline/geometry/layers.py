"""Layers of the user: ground in which detections are marked, and objects that they are near to.

Only the features around the detections of a scene are read, so a layer may have millions of them,
best in a format with a spatial index: GeoPackage, FlatGeobuf. GeoParquet is read whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import shapely
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pyproj import CRS, Transformer

from scenesweep.model.architecture import Frozen
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.geometry.georef import LONLAT
from scenesweep.pipeline.storage.remote import local_file, shown

_CELL_DEG = 2  # detections are joined in cells of this size, each with its own projection
_M_PER_DEG = 111_000
_SEGMENT_M, _SEGMENT_DEG = 1_000.0, 0.05  # a straight edge is a curve in another CRS
_DECIMALS_M = 2
_WITH_DISTANCE = re.compile(r"(.+):(\d+(?:\.\d+)?)")
_PARQUET = (".parquet", ".geoparquet")

Floats = NDArray[np.float64]
Bounds = tuple[float, float, float, float]
_Read = tuple[CRS, NDArray[np.object_], NDArray[np.generic]]


class LayerSettings(Frozen):
    """Vector layers that detections are compared with. They change no detection.

    Any format that GDAL reads works. A layer must have a CRS. Workers of a cluster need its path
    or address as the command does.
    """

    exclude: tuple[str, ...] = ()
    """Files with polygons, such as land, known objects or restricted ground. The column `excluded`
    is true for a detection with its centre in one of them."""
    near: str = ""
    """A file with known objects of any geometry, or `FILE:METRES`, such as `platforms.geojson:200`,
    which also sets `near_m`. The columns `near_id` and `near_m` are the id of the nearest object
    and the distance of the detection's centre from it."""
    near_m: float = Field(1_000, gt=0, le=100_000)
    """Largest distance in metres. Beyond it, `near_id` and `near_m` are null."""
    near_id: str = ""
    """Column of the file `near` with the id. Empty: `id`, or else `name`, or else the number of
    the feature in the file."""

    @model_validator(mode="before")
    @classmethod
    def _with_distance(cls, values: object) -> object:
        """Split `platforms.geojson:200` into the file and the distance."""
        if isinstance(values, dict) and isinstance(values.get("near"), str):
            match = _WITH_DISTANCE.fullmatch(values["near"])
            if match:
                return values | {"near": match[1], "near_m": float(match[2])}
        return values

    @model_validator(mode="after")
    def _near_is_named(self) -> Self:
        if self.near_id and not self.near:
            raise ValueError("near_id is a column of layers.near, which is not set")
        return self

    def names_only(self) -> LayerSettings:
        """Return these settings with names of files in place of paths, for published records."""
        names = tuple(Path(shown(file)).name for file in self.exclude)
        return self.model_copy(update={"exclude": names, "near": Path(shown(self.near)).name})


@dataclass(frozen=True, slots=True)
class Layer:
    """A vector file, with the hash of its bytes. `id_column` is empty for feature numbers."""

    file: str
    sha256: str
    id_column: str = ""


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a run. `near_m` is the largest distance from a feature of `near`."""

    exclude: tuple[Layer, ...] = ()
    near: Layer | None = None
    near_m: float = 0.0

    def hashes(self) -> tuple[object, ...]:
        """Return what the columns of the layers depend on."""
        near = (self.near.sha256, self.near.id_column, self.near_m) if self.near else ()
        return (*(layer.sha256 for layer in self.exclude), *near)


def open_layers(settings: LayerSettings) -> Layers | None:
    """Check the layers of a run and hash their files; None if there is none.

    Raises:
        UsageError: when a file cannot be read, has no CRS, no polygons to exclude, or no such
            column of ids.
    """
    if not (settings.exclude or settings.near):
        return None
    exclude = tuple(_checked(file, "layers.exclude") for file in settings.exclude)
    near = None
    if settings.near:
        near = _checked(settings.near, "layers.near", id_column=settings.near_id)
    return Layers(exclude, near, settings.near_m)


def _checked(file: str, name: str, *, id_column: str | None = None) -> Layer:
    import pyogrio

    path, title = local_file(file), f"{name} {shown(file)}"
    try:
        if path.suffix.lower() in _PARQUET:
            crs, kind, columns = _parquet_info(path)
        else:
            info = pyogrio.read_info(path, layer=0)
            crs, kind, columns = info["crs"], info["geometry_type"], list(info["fields"])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError) as error:
        raise UsageError(f"{title}: cannot be read: {' '.join(str(error).split())}") from error
    if crs is None:
        raise UsageError(f"{title}: expected a layer with a CRS, found none")
    if id_column is None and kind not in (None, "Unknown") and "Polygon" not in kind:
        raise UsageError(f"{title}: expected polygons, found {kind}")
    if id_column and id_column not in columns:
        raise UsageError(
            f"{title}: expected a column {id_column} (layers.near_id), found {', '.join(columns)}"
        )
    if id_column == "":
        id_column = next((column for column in ("id", "name") if column in columns), "")
    return Layer(str(file), _sha256(path), id_column or "")


def _parquet_info(path: Path) -> tuple[str | None, str | None, list[str]]:
    import json

    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    geo = json.loads((schema.metadata or {}).get(b"geo", b"{}"))
    column = geo.get("columns", {}).get(geo.get("primary_column", ""))
    if column is None:
        raise OSError("it is no GeoParquet: its metadata describes no geometry")
    kinds = column.get("geometry_types") or [None]
    crs = LONLAT if column.get("crs", LONLAT) is not None else None
    return crs, kinds[0], list(schema.names)


def _sha256(path: Path) -> str:
    """Hash a file, and those with its stem: a shapefile has several."""
    several = path.suffix.lower() == ".shp"
    files = sorted(path.parent.glob(f"{path.stem}.*")) if several else [path]
    digest = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Joined:
    """What layers say of points. Without a feature in reach, `near_id` is "" and `near_m` NaN."""

    excluded: NDArray[np.bool_]
    near_id: NDArray[np.object_]
    near_m: Floats


def join(layers: Layers, lonlat: Floats) -> Joined:
    """Compare points (N, 2) in degrees with the layers.

    The result of a point does not depend on the other points. Distances are measured in an
    azimuthal equidistant projection around the middle of a cell of 2 degrees, in which those of
    up to 100 km are exact to 0.1 %.
    """
    count = len(lonlat)
    joined = Joined(np.zeros(count, np.bool_), np.full(count, "", object), np.full(count, np.nan))
    for members, corner in _cells(lonlat):
        points = lonlat[members]
        for layer in layers.exclude:
            joined.excluded[members] |= _inside(layer, points)
        if layers.near is not None:
            ids, metres = _nearest(layers.near, points, corner, layers.near_m)
            joined.near_id[members], joined.near_m[members] = ids, metres
    return joined


def _cells(lonlat: Floats) -> Iterator[tuple[NDArray[np.intp], tuple[int, int]]]:
    """Yield the numbers of the points in each cell, and its lower left corner in degrees."""
    corners = (np.floor(lonlat / _CELL_DEG) * _CELL_DEG).astype(np.int64)
    unique, cell_of = np.unique(corners, axis=0, return_inverse=True)
    for number, (west, south) in enumerate(unique.tolist()):
        yield np.flatnonzero(cell_of.ravel() == number), (west, south)


def _inside(layer: Layer, points: Floats) -> NDArray[np.bool_]:
    polygons, _ = _features(layer, _around(points, 0.0))
    inside = np.zeros(len(points), np.bool_)
    if len(polygons):
        shapely.prepare(polygons)
        point, polygon = shapely.STRtree(polygons).query(shapely.points(points))
        hit = shapely.intersects_xy(polygons[polygon], *points[point].T)
        inside[point[hit]] = True
    return inside


def _nearest(
    layer: Layer, points: Floats, corner: tuple[int, int], most_m: float
) -> tuple[NDArray[np.object_], Floats]:
    """Return the id of the nearest feature of each point, and its distance in metres."""
    ids, metres = np.full(len(points), "", object), np.full(len(points), np.nan)
    features, names = _features(layer, _around(points, most_m))
    if not len(features):
        return ids, metres
    lon, lat = (degree + _CELL_DEG / 2 for degree in corner)
    local = Transformer.from_crs(
        LONLAT, CRS(f"+proj=aeqd +lon_0={lon} +lat_0={lat} +ellps=WGS84"), always_xy=True
    )

    def project(xy: Floats) -> Floats:
        return np.stack(local.transform(*xy.T), axis=-1)

    fine = shapely.segmentize(features, _SEGMENT_DEG)
    placed = np.asarray(shapely.transform(fine, project), object)
    centres = np.asarray(shapely.points(project(points)), object)
    point, feature = shapely.STRtree(placed).query_nearest(
        centres, max_distance=most_m, all_matches=True
    )
    distance: Floats = np.round(shapely.distance(centres[point], placed[feature]), _DECIMALS_M)
    for number in np.lexsort((names[feature], distance, point))[::-1]:  # the first id wins
        ids[point[number]], metres[point[number]] = names[feature[number]], distance[number]
    return ids, metres


def _around(points: Floats, metres: float) -> Bounds:
    """Return west, south, east, north around points in degrees, so many metres wider."""
    (west, south), (east, north) = points.min(axis=0), points.max(axis=0)
    high = 1.01 * metres / _M_PER_DEG + 1e-6
    widest = max(abs(south), abs(north)) + high
    wide = 180.0 if widest >= 89 else high / np.cos(np.radians(widest))
    return float(west - wide), float(south - high), float(east + wide), float(north + high)


def _features(layer: Layer, bounds: Bounds) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Return the features of a layer that meet bounds in degrees, and their ids.

    Features across the antimeridian are moved next to the bounds.
    """
    west, south, east, north = bounds
    parts = []
    for shift in (-360, 0, 360):
        box = (max(west + shift, -180), south, min(east + shift, 180), north)
        if box[0] < box[2]:
            geometries, ids = _read(layer, box)
            parts.append((shapely.transform(geometries, lambda xy: xy - [shift, 0]), ids))  # noqa: B023
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@lru_cache(maxsize=8)
def _read(layer: Layer, bounds: Bounds) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Read the features of a layer that meet bounds in degrees, in OGC:CRS84, with their ids."""
    path = local_file(layer.file)
    if path.suffix.lower() in _PARQUET:
        crs, geometries, ids = _read_parquet(path, layer.id_column, bounds)
    else:
        crs, geometries, ids = _read_by_gdal(path, layer.id_column, bounds)
    known = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    names = np.array([str(each) for each in ids[known]], object)
    return _in_lonlat(geometries[known], crs), names


def _read_by_gdal(path: Path, column: str, bounds: Bounds) -> _Read:
    from pyogrio import raw, read_info

    crs = CRS.from_user_input(read_info(path, layer=0)["crs"])
    _, numbers, wkb, fields = raw.read(
        path,
        layer=0,
        columns=[column] if column else [],
        bbox=_in_crs(bounds, crs),
        return_fids=True,
        force_2d=True,
    )
    return crs, shapely.from_wkb(wkb), fields[0] if column else numbers


def _read_parquet(path: Path, column: str, bounds: Bounds) -> _Read:
    import geopandas as gpd

    frame = gpd.read_parquet(path)
    west, south, east, north = _in_crs(bounds, frame.crs)
    frame = frame.cx[west:east, south:north]
    ids = frame[column] if column else frame.index
    return CRS.from_user_input(frame.crs), frame.geometry.to_numpy(), ids.to_numpy()


def _in_crs(bounds: Bounds, crs: CRS) -> Bounds:
    west, south, east, north = Transformer.from_crs(LONLAT, crs, always_xy=True).transform_bounds(
        *bounds
    )
    return west, south, east, north


def _in_lonlat(geometries: NDArray[np.object_], crs: CRS) -> NDArray[np.object_]:
    if not crs.is_geographic:
        length = _SEGMENT_M / crs.axis_info[0].unit_conversion_factor
        geometries = shapely.segmentize(geometries, length)
    to_lonlat = Transformer.from_crs(crs, LONLAT, always_xy=True)

    def place(xy: Floats) -> Floats:
        return np.stack(to_lonlat.transform(*xy.T), axis=-1)

    placed: NDArray[np.object_] = np.asarray(shapely.transform(geometries, place), object)
    return placed
