"""Objects on S3 under the names that `pathlib` has for files.

Nothing is kept on disk: each read asks the store. What is not there is a FileNotFoundError, as of
a file; whatever else is amiss with the store is an OutputError of one line. Credentials, profiles,
roles and endpoints are those that boto3 finds; `AWS_S3_ENDPOINT`, `AWS_NO_SIGN_REQUEST` and the
time limits are those of the inputs (`pipeline.storage.network`).
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
    """An object is no longer the version that a request was for."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a store says of an object: bytes, and when it was put, in seconds since 1970."""

    st_size: int
    st_mtime: float

    @property
    def st_mtime_ns(self) -> int:
        return int(self.st_mtime * 1e9)


@dataclass(frozen=True, slots=True)
class Version:
    """An object's content, the tag that names this version of it, and how old it is in seconds."""

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
        """Say whether there is anything under this prefix."""
        return next(self.objects(), None) is not None

    def stat(self) -> Facts:
        head = self._head()
        if head is None:
            raise FileNotFoundError(f"{self}: no such object")
        return Facts(head["ContentLength"], head["LastModified"].timestamp())

    def open(self, _mode: Literal["rb"]) -> io.BufferedReader:
        """Open an object to read; what is skipped is not asked for."""
        return io.BufferedReader(_Reader(self), 1 << 16)

    def read_bytes(self) -> bytes:
        def read() -> bytes:
            said = client().get_object(Bucket=self.bucket, Key=self.key)
            with closing(said["Body"]) as body:
                return body.read()

        with store_errors(self):
            return _tried_again(read)

    def read_text(self, encoding: str) -> str:
        return self.read_bytes().decode(encoding)

    def iterdir(self) -> Iterator[S3Location]:
        return (place for place, _ in self._listed("", deep=False))

    def glob(self, pattern: str) -> Iterator[S3Location]:
        """Give what a pattern names, in which `*` is anything but a slash.

        A folder is only found by a `*` in the last part of it.
        """
        start = pattern.partition("*")[0]
        wanted = re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))
        for place, _ in self._listed(start, deep="/" in pattern[len(start) :]):
            if wanted.fullmatch(str(place.path.relative_to(self.path))):
                yield place

    def objects(self) -> Iterator[tuple[S3Location, Facts]]:
        """Give all objects under this prefix, however deep."""
        return ((place, facts) for place, facts in self._listed("", deep=True) if facts)

    def put_digest(self) -> str | None:
        """Return the SHA-256 that was put with an object, without reading it.

        None where it was put by another program.

        Raises:
            FileNotFoundError: when it is not there.
        """
        head = self._head()
        if head is None:
            raise FileNotFoundError(f"{self}: no such object")
        return head["Metadata"].get(_DIGEST)

    def _head(self) -> Any:
        with suppress(FileNotFoundError), store_errors(self):
            return client().head_object(Bucket=self.bucket, Key=self.key)
        return None

    def _listed(self, start: str, *, deep: bool) -> Iterator[tuple[S3Location, Facts | None]]:
        """Give objects whose name under this prefix begins so; folders as well if not `deep`."""
        prefix = f"{self.key}/{start}" if self.key else start
        with store_errors(self):
            pages = client().get_paginator("list_objects_v2")
            for page in pages.paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter="" if deep else "/"
            ):
                for folder in page.get("CommonPrefixes", ()):
                    yield self._there(folder["Prefix"]), None
                for one in page.get("Contents", ()):
                    if not one["Key"].endswith("/"):  # an empty object that stands for a folder
                        facts = Facts(one["Size"], one["LastModified"].timestamp())
                        yield self._there(one["Key"]), facts

    def _there(self, key: str) -> S3Location:
        return S3Location(PurePosixPath("/", self.bucket, key))


