"""Open rasters: only in the allowed formats, no other files, nothing too large."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import Interleaving
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.session import DummySession

from scenesweep.pipeline.errors import UnreadableScene, shortened
from scenesweep.pipeline.raster import gdal
from scenesweep.pipeline.raster.blocks import MAX_BLOCKS
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.raster.kinds import kind_of
from scenesweep.pipeline.raster.private_rasterio import GdalError
from scenesweep.pipeline.storage import remote
from scenesweep.pipeline.storage.cloud_settings import CLOUDS, NO_CREDENTIALS
from scenesweep.pipeline.storage.network import is_remote, unsigned, without_secrets

MAX_PIXELS = 2 * 10**12
MAX_BANDS = 1024
MAX_BLOCK_BYTES = 256 * 2**20
"""A raster that claims more is refused before any pixel is read: a file of a few hundred bytes can
claim terabytes."""

BROKEN = (RasterioError, GdalError, MemoryError)
"""Errors that reading raises when the raster is broken."""
_ODD = (*BROKEN, ValueError, LookupError, AttributeError, TypeError)  # rasterio on odd headers

_MOST_KEPT = 8
_kept: dict[tuple[object, ...], DatasetReader] = {}
"""Open datasets that nobody uses, the least recently used first."""

_BESIDE = (".msk", ".ovr", ".aux.xml")
_WORLD = (".tfw", ".tifw", ".tiffw", ".wld", ".pgw", ".pngw", ".jgw", ".jpgw", ".j2w", ".jp2w")
_RPC = (".prj", ".IMD", ".RPB", "_RPC.TXT", "_rpc.txt", ".PVL", ".xml", ".XML", ".ATT", ".EPH")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_REMOTE = re.compile(
    r"^(?!(?:zip\+|tar\+|gzip\+)*(?:file|zip|tar|gzip):)[a-z][a-z0-9+]*://|/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)"
)
_GDAL_NAME = re.compile(r"/vsi|[A-Za-z][A-Za-z0-9_+]+:")


@contextmanager
def open_raster(
    href: str, drivers: tuple[str, ...] = DRIVERS, *, keep: str = ""
) -> Iterator[DatasetReader]:
    """Open a raster for reading, in one of the given formats.

    `keep` is a fingerprint of the file, or empty. With a fingerprint, the file stays open for the
    next call with the same one, so that GDAL neither fetches its header again nor decodes its
    cached blocks again. A remote file that stays open may change on its server: whoever uses its
    pixels has to compare its version afterwards (`pipeline.raster.inspect.check_unchanged`).

    Raises:
        UnreadableScene: when the raster cannot be opened, claims more than a reader can hold,
            refers to other files, or cannot be read in the block.
    """
    target = _target(href)
    gdal.keep_to(drivers)
    headers = remote.gdal_headers(href)
    if headers:
        gdal.set_headers(*headers)
    # GDAL finds credentials by itself. A rasterio session would need other packages.
    options = gdal.options(remote=reaches_network(href)) | remote.gdal_options(href)
    reach = rasterio.Env(DummySession(), **options)
    name = without_secrets(href)
    key = (os.getpid(), target, keep, drivers)  # a forked process must not share a dataset
    dataset = _kept.pop(key, None) if keep else None
    if dataset is None and is_remote(href):
        _close_kept(target)
    try:
        with reach:
            dataset = _open(target, drivers) if dataset is None else dataset
    except _ODD as error:
        raise UnreadableScene(f"{name}: {cause(error, drivers, _kind_of(target))}") from error
    with raster_errors(name, drivers), reach, ExitStack() as closing:
        closing.enter_context(dataset)
        _check(name, dataset)
        yield dataset
        if keep and (isinstance(target, Path) or is_remote(href)):
            closing.pop_all()
            _keep(key, dataset)


def _keep(key: tuple[object, ...], dataset: DatasetReader) -> None:
    """Keep a dataset open, and close the least recently used ones."""
    _kept[key] = dataset
    while len(_kept) > _MOST_KEPT:
        with suppress(KeyError, RuntimeError):  # another thread took or closed it
            _kept.pop(next(iter(_kept))).close()


def _close_kept(target: str | Path) -> None:
    """Close all kept datasets of a remote file.

    GDAL caches what it fetched by address, and forgets it when a file is closed: while one version
    of a file is open, another one could get its bytes.
    """
    for key in list(_kept):
        if key[1] == target:
            with suppress(KeyError, RuntimeError):  # another thread took or closed it
                _kept.pop(key).close()


@contextmanager
def raster_errors(name: str, drivers: tuple[str, ...] = DRIVERS) -> Iterator[None]:
    """Turn errors of a broken raster in the block into `UnreadableScene`, with its name."""
    try:
        yield
    except BROKEN as error:
        raise UnreadableScene(f"{name}: {cause(error, drivers)}") from error


@contextmanager
def described(href: str) -> Iterator[None]:
    """Map the errors of rasterio on odd headers. The block must only read attributes.

    Raises:
        UnreadableScene: for every error of rasterio and GDAL.
    """
    try:
        yield
    except _ODD as error:
        raise UnreadableScene(f"{href}: its header cannot be read: {_line(error)}") from error


def check_sidecars(href: str) -> list[str]:
    """Return warnings about sidecar masks and overviews that are not opened."""
    sidecars = [Path(href + suffix) for suffix in (".msk", ".ovr")]
    return [
        f"{path.name} is not a readable TIFF: not used"
        for path in sidecars
        if is_regular(path) and not _tiff(path)
    ]


def is_regular(path: Path) -> bool | None:
    """Return whether a path is a regular file; None where it does not exist or is too long."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return None


