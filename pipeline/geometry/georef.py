"""Changes of coordinate frame, each in one function.

    chip pixels --to_scene--> scene pixels --to_map--> the scene's CRS --to_lonlat--> OGC:CRS84

Box edges are pixel edges, so transforms apply to them without a shift of half a pixel.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer

from scenesweep.pipeline.geometry.grid import Window

LONLAT = "OGC:CRS84"
_MOST_LAT_DEG = 90 + 1e-9  # with tolerance for rounding
_SAMPLES_A_SIDE = 33


def to_scene(
    xyxy: NDArray[np.floating], origins: NDArray[np.integer], scale: tuple[float, float]
) -> NDArray[np.float64]:
    """Move boxes from chip pixels to scene pixels.

    `xyxy` is (N, 4). `origins` is the column and row of the top-left corner of their window, in
    grid pixels: (2,), or (N, 2) for boxes of several windows. `scale` is scene pixels per grid
    pixel along columns and rows.
    The result is float64: at column 100,000 float32 moves in steps of 0.008 px.
    """
    moved = xyxy.astype(np.float64)
    for column, edges in enumerate(moved.T):  # numpy is slow along short axes
        edges += origins[..., column % 2]
        edges *= scale[column % 2]
    return moved


def to_chip(
    xyxy: NDArray[np.float64], window: Window, scale: tuple[float, float]
) -> NDArray[np.float64]:
    """Move boxes (N, 4) from scene pixels to chip pixels: the inverse of `to_scene`."""
    offset = np.array([window.col_off, window.row_off] * 2, np.float64)
    return xyxy / np.array(scale * 2) - offset


def to_map(points: NDArray[np.float64], transform: Affine) -> NDArray[np.float64]:
    """Move points (..., 2) from scene pixels to the scene's CRS."""
    a, b, c, d, e, f = transform[:6]
    return points @ np.array([[a, d], [b, e]]) + np.array([c, f])


def to_pixels(points: NDArray[np.float64], transform: Affine) -> NDArray[np.float64]:
    """Move points (..., 2) from the scene's CRS to scene pixels: the inverse of `to_map`."""
    return to_map(points, ~transform)


def to_lonlat(points: NDArray[np.float64], crs: str) -> NDArray[np.float64]:
    """Move points (..., 2) from a CRS (WKT) to longitude and latitude in degrees."""
    return _reproject(points, _transformer(crs, LONLAT))


def from_lonlat(points: NDArray[np.float64], crs: str) -> NDArray[np.float64]:
    """Move points (..., 2) from longitude and latitude to a CRS (WKT)."""
    return _reproject(points, _transformer(LONLAT, crs))


def between(points: NDArray[np.float64], source: str, target: str) -> NDArray[np.float64]:
    """Move points (..., 2) from one CRS (WKT) to another, x before y in both.

    Points that a CRS cannot place become infinite.
    """
    first, second = CRS.from_wkt(source), CRS.from_wkt(target)
    if first.equals(second, ignore_axis_order=True):
        return points
    return _reproject(points, _transformer(source, target))


def on_earth(points: NDArray[np.float64], crs: str, transform: Affine) -> NDArray[np.bool_]:
    """Return which points (..., 2), in scene pixels, a CRS (WKT) places on the Earth.

    In a geostationary satellite's picture of the whole Earth the corners show the sky: their
    coordinates are infinite.
    """
    lonlat = to_lonlat(to_map(points, transform), crs)
    finite = np.isfinite(lonlat[..., 0]) & np.isfinite(lonlat[..., 1])
    placed: NDArray[np.bool_] = finite & (np.abs(lonlat[..., 1]) <= _MOST_LAT_DEG)
    return placed


def point_on_earth(
    size: tuple[int, int], crs: str, transform: Affine
) -> NDArray[np.float64] | None:
    """Return the sampled point (2,) of a raster on the Earth that is nearest to its centre.

    It is in pixels of the raster, and None when no sampled point is on the Earth.
    """
    centre = np.array(size) / 2
    if on_earth(centre, crs, transform):
        return centre
    points = _samples(size)
    points = points[on_earth(points, crs, transform)]
    if not len(points):
        return None
    nearest: NDArray[np.float64] = points[np.argmin(((points - centre) ** 2).sum(axis=1))]
    return nearest


def reaches_off_earth(size: tuple[int, int], crs: str, transform: Affine) -> bool:
    """Return whether a raster's CRS places some of 33 x 33 sampled pixels off the Earth."""
    return not on_earth(_samples(size), crs, transform).all()


def corners(xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners (N, 4, 2) of boxes (N, 4), clockwise from the top left in pixels."""
    return xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def ground_size(quads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return width and height (N, 2) in metres of boxes given by `corners` in degrees.

    Geodesic distances on WGS 84 between the middles of opposite sides.
    """
    middles = (quads + np.roll(quads, -1, axis=1)) / 2  # top, right, bottom, left
    geod = Geod(ellps="WGS84")
    sizes = []
    for start, end in ((3, 1), (0, 2)):
        a, b = middles[:, start], middles[:, end]
        sizes.append(geod.inv(a[:, 0], a[:, 1], b[:, 0], b[:, 1])[2])
    return np.stack(sizes, axis=1)


def _samples(size: tuple[int, int]) -> NDArray[np.float64]:
    """Return centres of pixels (N, 2) on an even grid over a raster, with the corner pixels."""
    x, y = (np.linspace(0.5, length - 0.5, _SAMPLES_A_SIDE) for length in size)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Transformer:
    """Return a transformer, x before y on both sides. Creating one takes 4 ms, so it is cached."""
    return Transformer.from_crs(_crs(source), _crs(target), always_xy=True)


def _crs(name: str) -> CRS:
    return CRS.from_user_input(name) if name == LONLAT else CRS.from_wkt(name)


def _reproject(points: NDArray[np.float64], transformer: Transformer) -> NDArray[np.float64]:
    x, y = transformer.transform(points[..., 0], points[..., 1])
    return np.stack([x, y], axis=-1)
