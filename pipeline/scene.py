"""Inspect rasters: what a scene is, before any of its pixels are read."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from pyproj import CRS, Geod
from pyproj.exceptions import ProjError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from pipeline.errors import NoGeoreference, SceneError, UnreadableScene
from pipeline.georef import to_lonlat, to_map

DRIVERS = ("GTiff", "COG", "JP2OpenJPEG", "PNG", "JPEG")
"""Formats that are opened unless others are named. VRT can read any other file, so it is not
among them."""

_TIME_TAGS = (
    ("", "TIFFTAG_DATETIME"),
    ("IMAGERY", "ACQUISITIONDATETIME"),
    ("", "ACQUISITIONDATETIME"),
    ("", "acquired_at"),
    ("", "datetime"),
)


@dataclass(frozen=True, slots=True)
class Band:
    """One band: its description ('' when it has none) and colour interpretation, lower case."""

    description: str
    color: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A raster, without any open handle.

    `transform` maps pixel edges (column, row) to `crs` (WKT); both are None for a raster
    without georeference. `gsd_m` is the length in metres on the ground of one pixel along
    columns and along rows, at the scene's centre. `masked` says whether some pixels may be
    invalid (nodata, alpha, mask, NaN).
    """

    id: str
    href: str
    driver: str
    width: int
    height: int
    bands: tuple[Band, ...]
    dtype: str
    nodata: float | None
    masked: bool
    crs: str | None
    transform: Affine | None
    gsd_m: tuple[float, float] | None
    acquired_at: datetime | None
    overviews: tuple[int, ...]
    block: tuple[int, int]
    fingerprint: str

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6


@contextmanager
def open_raster(href: str, drivers: tuple[str, ...] = DRIVERS) -> Iterator[DatasetReader]:
    """Open a raster with an explicit list of formats, for reading.

    Raises:
        UnreadableScene: when it cannot be opened, or while reading from it inside the block.
    """
    try:
        # rasterio.open takes one driver; the class takes a list, which GDAL keeps to.
        with rasterio.Env(), warnings.catch_warnings():
            # `inspect` says so in words of its own.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = DatasetReader(href, driver=list(drivers))
        with rasterio.Env(), dataset:
            yield dataset
    except RasterioError as error:
        raise UnreadableScene(f"{href}: {_cause(error, drivers)}") from error


def inspect(
    href: str,
    *,
    drivers: tuple[str, ...] = DRIVERS,
    pixel_coordinates: bool = False,
    scene_id: str | None = None,
) -> Scene:
    """Read a raster's header and return the scene.

    Raises:
        UnreadableScene: when it is no raster of the allowed formats.
        NoGeoreference: when it has no CRS or transform, unless `pixel_coordinates`.
        SceneError: when it mixes data types between bands.
    """
    with open_raster(href, drivers) as dataset:
        if dataset.count == 0:
            raise UnreadableScene(f"{href}: expected at least one band, found none")
        if len(set(dataset.dtypes)) != 1 or np.dtype(dataset.dtypes[0]).kind not in "uif":
            kinds = ", ".join(sorted(set(dataset.dtypes)))
            raise SceneError(f"{href}: expected one real data type for all bands, found {kinds}")
        crs, transform = _georeference(dataset, pixel_coordinates)
        return Scene(
            id=scene_id or stem(href),
            href=href,
            driver=dataset.driver,
            width=dataset.width,
            height=dataset.height,
            bands=_bands(dataset),
            dtype=dataset.dtypes[0],
            nodata=None if dataset.nodata is None else float(dataset.nodata),
            masked=_may_have_invalid_pixels(dataset),
            crs=crs,
            transform=transform,
            gsd_m=_gsd(dataset, crs, transform),
            acquired_at=_acquired_at(dataset),
            overviews=tuple(dataset.overviews(1)),
            block=dataset.block_shapes[0],
            fingerprint=_fingerprint(dataset),
        )