def reaches_network(href: str) -> bool:
    """Return whether GDAL would read this scene over a network."""
    return _REMOTE.search(href) is not None


def cause(
    error: BaseException, drivers: tuple[str, ...] = DRIVERS, kind: str = "something else"
) -> str:
    """Return the cause of an error in one line, without the file's name.

    `kind` describes a file that has none of the formats `drivers`.
    """
    text = _line(error.__cause__ or error)
    if "not recognized as being in a supported file format" in text or "not recognized" in text:
        return f"expected one of the formats {', '.join(drivers)}, found {kind}"
    if "No such file" in text:
        return "no such file"
    lacking = (name for name, cloud in CLOUDS.items() if cloud.lacking in text)
    cloud = next(lacking, "")
    return NO_CREDENTIALS[cloud] if cloud else f"cannot be read: {text}"


def _kind_of(target: str | Path) -> str:
    return (kind_of(target) if isinstance(target, Path) else "") or "something else"


def _open(target: str | Path, drivers: tuple[str, ...]) -> DatasetReader:
    # rasterio.open takes one driver. The class takes a list, and GDAL tries no other driver.
    with warnings.catch_warnings():
        # `inspect` has its own message for a missing georeference.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return DatasetReader(target, driver=list(drivers))


def _target(href: str) -> str | Path:
    """Return what GDAL opens: the absolute path of a regular file, or one of GDAL's own names.

    GDAL could take a relative path for one of its names, and would wait for ever on a pipe.
    """
    if is_remote(href):
        return remote.gdal_path(href)
    try:
        status = Path(href).stat()
        href.encode()
    except FileNotFoundError as error:
        if _GDAL_NAME.match(href) or reaches_network(href):
            return href
        raise UnreadableScene(f"{without_secrets(href)}: no such file") from error
    except UnicodeEncodeError as error:
        raise UnreadableScene(f"{href}: its name is not UTF-8; rename it") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableScene(f"{href}: cannot be opened: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UnreadableScene(f"{href}: expected a file, found {kind}")
    path = Path(href).absolute()
    for name in _sidecars(path):
        if is_regular(name) is False:
            raise UnreadableScene(f"{href}: {name.name} beside it is not a file")
    return path


def _sidecars(path: Path) -> list[Path]:
    """Return the sidecar files that GDAL looks for."""
    stem = str(path.with_suffix(""))
    sidecars = [Path(f"{path}{suffix}") for suffix in _BESIDE]
    return sidecars + [Path(stem + suffix) for suffix in (*_BESIDE, *_WORLD, *_RPC)]


def _tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except OSError:
        return False


def _check(href: str, dataset: DatasetReader) -> None:
    """Refuse a raster that claims too much or refers to other files, before any pixel is read."""
    with described(href):
        pixels = dataset.width * dataset.height
        blocks = dataset.block_shapes
        sizes = [np.dtype(kind).itemsize for kind in dataset.dtypes]
        elsewhere = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")
    if elsewhere is not None:
        raise UnreadableScene(
            f"{href}: its metadata names another file for its overviews "
            f"({shortened(elsewhere, 100)!r}): not opened"
        )
    if dataset.count == 0:
        raise UnreadableScene(f"{href}: expected at least one band, found none")
    if dataset.count > MAX_BANDS:
        raise UnreadableScene(
            f"{href}: it claims {dataset.count:,} bands, at most {MAX_BANDS:,} are read"
        )
    if pixels > MAX_PIXELS:
        raise UnreadableScene(
            f"{href}: it claims {dataset.width:,} x {dataset.height:,} pixels, at most "
            f"{MAX_PIXELS:,} are read"
        )
    rows, columns = blocks[0]
    if pixels / (rows * columns) > MAX_BLOCKS:
        raise UnreadableScene(
            f"{href}: it claims {pixels // (rows * columns):,} blocks of {columns:,} x {rows:,} "
            f"pixels, at most {MAX_BLOCKS:,} are read; write it with larger blocks"
        )
    # With pixel interleaving, GDAL decodes all bands of a block together.
    per_pixel = max(sizes) if dataset.interleaving is Interleaving.band else sum(sizes)
    largest = rows * columns * per_pixel
    if largest > MAX_BLOCK_BYTES:
        raise UnreadableScene(
            f"{href}: its blocks of {columns:,} x {rows:,} pixels and {dataset.count} bands take "
            f"{largest / 2**20:,.0f} MiB each, at most {MAX_BLOCK_BYTES // 2**20} are read; "
            "write it with smaller blocks"
        )


def _line(error: BaseException) -> str:
    return shortened(unsigned(str(error))) or type(error).__name__
