"""Objects of a cloud, with the methods that `pathlib` has for files. There is no local cache.

A missing object raises FileNotFoundError. Every other problem is an OutputError of one line.
"""

from __future__ import annotations

import hashlib
import io
import mimetypes
import mmap
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from scenesweep.pipeline.storage.clients import Outdated, ask
from scenesweep.pipeline.storage.cloud_settings import CLOUDS
from scenesweep.pipeline.storage.network import http_timeouts

if TYPE_CHECKING:
    from obstore import ObjectMeta

    from scenesweep.pipeline.storage.clients import ObjectStore

_DIGEST = "sha256"
_SINGLE_PUT = 4 << 30  # bytes: S3 takes 5 GiB, Azure 5,000 MiB
_PART = 64 << 20
_COPIED_AT_ONCE = 8 << 20
_LISTED_AT_ONCE = 1000
_DELETED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """Size of an object in bytes, the time of its upload in seconds since 1970, and its ETag."""

    st_size: int
    st_mtime: float
    tag: str = ""

    @property
    def st_mtime_ns(self) -> int:
        return int(self.st_mtime * 1e9)


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an object: its content, its tag, and when it was put, by the store's clock.

    The tag is what a conditional put names: the ETag, or the generation on Google Cloud Storage.
    """

    content: bytes
    tag: str
    changed: datetime | None = None


@dataclass(frozen=True, slots=True, order=True)
class ObjectLocation:
    """An object or a prefix in a cloud, by its scheme and `/bucket/key`.

    On Azure, the bucket is a container of the account in the environment.
    """

    scheme: str
    path: PurePosixPath

    def __str__(self) -> str:
        return f"{self.scheme}:/{self.path}"

    def __truediv__(self, name: str) -> ObjectLocation:
        return self._at(self.path / name)

    @property
    def bucket(self) -> str:
        return self.path.parts[1]

    @property
    def key(self) -> str:
        return "/".join(self.path.parts[2:])

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def suffix(self) -> str:
        return self.path.suffix

    @property
    def parent(self) -> ObjectLocation:
        return self._at(self.path.parent)

    def with_name(self, name: str) -> ObjectLocation:
        return self._at(self.path.with_name(name))

    def with_suffix(self, suffix: str) -> ObjectLocation:
        return self._at(self.path.with_suffix(suffix))

    def is_file(self) -> bool:
        with suppress(FileNotFoundError):
            self.stat()
            return True
        return False

    def is_dir(self) -> bool:
        """Say whether there is any object under this prefix."""
        return next(self.objects(), None) is not None

    def stat(self) -> ObjectStat:
        if not self.key:
            raise FileNotFoundError(f"{self}: no such object")
        return _stat_of(ask(self, lambda obstore, store: obstore.head(store, self.key)))

    def open(self, _mode: Literal["rb"]) -> io.BufferedReader:
        """Open an object to read; skipped bytes are not downloaded."""
        return io.BufferedReader(_Reader(self), 1 << 16)

    def read_bytes(self) -> bytes:
        if not self.key:
            raise FileNotFoundError(f"{self}: no such object")
        return ask(self, lambda obstore, store: bytes(obstore.get(store, self.key).bytes()))

    def read_text(self, encoding: str) -> str:
        return self.read_bytes().decode(encoding)

    def iterdir(self) -> Iterator[ObjectLocation]:
        return (path for path, _ in self._listed("", deep=False))

    def glob(self, pattern: str) -> Iterator[ObjectLocation]:
        """Yield the paths that match a pattern, in which `*` is any text without a slash.

        A folder matches only a pattern with a `*` in its last part.
        """
        start = pattern.partition("*")[0]
        matching = re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))
        for path, _ in self._listed(start, deep="/" in pattern[len(start) :]):
            if matching.fullmatch(str(path.path.relative_to(self.path))):
                yield path

    def objects(self) -> Iterator[tuple[ObjectLocation, ObjectStat]]:
        """Yield all objects under this prefix, at any depth."""
        return ((path, stat) for path, stat in self._listed("", deep=True) if stat)

    def put_digest(self) -> str | None:
        """Return the SHA-256 that is stored with an object, without reading its content.

        None when another program uploaded it.

        Raises:
            FileNotFoundError: when the object does not exist.
        """
        attributes: Mapping[str, str] = ask(
            self,
            lambda obstore, store: obstore.get(store, self.key, options={"head": True}).attributes,
        )
        return attributes.get(_DIGEST)

    def _at(self, path: PurePosixPath) -> ObjectLocation:
        return ObjectLocation(self.scheme, path)

    def _listed(
        self, start: str, *, deep: bool
    ) -> Iterator[tuple[ObjectLocation, ObjectStat | None]]:
        """Yield objects under this prefix that begin with `start`; and folders unless `deep`.

        obstore lists folders. With the beginning of a name, the listing starts there and ends
        after the last such name, because a folder may have very many others.
        """
        folder, _, begin = start.rpartition("/")
        above = self / folder
        if begin and not deep:
            yield from _first_level(above, above.beginning_with(begin))
        elif deep:
            for meta in above.beginning_with(""):
                yield self._at_key(meta["path"]), _stat_of(meta)
        else:
            listed = ask(
                above,
                lambda obstore, store: obstore.list_with_delimiter(store, above.key or None),
            )
            for name in listed["common_prefixes"]:
                yield self._at_key(name), None
            for meta in listed["objects"]:
                if meta["path"] != above.key:  # an empty object in place of a folder
                    yield self._at_key(meta["path"]), _stat_of(meta)

    def beginning_with(self, begin: str) -> Iterator[ObjectMeta]:
        """Yield the objects below this prefix whose path in it begins with some text."""
        first = f"{self.key}/{begin}" if self.key else begin
        offset = first[:-1] if begin else None
        listing = ask(
            self,
            lambda obstore, store: obstore.list(
                store, self.key or None, offset=offset, chunk_size=_LISTED_AT_ONCE
            ),
        )
        while chunk := ask(self, lambda _obstore, _store: next(listing, None)):
            for meta in chunk:
                if begin and meta["path"] > first and not meta["path"].startswith(first):
                    return
                if meta["path"] != self.key and (meta["path"].startswith(first) or not begin):
                    yield meta

    def _at_key(self, key: str) -> ObjectLocation:
        return self._at(PurePosixPath("/", self.bucket, key))


def _first_level(
    above: ObjectLocation, listed: Iterable[ObjectMeta]
) -> Iterator[tuple[ObjectLocation, ObjectStat | None]]:
    """Yield objects directly below a prefix, and the folders of deeper ones once."""
    folder = ""
    for meta in listed:
        name, deeper, _ = meta["path"].removeprefix(above.key).lstrip("/").partition("/")
        if not deeper:
            yield above / name, _stat_of(meta)
        elif name != folder:
            folder = name
            yield above / name, None


def _stat_of(meta: ObjectMeta) -> ObjectStat:
    tag = (meta["e_tag"] or "").strip('"')
    return ObjectStat(meta["size"], meta["last_modified"].timestamp(), tag)


def put(file: Path, to: ObjectLocation) -> None:
    """Upload a file as one object, with its SHA-256. A partial object never exists.

    A file of up to 4 GiB is one request, so a killed process leaves nothing behind. Its bytes
    stay on the disk: only the pages in transit are in memory.

    Raises:
        OutputError: when the store refuses it.
    """
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, _DIGEST).hexdigest()
        size = content.seek(0, io.SEEK_END)
        kind = mimetypes.guess_type(to.name)[0] or "application/octet-stream"
        attributes = {"Content-Type": kind, _DIGEST: digest}
        send = partial(_put, to, attributes=attributes)
        if not size:
            send(b"", use_multipart=False)
        elif size > _SINGLE_PUT:
            send(file, chunk_size=_PART, max_concurrency=4)
        else:
            pages = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
            try:
                send(pages, use_multipart=False, patience=1 + size // _PART)
            finally:
                with suppress(BufferError):  # an upload that was interrupted still reads them
                    pages.close()


def _put(to: ObjectLocation, content: object, *, patience: int = 1, **options: Any) -> None:
    ask(
        to,
        lambda obstore, store: obstore.put(store, to.key, content, **options),
        patience=patience,
    )


def fetch(path: ObjectLocation, to: Path) -> None:
    """Copy an object to a file.

    Raises:
        FileNotFoundError: when the object does not exist.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as content, to.open("wb") as file:
        shutil.copyfileobj(content, file, _COPIED_AT_ONCE)