def stem(href: str) -> str:
    """Return the file name without its last suffix, made safe for a file name of our own."""
    name = re.split(r"[/\\]", href.rstrip("/\\"))[-1]
    name = name.rsplit(".", 1)[0] if "." in name[1:] else name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "scene"


def _georeference(
    dataset: DatasetReader, pixel_coordinates: bool
) -> tuple[str | None, Affine | None]:
    if pixel_coordinates:
        return None, None
    lacking = [] if dataset.crs else ["coordinate reference system"]
    if dataset.transform.is_identity or dataset.transform.is_degenerate:
        lacking.append("geotransform")
    if lacking:
        raise NoGeoreference(
            f"{dataset.name}: no {' and no '.join(lacking)}; georeference it, or ask for "
            "--pixel-coordinates to get boxes in pixels only"
        )
    return dataset.crs.to_wkt(), dataset.transform


def _gsd(
    dataset: DatasetReader, crs: str | None, transform: Affine | None
) -> tuple[float, float] | None:
    """Geodesic size of the centre pixel: projected units are not metres on the ground."""
    if crs is None or transform is None:
        return None
    x, y = dataset.width / 2, dataset.height / 2
    across = np.array([[x - 0.5, y], [x + 0.5, y], [x, y - 0.5], [x, y + 0.5]])
    try:
        lon, lat = to_lonlat(to_map(across, transform), crs).T
    except ProjError as error:
        raise NoGeoreference(f"{dataset.name}: its CRS cannot be used: {error}") from error
    if not np.isfinite([lon, lat]).all():
        raise NoGeoreference(f"{dataset.name}: its pixels lie outside the reach of its CRS")
    _, _, metres = Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
    return float(metres[0]), float(metres[1])


def _bands(dataset: DatasetReader) -> tuple[Band, ...]:
    return tuple(
        Band((description or "").strip().lower(), _color(dataset, index))
        for index, description in enumerate(dataset.descriptions)
    )


def _color(dataset: DatasetReader, index: int) -> str:
    try:
        return str(dataset.colorinterp[index].name).lower()
    except (ValueError, IndexError):  # a code that rasterio does not know
        return "undefined"


def _may_have_invalid_pixels(dataset: DatasetReader) -> bool:
    if np.dtype(dataset.dtypes[0]).kind == "f":
        return True  # NaN needs no declaration
    return any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums) or (
        ColorInterp.alpha in dataset.colorinterp
    )


def _acquired_at(dataset: DatasetReader) -> datetime | None:
    for namespace, tag in _TIME_TAGS:
        text = dataset.tags(ns=namespace or None).get(tag)
        if text:
            return parse_time(text)
    return None


def parse_time(text: str) -> datetime | None:
    """Read an ISO 8601 or TIFF (`2020:05:31 18:22:01`) time as UTC; None if it is neither."""
    text = re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", text.strip())
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _fingerprint(dataset: DatasetReader) -> str:
    """Hash names, sizes and modification times of the raster and of all files it reads."""
    digest = hashlib.sha256()
    for name in sorted(set(dataset.files) or {dataset.name}):
        path = Path(name)
        digest.update(path.name.encode())
        if path.exists():
            status = path.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _cause(error: RasterioError, drivers: tuple[str, ...]) -> str:
    """Say what went wrong in one line that does not repeat the file's name."""
    text = " ".join(str(error.__cause__ or error).split())
    if "not recognized as being in a supported file format" in text or "not recognized" in text:
        return f"expected one of the formats {', '.join(drivers)}, found something else"
    if "No such file" in text:
        return "no such file"
    return f"cannot be read: {text}"


def crs_name(scene: Scene) -> str | None:
    """Return the scene's CRS as AUTHORITY:CODE where it has one, else as WKT."""
    if scene.crs is None:
        return None
    authority = CRS.from_wkt(scene.crs).to_authority()
    return ":".join(authority) if authority else scene.crs