def put(file: Path, to: S3Location) -> None:
    """Put a whole file as one object, with its SHA-256: it is there whole, or not at all.

    Raises:
        OutputError: when the store does not take it.
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


def fetch(place: S3Location, to: Path) -> None:
    """Copy an object to a file.

    Raises:
        FileNotFoundError: when it is not there.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with store_errors(place):
        client().download_file(place.bucket, place.key, str(to))


def delete(places: Collection[S3Location]) -> None:
    """Delete objects of one bucket; those that are not there are no error."""
    left = sorted(places)
    while left:
        now, left = left[:_AT_ONCE], left[_AT_ONCE:]
        with store_errors(now[0]):
            said = client().delete_objects(
                Bucket=now[0].bucket,
                Delete={"Objects": [{"Key": place.key} for place in now], "Quiet": True},
            )
        for error in said.get("Errors", ()):
            where = f"s3://{now[0].bucket}/{error.get('Key')}"
            raise OutputError(f"{where}: cannot be deleted: {error.get('Message')}")


def read_version(place: S3Location) -> Version | None:
    """Read an object, and how long ago it was put by the store's own clock; None without one."""
    with suppress(FileNotFoundError), store_errors(place):
        said = client().get_object(Bucket=place.bucket, Key=place.key)
        now = parsedate_to_datetime(said["ResponseMetadata"]["HTTPHeaders"]["date"])
        with closing(said["Body"]) as body:
            content = body.read()
        return Version(content, said["ETag"], (now - said["LastModified"]).total_seconds())
    return None


def put_over(place: S3Location, content: bytes, before: Version | None) -> str:
    """Put an object in place of one version, or where there is none; return its tag.

    Raises:
        Outdated: when another was put meanwhile.
    """
    condition: dict[str, Any] = {"IfMatch": before.tag} if before else {"IfNoneMatch": "*"}
    try:
        with store_errors(place):
            said = client().put_object(
                Bucket=place.bucket, Key=place.key, Body=content, **condition
            )
    except FileNotFoundError as error:  # that version is gone
        raise Outdated(str(place)) from error
    return said["ETag"]


def client() -> S3Client:
    """Return the one client of this process for the environment as it is."""
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
def store_errors(place: S3Location) -> Iterator[None]:
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
            raise FileNotFoundError(f"{place}: no such object") from error
        if code in _OUTDATED:
            raise Outdated(str(place)) from error
        raise OutputError(f"{place}: {_why(cause, code)}") from error


def _why(error: BaseException, code: str) -> str:
    from botocore import exceptions as boto

    said = without_secrets(" ".join(str(error).split()))
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return "no access: expected credentials (AWS_*, a profile or a role), found none"
    if code == "NoSuchBucket":
        return "no such bucket"
    if code and _DENIED.search(code):
        return f"no access: credentials are wrong, or do not allow it: {said}"
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return f"no connection to the store: {said}"
    return f"the store cannot be used: {said}"


def _tried_again(read: Callable[[], bytes], between: Callable[[], None] = lambda: None) -> bytes:
    """Read from a store, again where an answer broke off: boto3 tries requests again, not these."""
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
    """One version of an object as a file: read on from where one is, or asked for from there."""

    def __init__(self, place: S3Location) -> None:
        self._place = place
        self._at = 0
        self._stream: StreamingBody | None = None
        with store_errors(place):
            head = client().head_object(Bucket=place.bucket, Key=place.key)
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
            with store_errors(self._place):
                read = _tried_again(lambda: self._opened().read(len(buffer)), self._drop)
        except (Outdated, FileNotFoundError) as error:
            raise OSError(f"{self._place}: changed while it was read") from error
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)

    def close(self) -> None:
        self._drop()
        super().close()

    def _opened(self) -> StreamingBody:
        if self._stream is None:
            place = self._place
            self._stream = client().get_object(
                Bucket=place.bucket, Key=place.key, Range=f"bytes={self._at}-", IfMatch=self._tag
            )["Body"]
        return self._stream

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