def delete(paths: Collection[ObjectLocation]) -> None:
    """Delete objects of one bucket; objects that do not exist are no error."""
    left = sorted(paths)
    while left:
        now, left = left[:_DELETED_AT_ONCE], left[_DELETED_AT_ONCE:]
        try:
            _delete(now[0], [path.key for path in now])
        except FileNotFoundError:  # Google and Azure refuse these, and may have left others
            for path in now:
                with suppress(FileNotFoundError):
                    _delete(path, [path.key])


def _delete(first: ObjectLocation, keys: list[str]) -> None:
    ask(first, lambda obstore, store: obstore.delete(store, keys))


def read_version(path: ObjectLocation) -> Version | None:
    """Read an object and its version; None when it does not exist."""

    def read(obstore: Any, store: ObjectStore) -> Version:
        result = obstore.get(store, path.key)
        meta = result.meta
        named = meta["version"] if CLOUDS[path.scheme].by_generation else meta["e_tag"]
        return Version(bytes(result.bytes()), named, meta["last_modified"])

    with suppress(FileNotFoundError):
        return ask(path, read)
    return None


def put_over(path: ObjectLocation, content: bytes, before: Version | None) -> str:
    """Replace one version of an object, or create it when `before` is None; return its tag.

    Raises:
        Outdated: when another process wrote the object since `before` was read.
    """
    mode = {"e_tag": before.tag, "version": before.tag} if before else "create"
    try:
        result = ask(path, lambda obstore, store: obstore.put(store, path.key, content, mode=mode))
    except FileNotFoundError as error:  # that version is gone
        raise Outdated(str(path)) from error
    return str(result["version" if CLOUDS[path.scheme].by_generation else "e_tag"])


