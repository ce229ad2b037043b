"""Objects on S3, with the methods that `pathlib` has for files. There is no local cache.

A missing object raises FileNotFoundError. Every other problem is an OutputError of one line.
"""

from __future__ import annotations

import hashlib
import io
import mimetypes
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from scenesweep.model.errors import needs_extra
from scenesweep.pipeline.errors import OutputError
from scenesweep.pipeline.storage.network import (
    http_attempts,
    http_timeouts,
    s3_endpoint,
    unsigned_s3,
    without_secrets,
)

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

_DIGEST = "sha256"
_SINGLE_PUT = 64 << 20
_AT_ONCE = 1000  # keys of one DeleteObjects
_GONE = ("404", "NoSuchKey")
_OUTDATED = ("412", "PreconditionFailed", "409", "ConditionalRequestConflict")
_CODE = re.compile(r"An error occurred \((\w+)\)")
_DENIED = re.compile("40[13]|Access|Signature|Token|Credential|Forbidden|Denied", re.IGNORECASE)


class Outdated(Exception):
    """Another process replaced or deleted the version of an object that a request named."""


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
    """An object's content, the tag of this version, and its age in seconds."""

    content: bytes
    tag: str
    age_s: float


@dataclass(frozen=True, slots=True, order=True)
class S3Location:
    """An object or a prefix on S3, by `/bucket/key`."""

    path: PurePosixPath

    def __str__(self) -> str:
        return f"s3:/{self.path}"

    def __truediv__(self, name: str) -> S3Location:
        return S3Location(self.path / name)

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
    def parent(self) -> S3Location:
        return S3Location(self.path.parent)

    def with_name(self, name: str) -> S3Location:
        return S3Location(self.path.with_name(name))

    def with_suffix(self, suffix: str) -> S3Location:
        return S3Location(self.path.with_suffix(suffix))

    def is_file(self) -> bool:
        return self._head() is not None

    def is_dir(self) -> bool:
        """Say whether there is any object under this prefix."""
        return next(self.objects(), None) is not None

    def stat(self) -> ObjectStat:
        return _stat_of(self._existing(), "ContentLength")

    def open(self, _mode: Literal["rb"]) -> io.BufferedReader:
        """Open an object to read; skipped bytes are not downloaded."""
        return io.BufferedReader(_Reader(self), 1 << 16)

    def read_bytes(self) -> bytes:
        def read() -> bytes:
            with closing(client().get_object(Bucket=self.bucket, Key=self.key)["Body"]) as body:
                return body.read()

        with store_errors(self):
            return _with_retries(read)

    def read_text(self, encoding: str) -> str:
        return self.read_bytes().decode(encoding)

    def iterdir(self) -> Iterator[S3Location]:
        return (path for path, _ in self._listed("", deep=False))

    def glob(self, pattern: str) -> Iterator[S3Location]:
        """Yield the paths that match a pattern, in which `*` is any text without a slash.

        A folder matches only a pattern with a `*` in its last part.
        """
        start = pattern.partition("*")[0]
        matching = re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))
        for path, _ in self._listed(start, deep="/" in pattern[len(start) :]):
            if matching.fullmatch(str(path.path.relative_to(self.path))):
                yield path

    def objects(self) -> Iterator[tuple[S3Location, ObjectStat]]:
        """Yield all objects under this prefix, at any depth."""
        return ((path, stat) for path, stat in self._listed("", deep=True) if stat)

    def put_digest(self) -> str | None:
        """Return the SHA-256 that is stored with an object, without reading its content.

        None when another program uploaded it.

        Raises:
            FileNotFoundError: when the object does not exist.
        """
        return self._existing()["Metadata"].get(_DIGEST)

    def _existing(self) -> Any:
        if (head := self._head()) is None:
            raise FileNotFoundError(f"{self}: no such object")
        return head

    def _head(self) -> Any:
        with suppress(FileNotFoundError), store_errors(self):
            return client().head_object(Bucket=self.bucket, Key=self.key)
        return None

    def _listed(self, start: str, *, deep: bool) -> Iterator[tuple[S3Location, ObjectStat | None]]:
        """Yield objects under this prefix that begin with `start`; and folders unless `deep`."""
        prefix = f"{self.key}/{start}" if self.key else start
        with store_errors(self):
            pages, delimiter = client().get_paginator("list_objects_v2"), "" if deep else "/"
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter=delimiter):
                for folder in page.get("CommonPrefixes", ()):
                    yield self._at_key(folder["Prefix"]), None
                for listed in page.get("Contents", ()):
                    if not listed["Key"].endswith("/"):  # an empty object in place of a folder
                        yield self._at_key(listed["Key"]), _stat_of(listed, "Size")

    def _at_key(self, key: str) -> S3Location:
        return S3Location(PurePosixPath("/", self.bucket, key))


def _stat_of(answer: Any, size: str) -> ObjectStat:
    return ObjectStat(answer[size], answer["LastModified"].timestamp(), answer["ETag"].strip('"'))


def put(file: Path, to: S3Location) -> None:
    """Upload a file as one object, with its SHA-256. A partial object never exists.

    Raises:
        OutputError: when the store refuses it.
    """
    with needs_extra("s3"):
        from boto3.s3.transfer import TransferConfig

    with file.open("rb") as content:
        digest = hashlib.file_digest(content, _DIGEST).hexdigest()
    kind = mimetypes.guess_type(to.name)[0] or "application/octet-stream"
    with store_errors(to):
        client().upload_file(
            str(file),
            to.bucket,
            to.key,
            ExtraArgs={"ContentType": kind, "Metadata": {_DIGEST: digest}},
            Config=TransferConfig(multipart_threshold=_SINGLE_PUT),
        )


