"""Open rasters: only in the formats asked for, nothing besides the raster, nothing too large."""

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

from scenesweep.pipeline.errors import UnreadableScene
from scenesweep.pipeline.raster import gdal
from scenesweep.pipeline.raster.blocks import MAX_BLOCKS
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.raster.kinds import kind_of
from scenesweep.pipeline.raster.private_rasterio import GdalError
from scenesweep.pipeline.storage import network as remote
from scenesweep.pipeline.storage.network import NO_CREDENTIALS, unsigned, without_secrets

MAX_PIXELS = 2 * 10**12
MAX_BANDS = 1024
MAX_BLOCK_BYTES = 256 * 2**20
"""A raster that claims more than this is refused before any pixel is read: a few hundred bytes
can claim terabytes."""

BROKEN = (RasterioError, GdalError, MemoryError)
"""What reading from a raster raises when the raster is to blame."""
_ODD = (*BROKEN, ValueError, LookupError, AttributeError, TypeError)  # rasterio on odd headers

_MOST_KEPT = 8
_kept: dict[tuple[object, ...], DatasetReader] = {}
"""What is open and not in use, the longest unused first."""

_LACKING = "AWS_NO_SIGN_REQUEST configuration option"  # in what GDAL says without credentials
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
    """Open a raster with an explicit list of formats, for reading.

    Given a fingerprint of the file to `keep`, it stays open afterwards for the next who asks for
    that: GDAL decodes no block twice that it still has. Such a file is on disk.

    Raises:
        UnreadableScene: when it cannot be opened, claims more than a reader can hold, names
            files of others, or while reading from it inside the block.
    """
    place = _place(href)
    gdal.keep_to(drivers)
    # GDAL finds credentials by itself; rasterio's sessions would ask for boto3.
    options = gdal.options(remote=reaches_network(href)) | remote.gdal_options(href)
    reach = rasterio.Env(DummySession(), **options)
    name = without_secrets(href)
    key = (os.getpid(), place, keep, drivers)  # a process forked off has its own
    dataset = _kept.pop(key, None) if keep else None
    try:
        with reach:
            dataset = _open(place, drivers) if dataset is None else dataset
    except _ODD as error:
        raise UnreadableScene(f"{name}: {cause(error, drivers, _there(place))}") from error
    with raster_errors(name, drivers), reach, ExitStack() as closing:
        closing.enter_context(dataset)
        _check(name, dataset)
        yield dataset
        if keep and isinstance(place, Path):
            closing.pop_all()
            _keep(key, dataset)


def _keep(key: tuple[object, ...], dataset: DatasetReader) -> None:
    """Keep a dataset open, and close those that nobody has asked for since."""
    _kept[key] = dataset
    while len(_kept) > _MOST_KEPT:
        with suppress(KeyError, RuntimeError):  # another thread was first
            _kept.pop(next(iter(_kept))).close()


@contextmanager
def raster_errors(name: str, drivers: tuple[str, ...] = DRIVERS) -> Iterator[None]:
    """Turn what a broken raster raises inside the block into `UnreadableScene`, naming it."""
    try:
        yield
    except BROKEN as error:
        raise UnreadableScene(f"{name}: {cause(error, drivers)}") from error


@contextmanager
def described(href: str) -> Iterator[None]:
    """Map whatever rasterio raises on odd headers; nothing but attributes is read inside.

    Raises:
        UnreadableScene: for errors that are not ours.
    """
    try:
        yield
    except _ODD as error:
        raise UnreadableScene(f"{href}: its header cannot be read: {_line(error)}") from error


def check_sidecars(href: str) -> list[str]:
    """Return warnings about masks and overviews beside a raster that are not opened."""
    beside = [Path(href + suffix) for suffix in (".msk", ".ovr")]
    return [
        f"{path.name} is no TIFF that can be read: not used"
        for path in beside
        if is_regular(path) and not _tiff(path)
    ]


def is_regular(path: Path) -> bool | None:
    """Say whether a regular file is there; None where nothing is, or no name can be so long."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return None


def reaches_network(href: str) -> bool:
    """Say whether the user named a scene that is read over a network."""
    return _REMOTE.search(href) is not None


def cause(
    error: BaseException, drivers: tuple[str, ...] = DRIVERS, there: str = "something else"
) -> str:
    """Say what went wrong in one line that does not repeat the file's name.

    `there` is what the file is where it is of none of the formats `drivers`.
    """
    text = _line(error.__cause__ or error)
    if "not recognized as being in a supported file format" in text or "not recognized" in text:
        return f"expected one of the formats {', '.join(drivers)}, found {there}"
    if "No such file" in text:
        return "no such file"
    return NO_CREDENTIALS if _LACKING in text else f"cannot be read: {text}"


def _there(place: str | Path) -> str:
    return (kind_of(place) if isinstance(place, Path) else "") or "something else"


def _open(place: str | Path, drivers: tuple[str, ...]) -> DatasetReader:
    # rasterio.open takes one driver; the class takes a list, which GDAL keeps to.
    with warnings.catch_warnings():
        # `inspect` says so in words of its own.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return DatasetReader(place, driver=list(drivers))


def _place(href: str) -> str | Path:
    """Return what GDAL is told to open: the absolute path of a file, or a name of GDAL's own.

    A relative path could be taken for one of these names, and opening a pipe would wait for
    ever.
    """
    if remote.is_remote(href):
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
        said = getattr(error, "strerror", None) or error
        raise UnreadableScene(f"{href}: cannot be opened: {said}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UnreadableScene(f"{href}: expected a file, found {kind}")
    path = Path(href).absolute()
    for name in _sidecars(path):
        if is_regular(name) is False:
            raise UnreadableScene(f"{href}: {name.name} beside it is not a file")
    return path


def _sidecars(path: Path) -> list[Path]:
    """Return where GDAL looks for more of a raster."""
    stem = str(path.with_suffix(""))
    beside = [Path(f"{path}{suffix}") for suffix in _BESIDE]
    return beside + [Path(stem + suffix) for suffix in (*_BESIDE, *_WORLD, *_RPC)]


def _tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except OSError:
        return False


def _check(href: str, dataset: DatasetReader) -> None:
    """Refuse what claims too much, and what sends GDAL elsewhere, before any pixel is read."""
    with described(href):
        pixels = dataset.width * dataset.height
        blocks = dataset.block_shapes
        sizes = [np.dtype(kind).itemsize for kind in dataset.dtypes]
        elsewhere = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")
    if elsewhere is not None:
        raise UnreadableScene(
            f"{href}: its metadata names another file for its overviews ({elsewhere[:100]!r}): "
            "not opened"
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
    apart = dataset.interleaving is Interleaving.band  # else all bands of a block come together
    largest = rows * columns * (max(sizes) if apart else sum(sizes))
    if largest > MAX_BLOCK_BYTES:
        raise UnreadableScene(
            f"{href}: its blocks of {columns:,} x {rows:,} pixels and {dataset.count} bands take "
            f"{largest / 2**20:,.0f} MiB each, at most {MAX_BLOCK_BYTES // 2**20} are read; "
            "write it with smaller blocks"
        )


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return unsigned(text)[:300] or type(error).__name__
