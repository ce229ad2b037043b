"""Inspect rasters: read the header of a scene, before any of its pixels."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from affine import Affine
from pyproj import CRS, Geod
from pyproj.exceptions import ProjError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from scenesweep.pipeline.errors import NoGeoreference, SceneError, UnreadableScene
from scenesweep.pipeline.geometry.georef import point_on_earth, reaches_off_earth, to_lonlat, to_map
from scenesweep.pipeline.raster.blocks import check_blocks
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.raster.opening import check_sidecars, described, open_raster
from scenesweep.pipeline.raster.sidecar import auxiliary_file, georeference_beside
from scenesweep.pipeline.scene import Band, Part, Scene, stem
from scenesweep.pipeline.storage.network import Version, is_remote, without_secrets
from scenesweep.pipeline.storage.remote import version_of

_TIME_TAGS = (
    ("", "TIFFTAG_DATETIME"),
    ("IMAGERY", "ACQUISITIONDATETIME"),
    ("", "ACQUISITIONDATETIME"),
    ("", "acquired_at"),
    ("", "datetime"),
)


_REQUESTS = 16  # to servers, at the same time
_OFF_EARTH = "part of the raster lies off the Earth: nothing is looked at there"


_GRID_FILE = re.compile(r"(?:grids=|PARAMETERFILE\[\"[^\"]*\",\s*\")[^\s\",]*[/\\]", re.IGNORECASE)


def inspect(
    href: str,
    *,
    drivers: tuple[str, ...] = DRIVERS,
    pixel_coordinates: bool = False,
    scene_id: str | None = None,
) -> Scene:
    """Read a raster's header and return the scene.

    Raises:
        UnreadableScene: when it is not a raster of the allowed formats.
        NoGeoreference: when it has no CRS or transform, unless `pixel_coordinates`.
        SceneError: when it mixes data types between bands.
    """
    name = without_secrets(href)
    version = version_of(href) if is_remote(href) else None
    with open_raster(href, drivers) as dataset, described(name):
        if len(set(dataset.dtypes)) != 1 or np.dtype(dataset.dtypes[0]).kind not in "uif":
            kinds = ", ".join(sorted(set(dataset.dtypes)))
            raise SceneError(f"{name}: expected one real data type for all bands, found {kinds}")
        crs, transform = _georeference(name, dataset, pixel_coordinates)
        size = dataset.width, dataset.height
        gsd_m = ground_sample_distance(size, crs, transform, name)
        off_earth = bool(crs and transform and reaches_off_earth(size, crs, transform))
        sparse, lost = check_blocks(href, dataset)
        overviews = tuple(dataset.overviews(1))
        return Scene(
            id=scene_id or stem(name),
            href=name,
            driver=dataset.driver,
            drivers=drivers,
            width=dataset.width,
            height=dataset.height,
            bands=_bands(dataset),
            dtype=dataset.dtypes[0],
            nodata=None if dataset.nodata is None else float(dataset.nodata),
            masked=sparse or off_earth or _may_have_invalid_pixels(dataset),
            crs=crs,
            transform=transform,
            gsd_m=gsd_m,
            acquired_at=_acquired_at(dataset),
            overviews=overviews,
            block=dataset.block_shapes[0],
            fingerprint=_of_ground(
                _fingerprint(dataset) if version is None else _remote_fingerprint(name, version),
                sparse,
            ),
            warnings=(
                *lost,
                *((_OFF_EARTH,) if off_earth else ()),
                *check_sidecars(href),
                *_unversioned(name, version),
            ),
            parts=(
                Part(
                    href,
                    *size,
                    dataset.count,
                    sparse=sparse,
                    overviews=overviews,
                    version="" if version is None else f"{version.tag} {version.size}",
                ),
            ),
            off_earth=off_earth,
        )


def _georeference(
    href: str, dataset: DatasetReader, pixel_coordinates: bool
) -> tuple[str | None, Affine | None]:
    if pixel_coordinates:
        return None, None
    crs, transform = dataset.crs, dataset.transform
    if not crs or not _places(transform):
        sidecar = georeference_beside(dataset.name)
        crs = crs or sidecar[0]
        transform = sidecar[1] if sidecar[1] and not _places(transform) else transform
    missing = [] if crs else ["coordinate reference system"]
    if not _places(transform):
        missing.append("geotransform")
    if missing:
        raise NoGeoreference(
            f"{href}: no {' and no '.join(missing)}{_instead(href, dataset)}; georeference it, or "
            "ask for --pixel-coordinates to get boxes in pixels only"
        )
    wkt = crs.to_wkt()
    if _GRID_FILE.search(wkt):
        raise NoGeoreference(f"{href}: its CRS names a file of grid shifts, which is not opened")
    return wkt, transform


def _places(transform: Affine) -> bool:
    """Return whether a transform is usable. GDAL gives the identity for a missing one."""
    usable = np.isfinite(transform[:6]).all() and not transform.is_degenerate
    return bool(usable and not transform.is_identity)


def _instead(href: str, dataset: DatasetReader) -> str:
    """Describe what the raster has instead of a CRS or a transform, with advice."""
    if dataset.gcps[0]:
        return f" (it has {len(dataset.gcps[0])} ground control points: orthorectify it)"
    if dataset.tags(ns="RPC"):
        return " (it has RPCs: orthorectify it)"
    return ""


def ground_sample_distance(
    size: tuple[int, int], crs: str | None, transform: Affine | None, name: str
) -> tuple[float, float] | None:
    """Return the geodesic size of the centre pixel: projected units are not metres on the ground.

    If the centre lies off the Earth, the nearest sampled pixel on the Earth is used.

    Raises:
        NoGeoreference: when its CRS cannot place the scene.
    """
    if crs is None or transform is None:
        return None
    try:
        centre = point_on_earth(size, crs, transform)
    except ProjError as error:
        raise NoGeoreference(f"{name}: its CRS cannot be used: {error}") from error
    if centre is None:
        raise NoGeoreference(f"{name}: its pixels lie outside the reach of its CRS")
    x, y = centre
    across = np.array([[x - 0.5, y], [x + 0.5, y], [x, y - 0.5], [x, y + 0.5]])
    lon, lat = to_lonlat(to_map(across, transform), crs).T
    _, _, metres = Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
    if not (metres > 0).all():
        raise NoGeoreference(f"{name}: its pixels have no size on the ground")
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


def _of_ground(fingerprint: str, sparse: bool) -> str:
    """Return the fingerprint of a raster, changed for a sparse one.

    An earlier version looked at unwritten blocks as zeros: its results must not count as up to
    date.
    """
    if not sparse:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} sparse".encode()).hexdigest()[:16]


def check_unchanged(scene: Scene) -> None:
    """Compare the versions of a scene's remote files with those when it was inspected.

    Remote files stay open while a scene is read, and GDAL does not notice that one is replaced on
    its server: then some pixels are of one version and some of the other.

    Raises:
        UnreadableScene: when a file changed, or its server does not answer.
    """
    remote = [part for part in scene.parts if part.version]
    if not remote:
        return
    with ThreadPoolExecutor(min(_REQUESTS, len(remote))) as threads:
        versions = list(threads.map(version_of, [part.href for part in remote]))
    for part, version in zip(remote, versions, strict=True):
        if part.version != f"{version.tag} {version.size}":
            raise UnreadableScene(
                f"{without_secrets(part.href)}: it changed on its server while it was read, so "
                "nothing is published; rerun the same command"
            )


def _remote_fingerprint(name: str, version: Version) -> str:
    text = f"{Path(name).name} {version.size} {version.tag}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unversioned(name: str, version: Version | None) -> tuple[str, ...]:
    """Return a warning about a remote file of which not every change will be noticed."""
    if version is None or version.tag:
        return ()
    return (
        f"{Path(name).name}: its server gives neither ETag nor Last-Modified: only a change of its "
        "length will be noticed",
    )


def _fingerprint(dataset: DatasetReader) -> str:
    """Hash names, sizes and modification times of the raster and of all its sidecar files."""
    digest = hashlib.sha256()
    names = {*dataset.files, dataset.name}
    sidecar = auxiliary_file(dataset.name)
    if sidecar is not None:
        names.add(str(sidecar))
    for name in sorted(names):
        path = Path(name)
        digest.update(path.name.encode())
        if path.exists():
            status = path.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def crs_name(scene: Scene) -> str | None:
    """Return the scene's CRS as AUTHORITY:CODE where it has one, else as WKT."""
    if scene.crs is None:
        return None
    authority = CRS.from_wkt(scene.crs).to_authority()
    return ":".join(authority) if authority else scene.crs
