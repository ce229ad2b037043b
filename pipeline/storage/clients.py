"""Clients of object stores, and their errors in one line.

A client is an object of obstore (the Rust library object_store). It retries requests, and signs
them with the credentials of the environment: `cloud_settings`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scenesweep.pipeline.errors import OutputError
from scenesweep.pipeline.storage.aws_profile import profile_changed
from scenesweep.pipeline.storage.cloud_settings import CLOUDS, NO_CREDENTIALS
from scenesweep.pipeline.storage.network import (
    http_attempts,
    http_pause_s,
    http_timeouts,
    unsigned,
    without_secrets,
)

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    ObjectStore = S3Store | GCSStore | AzureStore

T = TypeVar("T")

_RESTARTS_S = 15.0  # the longest pause of obstore between two attempts
_CONFIGURING = ("AWS_", "AZURE_", "GOOGLE_", "GS_", "GCE_", "CPL_", "STORAGE_", "GDAL_HTTP", "HOME")
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|specified (bucket|container) does not")
_DENIED = re.compile(r"40[13] |AccessDenied|AuthorizationFailure|AuthenticationFailed")
_STATUS = re.compile(r"non-2xx status code: (\d+ [A-Z][A-Za-z ]*)")
_XML = re.compile(r"<Code>(\w+)</Code>\s*<Message>([^<\n]*)")
_BUSY = re.compile(r"(429|503) ")
_TOKEN = re.compile(r"169\.254\.|/latest/api/token|computeMetadata|token request|oauth2|/identity/")


class Stored(Protocol):
    """What names an object or a prefix of a store."""

    @property
    def scheme(self) -> str: ...

    @property
    def bucket(self) -> str: ...


class Outdated(Exception):
    """Another process replaced or deleted the version of an object that a request named."""


def ask(
    path: Stored,
    act: Callable[[Any, ObjectStore], T],
    *,
    patience: int = 1,
) -> T:
    """Send a request, and turn its errors into ours.

    Raises:
        FileNotFoundError: when the object does not exist.
        Outdated: when a condition does not hold.
        OutputError: for every other error.
    """
    with store_errors(path, path.scheme):
        import obstore

        store = client(path.scheme, path.bucket, patience=patience)
        return _interruptible(lambda: act(obstore, store))


def _interruptible(act: Callable[[], T]) -> T:
    """Run a call so that a signal can interrupt it: obstore waits without looking at signals."""
    if threading.current_thread() is not threading.main_thread():
        return act()
    answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((act(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    value, error = answers.get()
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def client(scheme: str, bucket: str, *, patience: int = 1) -> ObjectStore:
    """Return this process's client of a bucket, for the current variables and profiles.

    `patience` multiplies the time that a response may take, for a large upload.

    Raises:
        OutputError: when there are no credentials.
    """
    found = {name: value for name, value in os.environ.items() if name.startswith(_CONFIGURING)}
    changed = profile_changed() if scheme == "s3" else ()
    return _client(scheme, bucket, patience, (*sorted(found.items()), *changed))


@lru_cache(maxsize=32)
def _client(
    scheme: str, bucket: str, patience: int, _configuration: tuple[object, ...]
) -> ObjectStore:
    from obstore import store as kinds

    cloud = CLOUDS[scheme]
    if not cloud.has_credentials():
        raise OutputError(NO_CREDENTIALS[scheme])
    kind: Any = {"s3": kinds.S3Store, "gs": kinds.GCSStore, "az": kinds.AzureStore}[scheme]
    connect, read = http_timeouts()
    answer = timedelta(seconds=read * patience)
    attempts = http_attempts()
    config = cloud.for_obstore(bucket)
    options = {
        "allow_http": "true",
        "connect_timeout": timedelta(seconds=connect),
        "read_timeout": answer,
        "timeout": answer * 60,
        **config.pop("client_options", {}),
    }
    retries = {
        "max_retries": attempts - 1,
        "backoff": {
            "init_backoff": timedelta(seconds=http_pause_s()),
            "max_backoff": timedelta(seconds=_RESTARTS_S),
            "base": 2,
        },
        "retry_timeout": attempts * (answer + timedelta(seconds=connect + _RESTARTS_S)),
    }
    return kind(
        bucket,
        config=config.pop("config"),
        client_options=options,
        retry_config=retries,
        **config,
    )


@contextmanager
def store_errors(path: object, scheme: str) -> Iterator[None]:
    """Turn what obstore raises into FileNotFoundError, Outdated or OutputError of one line."""
    from obstore import exceptions as store

    try:
        yield
    except FileNotFoundError as error:
        if _NO_BUCKET.search(str(error)):
            raise OutputError(f"{path}: no such {CLOUDS[scheme].bucket}") from error
        raise FileNotFoundError(f"{path}: no such object") from error
    except (store.AlreadyExistsError, store.PreconditionError) as error:
        raise Outdated(str(path)) from error
    except OutputError as error:
        raise OutputError(f"{path}: {error}") from error
    except (store.BaseError, ValueError) as error:
        raise OutputError(f"{path}: {_why(str(error), scheme)}") from error


def _why(text: str, scheme: str) -> str:
    """Return the cause in the text of obstore's error, in one line without secrets."""
    first, _, details = text.partition("\n\nDebug source")
    found, named = _STATUS.search(first), _XML.search(first)
    status = f"HTTP {found[1].strip()}" if found else ""
    reason = f"{status} {named[1]}: {named[2]}".strip() if named else status
    if _NO_BUCKET.search(first):
        return f"no such {CLOUDS[scheme].bucket}"
    if _TOKEN.search(first):
        return NO_CREDENTIALS[scheme]
    if "redirect without LOCATION" in text:
        return "the bucket is in another region: set AWS_REGION to the region of the bucket"
    if found and _DENIED.search(first):
        return f"no access: credentials are wrong, or do not allow it: {reason}"
    if found and _BUSY.match(found[1]):
        return f"the store is busy: {reason}, asked {http_attempts()} times"
    if "Timeout" in details or "TimedOut" in details:
        seconds = f"{http_timeouts()[1]:g} s, asked {http_attempts()} times"
        return f"no connection to the store: no answer within {seconds}"
    if "kind: Connect" in details:
        at = re.search(r"https?://[^/\s]+", first)
        where = without_secrets(at[0]) if at else "it"
        return f"no connection to the store: cannot connect to {where}"
    line = unsigned(" ".join(first.split()))
    return f"the store cannot be used: {reason or line}"
