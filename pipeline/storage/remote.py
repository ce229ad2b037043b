"""Remote files at `https://`, `s3://`, `gs://` and `az://`: versions, contents and listings.

GDAL reads scenes by ranges of bytes, with the options given here. Small files, such as STAC items
and areas of interest, are read at once.
"""

from __future__ import annotations

import atexit
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from urllib.parse import urlsplit

from scenesweep.pipeline.errors import OutputError, UnreadableScene, UsageError
from scenesweep.pipeline.storage.cloud_settings import CLOUDS
from scenesweep.pipeline.storage.host_headers import gdal_headers_for
from scenesweep.pipeline.storage.network import (
    Version,
    cloud_of,
    http_bytes,
    http_options,
    http_version,
    is_remote,
    without_secrets,
)
from scenesweep.pipeline.storage.objects import ObjectLocation

_ADDRESS_AS_PATH = re.compile(r"(https?|s3|gs|az):/(?=[^/])", re.IGNORECASE)


def gdal_path(href: str) -> str:
    """Return the path by which GDAL opens a file."""
    if not is_remote(href):
        return href
    cloud = cloud_of(href)
    return CLOUDS[cloud].gdal + href.partition("://")[2] if cloud else f"/vsicurl/{href}"


def gdal_options(href: str) -> dict[str, str]:
    """Return GDAL's options for a remote file; none for a file on disk."""
    if not is_remote(href):
        return {}
    cloud = cloud_of(href)
    return http_options(href) | (CLOUDS[cloud].for_gdal() if cloud else {})


def gdal_headers(href: str) -> tuple[str, str] | None:
    """Return a prefix of GDAL's paths and the headers of its requests there; None if none.

    Other servers must not see them.
    """
    cloud = cloud_of(href)
    if cloud:
        return CLOUDS[cloud].gdal, CLOUDS[cloud].headers()
    return gdal_headers_for(href) if is_remote(href) else None


def version_of(href: str) -> Version:
    """Ask the server for the version of a file.

    Raises:
        UnreadableScene: when the file does not exist, access is denied, the server does not
            answer before the timeout, or it does not support ranges of bytes.
    """
    if not cloud_of(href):
        return http_version(href)
    with _object_errors(href):
        path = object_at(href)
        try:
            stat = path.stat()
        except FileNotFoundError:
            path.read_bytes()  # the answer to this request says whether the bucket is missing
            raise
        tag = f'"{stat.tag}"' if stat.tag else str(stat.st_mtime)
        return Version(tag, stat.st_size)


def read_bytes(href: str) -> bytes:
    """Read a complete remote file, such as a STAC item.

    Raises:
        UnreadableScene: when it cannot be read.
    """
    if not cloud_of(href):
        return http_bytes(href)
    with _object_errors(href):
        return object_at(href).read_bytes()


def list_objects(prefix: str) -> list[str]:
    """Return the addresses of all objects under `s3://bucket/prefix/`, sorted.

    Raises:
        UnreadableScene: when the bucket cannot be listed.
    """
    with _object_errors(prefix):
        return sorted(str(path) for path, _ in object_at(prefix).objects())


def object_at(href: str) -> ObjectLocation:
    """Return the object or the prefix at an address.

    Raises:
        UnreadableScene: when the address has no bucket.
    """
    bucket, _, key = href.partition("://")[2].partition("/")
    if not bucket:
        raise UnreadableScene(f"{without_secrets(href)}: expected s3://BUCKET/KEY")
    return ObjectLocation(cloud_of(href), PurePosixPath("/", bucket, key.strip("/")))


def address_of(name: str | Path) -> str:
    """Return the address that a name is, also after `Path` made one slash of two; else ''."""
    address = _ADDRESS_AS_PATH.sub(r"\1://", str(name), count=1)
    return address if is_remote(address) else ""


def shown(name: str | Path) -> str:
    """Return the name of a file for a message: an address without secrets, or the path."""
    return without_secrets(address_of(name)) or str(name)


def local_file(name: str | Path) -> Path:
    """Return a file on this machine; a remote file is first copied to a temporary folder.

    The folder is deleted when the process ends. The copy has the name of the file.

    Raises:
        UsageError: when a remote file cannot be read.
    """
    address = address_of(name)
    if not address:
        return Path(name)
    file_name = PurePosixPath(urlsplit(address).path).name
    if not file_name:
        raise UsageError(f"{shown(name)}: expected the address of a file")
    try:
        content = read_bytes(address)
    except UnreadableScene as error:
        raise UsageError(str(error)) from error
    folder = _copies() / hashlib.sha256(address.encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    copy = folder / file_name
    copy.write_bytes(content)
    return copy


def local_name(name: str) -> str:
    """Return a name that may be an address, as that of a file on this machine.

    Raises:
        UsageError: when a remote file cannot be read.
    """
    return str(local_file(name)) if address_of(name) else name


@cache
def _copies() -> Path:
    folder = Path(mkdtemp(prefix="scenesweep-inputs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def _object_errors(href: str) -> Iterator[None]:
    name = without_secrets(href)
    try:
        yield
    except FileNotFoundError as error:
        hint = "; a prefix, for all objects below it, ends with a slash"
        raise UnreadableScene(
            f"{name}: no such object{'' if PurePosixPath(href).suffix else hint}"
        ) from error
    except OutputError as error:
        raise UnreadableScene(f"{name}: {str(error).partition(': ')[2]}") from error
