"""Files that are odd: where they lie, what their pixels are, what they are called."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from tests.faults.case import Case, after, done, refused, warned
from tests.faults.pictures import ROTATED, SIDE, SOUTH_UP, TILED, picture, write, write_as

_RANGES: dict[str, tuple[Any, Any]] = {
    "int8": (-100, 100),
    "int16": (-500, 9000),
    "uint16": (300, 9000),
    "int32": (-5, 70_000),
    "uint32": (1, 4_000_000_000),
    "int64": (-5, 2**40),
    "uint64": (1, 2**50),
    "float32": (0.1, 0.7),
    "float64": (-1e10, 1e10),
}
_LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
_STEREO = from_origin(-30, 30, 0.6, 0.6)


def georeference() -> list[Case]:
    group = "georeference"

    def at(about: str, crs: str, transform: Affine) -> Case:
        return done(group, about, after(write, crs=crs, transform=transform))

    def none(about: str, says: str, crs: str | None, transform: Affine | None) -> Case:
        return refused(group, about, says, after(write, crs=crs, transform=transform))

    utm = "EPSG:32611"
    degree, tiny = 6e-6, 1e-150
    return [
        at("rotated by 30 degrees", utm, ROTATED),
        at("south up", utm, SOUTH_UP),
        at("sheared", utm, Affine(0.6, 0.1, 430_000, 0, -0.6, 3_775_000)),
        at("degrees", "EPSG:4326", from_origin(-117.2, 34.1, 6.5e-6, 5.4e-6)),
        at("degrees with latitude first", "EPSG:4267", from_origin(-117.2, 34.1, 6.5e-6, 5.4e-6)),
        at("Web Mercator", "EPSG:3857", from_origin(-13_046_000, 4_040_000, 0.72, 0.72)),
        at("US survey feet", "EPSG:2229", from_origin(6_480_000, 1_840_000, 1.97, 1.97)),
        at("over the antimeridian", "EPSG:32601", from_origin(163_600, 7_000_000, 0.6, 0.6)),
        at("over 180 degrees", "EPSG:4326", from_origin(180 - 48 * degree, 0.0, degree, 5.4e-6)),
        at("over the north pole", "EPSG:32661", from_origin(1_999_970, 2_000_030, 0.6, 0.6)),
        at("over the south pole", "EPSG:3031", _STEREO),
        none("no CRS", "no coordinate reference system", None, SOUTH_UP),
        none("no transform", "no geotransform", utm, None),
        none("transform of no area", "no geotransform", utm, Affine(0.6, 0, 4e5, 0, 0, 3e6)),
        none("pixels of no size", "no size on the ground", utm, from_origin(4e5, 3e6, tiny, tiny)),
        none("coordinates off the Earth", "outside the reach", utm, from_origin(1e12, 1e12, 1, 1)),
        none("latitude 1,000", "outside the reach", "EPSG:4326", from_origin(0, 1000, 1e-5, 1e-5)),
        none("transform of NaN", "no geotransform", utm, from_origin(float("nan"), 0, 0.6, 0.6)),
        none("CRS of a building site", "its CRS cannot be used", _LOCAL, ROTATED),
        refused(group, "control points alone", "4 ground control points: orthorectify", _gcps),
        refused(group, "RPCs alone", "it has RPCs: orthorectify", _rpcs),
    ]


def pixels() -> list[Case]:
    group = "pixels"

    def of(about: str, array: NDArray[Any], squares: int = 1, **profile: object) -> Case:
        return done(group, about, after(write, pixels=array, **profile), squares=squares)

    gap = picture(1, "float32", 0.1, 0.7)
    gap[:, :10] = np.nan
    endless = gap.copy()
    endless[:, 60:] = np.inf
    empty = np.full((1, SIDE, SIDE), np.nan, np.float32)
    border = picture()
    border[:, :10] = 0
    alpha = picture(2)
    alpha[1] = 255
    none = "no valid pixels"
    return [
        *(of(f"{bands} bands", picture(bands)) for bands in (1, 2, 4, 8, 13)),
        *(of(dtype, picture(1, dtype, low, high)) for dtype, (low, high) in _RANGES.items()),
        of("a border of NaN", gap),
        of("NaN and infinity", endless),
        of("a border of nodata", border, nodata=0),
        of("nodata NaN", gap, nodata=float("nan")),
        of("the square is nodata", picture(), 0, nodata=200),
        of("alpha", alpha, alpha="YES"),
        of("YCbCr in JPEG", picture(3), compress="jpeg", photometric="ycbcr"),
        of("CMYK, which GDAL turns into RGB", 255 - picture(4), photometric="CMYK"),
        of("12 bits a pixel", picture(1, "uint16", 9, 4000), nbits=12),
        of("bands apart", picture(3), interleave="band", **TILED),
        of("one pixel", picture()[:, :1, :1], 0),
        of("one row", picture()[:, :1], 0),
        of("one column", picture()[:, :, :1], 0),
        of("big-endian BigTIFF", picture(), bigtiff="YES", endianness="BIG"),
        of("100 kB of metadata", picture(), tags={"a": "b" * 100_000}),
        done(group, "nodata out of range", _nodata_out_of_range),
        done(group, "internal mask", after(write, _internal_mask), squares=0),
        done(group, "sparse, with nodata", partial(_sparse, nodata=0)),
        done(group, "COG", after(write_as, driver="COG", pixels=picture())),
        done(group, "JPEG 2000", _jp2, "scene.jp2"),
        warned(
            group, "sparse, without nodata", "not in the file: nothing is looked at there", _sparse
        ),
        warned(
            group, "nothing but nodata", none, after(write, pixels=border * 0, nodata=0), squares=0
        ),
        warned(group, "nothing but NaN", none, after(write, pixels=empty), squares=0),
        refused(
            group, "complex", "one real data type", after(write, pixels=picture(1, "complex64"))
        ),
        refused(
            group,
            "one bit a pixel",
            "colour numbers",
            after(write, pixels=picture() // 200, nbits=1),
        ),
        refused(group, "palette", "colour numbers", after(write, _palette)),
    ]


def names() -> list[Case]:
    group = "name"
    return [
        done(group, about, write, file)
        for about, file in (
            ("spaces", "a scene of spaces.tif"),
            ("leading and trailing space", " scene .tif"),
            ("quotes", 'it\'s "quoted" `here`.tif'),
            ("newline", "two\nlines.tif"),
            ("tab and escape", "tab\t\x1b[31mred.tif"),
            ("leading dash", "--model.tif"),
            ("shell", "$(touch marker);touch marker|&.tif"),
            ("percent and query", "a%20b?c=d#e.tif"),
            ("wildcards", "a[1]*.tif"),
            ("letters of many scripts", "Köln_北京_🛰.tif"),
            ("right to left", "مشهد\u202e.tif"),
            ("one of GDAL's own", "GTIFF_DIR:2:scene.tif"),
            ("one of a driver", "VRT:scene.tif"),
            ("backslash", "back\\slash.tif"),
            ("dots", "..scene...tif"),
            ("no suffix", "scene"),
            ("as long as can be", "n" * 251 + ".tif"),
            ("long, not of Latin letters", "景" * 83 + ".tif"),
        )
    ] + [
        refused(group, "not UTF-8", "its name is not UTF-8", _other_bytes, "caf\udce9.tif"),
    ]


def links() -> list[Case]:
    group = "file"
    not_file = "expected a file, found"
    return [
        done(group, "link to a raster", _link),
        refused(group, "link to nothing", "no such file", lambda p: p.symlink_to("gone")),
        refused(group, "link to itself", "cannot be opened", lambda p: p.symlink_to(p)),
        refused(group, "link to a device", not_file, lambda p: p.symlink_to("/dev/zero")),
        refused(group, "named pipe", f"{not_file} a named pipe", os.mkfifo),
        refused(group, "folder", f"{not_file} a folder", lambda p: p.mkdir()),
        refused(group, "socket", f"{not_file} a socket", _socket),
        refused(group, "no file", "no such file", lambda p: None),
    ]


def _other_bytes(path: Path) -> None:
    """Write a raster under a name that rasterio cannot take."""
    write(path.parent / "plain.tif").rename(path)


def _gcps(path: Path) -> None:
    points = [
        GroundControlPoint(row, col, 430_000 + col, 3_775_000 - row)
        for row in (0, SIDE)
        for col in (0, SIDE)
    ]
    write(path, crs=None, transform=None)
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = (points, rasterio.CRS.from_epsg(32611))


def _rpcs(path: Path) -> None:
    write(path, crs=None, transform=None)
    line = [1.0] + [0.0] * 19
    with rasterio.open(path, "r+") as dataset:
        dataset.rpcs = RPC(
            *(0.0, 1.0, 34.0, 1.0, line, line, 1.0, 1.0, -117.0, 1.0, line, line, 1.0, 1.0)
        )


def _jp2(path: Path) -> None:
    write_as(path, "JP2OpenJPEG", picture(), QUALITY="100", REVERSIBLE="YES")


def _nodata_out_of_range(path: Path) -> None:
    """Declare a nodata value that uint8 cannot hold, as GDAL writes it: a text in a tag."""
    write(path, nodata=255)
    path.write_bytes(path.read_bytes().replace(b"255\0", b"999\0"))


def _internal_mask(path: Path) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(picture()[0] < 200)


def _palette(path: Path) -> None:
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {value: (value, 0, 0, 255) for value in range(256)})


def _sparse(path: Path, **profile: object) -> None:
    """Write the blocks of the square alone."""
    shape = {"width": 3 * SIDE, "height": SIDE, "count": 1, "dtype": "uint8"}
    place = {"crs": "EPSG:32611", "transform": ROTATED}
    with rasterio.open(
        path, "w", driver="GTiff", sparse_ok=True, **shape, **place, **TILED, **profile
    ) as dataset:
        dataset.write(picture(), window=rasterio.windows.Window(0, 0, SIDE, SIDE))


def _link(path: Path) -> None:
    path.symlink_to(write(path.parent / "target" / "other.tif"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)