def fetch(path: S3Location, to: Path) -> None:
    """Copy an object to a file.

    Raises:
        FileNotFoundError: when the object does not exist.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with store_errors(path):
        client().download_file(path.bucket, path.key, str(to))


def delete(paths: Collection[S3Location]) -> None:
    """Delete objects of one bucket; objects that do not exist are no error."""
    left = sorted(paths)
    while left:
        now, left = left[:_AT_ONCE], left[_AT_ONCE:]
        with store_errors(now[0]):
            response = client().delete_objects(
                Bucket=now[0].bucket,
                Delete={"Objects": [{"Key": path.key} for path in now], "Quiet": True},
            )
        for error in response.get("Errors", ()):
            where = f"s3://{now[0].bucket}/{error.get('Key')}"
            raise OutputError(f"{where}: cannot be deleted: {error.get('Message')}")


def read_version(path: S3Location) -> Version | None:
    """Read an object with its age by the store's own clock; None when it does not exist."""
    with suppress(FileNotFoundError), store_errors(path):
        response = client().get_object(Bucket=path.bucket, Key=path.key)
        now = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
        with closing(response["Body"]) as body:
            content = body.read()
        age_s = (now - response["LastModified"]).total_seconds()
        return Version(content, response["ETag"], age_s)
    return None


def put_over(path: S3Location, content: bytes, before: Version | None) -> str:
    """Replace one version of an object, or create it when `before` is None; return its tag.

    Raises:
        Outdated: when another process wrote the object since `before` was read.
    """
    condition: dict[str, Any] = {"IfMatch": before.tag} if before else {"IfNoneMatch": "*"}
    try:
        with store_errors(path):
            response = client().put_object(
                Bucket=path.bucket, Key=path.key, Body=content, **condition
            )
    except FileNotFoundError as error:  # that version is gone
        raise Outdated(str(path)) from error
    return response["ETag"]


def client() -> S3Client:
    """Return this process's client for the current environment variables."""
    return _client(tuple(sorted(item for item in os.environ.items() if item[0][:4] == "AWS_")))


@lru_cache(maxsize=4)
def _client(_environment: tuple[tuple[str, str], ...]) -> S3Client:
    with needs_extra("s3"):
        import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    connect, read = http_timeouts()
    config = Config(
        connect_timeout=connect,
        read_timeout=read,
        max_pool_connections=32,
        retries={"total_max_attempts": http_attempts(), "mode": "standard"},
        signature_version=UNSIGNED if unsigned_s3() else None,
    )
    return boto3.session.Session().client("s3", endpoint_url=s3_endpoint(), config=config)


@contextmanager
def store_errors(path: S3Location) -> Iterator[None]:
    """Turn what boto3 raises into FileNotFoundError, Outdated or OutputError."""
    with needs_extra("s3"):
        from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (BotoCoreError, Boto3Error, ClientError, HTTPError) as error:
        cause = error if not isinstance(error, Boto3Error) else error.__context__ or error
        named = _CODE.search(str(error))  # boto3 does not always keep the cause of its own errors
        code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""
        code = code or (named[1] if named else "")
        if code in _GONE:
            raise FileNotFoundError(f"{path}: no such object") from error
        if code in _OUTDATED:
            raise Outdated(str(path)) from error
        raise OutputError(f"{path}: {_why(cause, code)}") from error


def _why(error: BaseException, code: str) -> str:
    from botocore import exceptions as boto

    reason = without_secrets(" ".join(str(error).split()))
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return "no access: expected credentials (AWS_*, a profile or a role), found none"
    if code == "NoSuchBucket":
        return "no such bucket"
    if code and _DENIED.search(code):
        return f"no access: credentials are wrong, or do not allow it: {reason}"
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return f"no connection to the store: {reason}"
    return f"the store cannot be used: {reason}"


def _with_retries(read: Callable[[], bytes], between: Callable[[], None] = lambda: None) -> bytes:
    """Read from the store, and retry when a response breaks off; boto3 retries only requests."""
    from botocore import exceptions as boto

    for left in reversed(range(http_attempts())):
        try:
            return read()
        except (boto.ReadTimeoutError, boto.ResponseStreamingError, boto.IncompleteReadError):
            between()
            if not left:
                raise
    raise AssertionError("at least one attempt")


class _Reader(io.RawIOBase):
    """One version of an object as a file; after a seek, a new request starts at the position."""

    def __init__(self, path: S3Location) -> None:
        self._path = path
        self._at = 0
        self._stream: StreamingBody | None = None
        with store_errors(path):
            head = client().head_object(Bucket=path.bucket, Key=path.key)
        self._size, self._tag = head["ContentLength"], head["ETag"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset != self._at:
            self._drop()
            self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size or not len(buffer):
            return 0
        try:
            with store_errors(self._path):
                read = _with_retries(lambda: self._opened().read(len(buffer)), self._drop)
        except (Outdated, FileNotFoundError) as error:
            raise OSError(f"{self._path}: changed while it was read") from error
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)

    def close(self) -> None:
        self._drop()
        super().close()

    def _opened(self) -> StreamingBody:
        if self._stream is None:
            path = self._path
            self._stream = client().get_object(
                Bucket=path.bucket, Key=path.key, Range=f"bytes={self._at}-", IfMatch=self._tag
            )["Body"]
        return self._stream

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