def age_s(path: ObjectLocation, version: Version) -> float:
    """Return the seconds since a version of an object was put, by the store's own clock.

    obstore does not give the `Date` of a response, so this asks for it without credentials. If
    the store does not answer such a request, the clock of this machine counts.
    """
    import requests

    now = datetime.now(UTC)
    with suppress(requests.RequestException, KeyError, ValueError):
        url = f"{CLOUDS[path.scheme].endpoint(path.bucket)}/{path.bucket}"
        with requests.head(url, timeout=http_timeouts()) as response:
            now = parsedate_to_datetime(response.headers["Date"])
    return (now - (version.changed or now)).total_seconds()


class _Reader(io.RawIOBase):
    """One version of an object as a file; each read is a request for its range of bytes."""

    def __init__(self, path: ObjectLocation) -> None:
        self._path = path
        self._at = 0
        if not path.key:
            raise FileNotFoundError(f"{path}: no such object")
        meta = ask(path, lambda obstore, store: obstore.head(store, path.key))
        self._size, self._tag = meta["size"], meta["e_tag"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if self._at >= end:
            return 0
        with self._same_version():
            read = ask(self._path, partial(self._range, self._at, end))
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)

    def _range(self, start: int, end: int, obstore: Any, store: ObjectStore) -> bytes:
        options = {"range": (start, end), "if_match": self._tag}
        return bytes(obstore.get(store, self._path.key, options=options).bytes())

    @contextmanager
    def _same_version(self) -> Iterator[None]:
        try:
            yield
        except (Outdated, FileNotFoundError) as error:
            raise OSError(f"{self._path}: changed while it was read") from error
