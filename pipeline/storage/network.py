"""Addresses, and files at `https://`: timeouts, retries and versions.

Environment variables take precedence over the values here (`GDAL_HTTP_TIMEOUT`,
`GDAL_HTTP_MAX_RETRY`, ...); objects of a cloud follow the same values. Addresses may contain
secrets, so every text that is logged, reported or published goes through `without_secrets`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scenesweep.pipeline.errors import UnreadableScene
from scenesweep.pipeline.storage.host_headers import headers_for

if TYPE_CHECKING:
    import requests
    from urllib3 import Retry

_GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "VSI_CACHE": "TRUE",
    # Otherwise GDAL's cache would return bytes of an older version of a file.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/",
}
_ADDRESS = re.compile(
    r"((?:https?|s3|gs|az)://)(?:[^\s/?#@'\"]*@)?([^\s?#'\"]*)[^\s'\"]*", re.IGNORECASE
)
_QUERY = re.compile(r"\?[^\s'\"=]+=[^\s'\"]*")
_LOGS = (
    *("rasterio._env", "rasterio._err", "rasterio._io", "rasterio._base"),
    *("urllib3.connectionpool", "urllib3.util.retry"),
)
_UNSUPPORTED = (
    *("abfs", "abfss", "adl", "wasb", "wasbs"),
    *("oss", "swift", "hdfs", "webhdfs", "ftp", "ftps", "sftp"),
)
_OTHER_NAMES = {"gcs": "gs", "azure": "az", "s3a": "s3", "s3n": "s3"}
_OBJECTS = ("s3", "gs", "az")
_RETRIED_STATUS = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a remote file.

    `tag` is its ETag, or the time of its last change, or empty. If it is empty, only `size`, in
    bytes, distinguishes versions.
    """

    tag: str
    size: int


def unsupported(href: str) -> str:
    """Return why an address is not supported; '' if it is supported, or is a local path."""
    scheme = href.partition("://")[0].lower()
    name = without_secrets(href)
    if scheme in _OTHER_NAMES:
        return f"{name}: write {_OTHER_NAMES[scheme]}:// instead of {scheme}://"
    if scheme not in _UNSUPPORTED:
        return ""
    return f"{name}: {scheme}:// is not supported, see docs/inputs.md; copy the file first"


def is_remote(href: str) -> bool:
    """Say whether the address of a file is remote."""
    return is_object(href) or href.lower().startswith(("https://", "http://"))


def is_object(href: str) -> bool:
    """Say whether an address is an object of a cloud, or a prefix of objects."""
    return cloud_of(href) != ""


def cloud_of(href: str) -> str:
    """Return the scheme of an address in a cloud: s3, gs or az; '' for everything else."""
    scheme, separator, _ = href.partition("://")
    return scheme.lower() if separator and scheme.lower() in _OBJECTS else ""


def without_secrets(text: str) -> str:
    """Remove user names, passwords and queries, which may be signatures, from all addresses."""
    return _ADDRESS.sub(r"\1\2", text)


def unsigned(text: str) -> str:
    """Remove secrets from text of other libraries, which may show a query without its address."""
    return _QUERY.sub("", without_secrets(text))


def http_options(href: str) -> dict[str, str]:
    """Return GDAL's options for requests to a server: ranges, timeouts and retries."""
    keep_secrets_from_the_log()
    options = {name: value for name, value in _GDAL.items() if name not in os.environ}
    if "?" in href:  # a server refuses HEAD for an address that is signed for GET
        options["CPL_VSIL_CURL_USE_HEAD"] = "NO"
    return options


def http_bytes(href: str) -> bytes:
    """Read a complete file, such as a STAC item.

    Raises:
        UnreadableScene: when it cannot be read.
    """
    with _http_errors(href), _session(href) as session:
        response = session.get(href, timeout=http_timeouts())
        _check_status(href, response)
        return response.content


def http_retries() -> Retry:
    """Return the retries of HTTP requests: the same as GDAL's."""
    from urllib3 import Retry

    return Retry(
        total=int(_option("GDAL_HTTP_MAX_RETRY")),
        backoff_factor=http_pause_s(),
        status_forcelist=_RETRIED_STATUS,
        allowed_methods=None,  # a search of a STAC API is a POST, and changes nothing
        respect_retry_after_header=False,  # a server may ask for an hour
        raise_on_status=False,
    )


def http_timeouts() -> tuple[float, float]:
    """Return the timeouts for a connection and for a response, in seconds."""
    return float(_option("GDAL_HTTP_CONNECTTIMEOUT")), float(_option("GDAL_HTTP_TIMEOUT"))


def http_pause_s() -> float:
    """Return the pause before the first retry, in seconds."""
    return float(_option("GDAL_HTTP_RETRY_DELAY"))


def http_attempts() -> int:
    """Return the number of attempts of a request, the first included."""
    return int(_option("GDAL_HTTP_MAX_RETRY")) + 1


def _session(href: str) -> requests.Session:
    import requests  # slow to import
    from requests.adapters import HTTPAdapter

    headers = headers_for(href)

    class HostSession(requests.Session):
        """Sends the headers of a host to no other host that it redirects to."""

        def rebuild_auth(
            self, prepared_request: requests.PreparedRequest, response: requests.Response
        ) -> None:
            super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
            if urlsplit(prepared_request.url).netloc != urlsplit(href).netloc:
                for name in headers:
                    prepared_request.headers.pop(name, None)

    keep_secrets_from_the_log()
    session = HostSession()
    session.headers.update(headers)
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=http_retries()))
    return session


def http_version(href: str) -> Version:
    """Ask a server for the version of a file.

    Raises:
        UnreadableScene: when the file does not exist, access is denied, the server does not
            answer before the timeout, or it does not support ranges of bytes.
    """
    headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
    with _http_errors(href), _session(href) as session:
        response = session.get(href, headers=headers, stream=True, timeout=http_timeouts())
        response.close()  # do not read the body: the server may send the complete file
    _check_status(href, response)
    length = re.fullmatch(r"bytes 0-0/(\d+)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or length is None:
        raise UnreadableScene(
            f"{without_secrets(href)}: expected a server that answers requests for ranges of "
            "bytes, got one that sends complete files only; download the file first"
        )
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return Version(tag, int(length[1]))


def _check_status(href: str, response: requests.Response) -> None:
    if response.ok:
        return
    why = {
        401: "no access (HTTP 401): expected credentials",
        403: "no access (HTTP 403): credentials are wrong, or a signature has expired",
        404: "no such file (HTTP 404)",
    }.get(response.status_code, f"cannot be read: HTTP {response.status_code} {response.reason}")
    raise UnreadableScene(f"{without_secrets(href)}: {why}")


@contextmanager
def _http_errors(href: str) -> Iterator[None]:
    import requests

    try:
        yield
    except requests.Timeout as error:
        seconds = f"{http_timeouts()[1]:g} s"
        raise UnreadableScene(f"{without_secrets(href)}: no answer within {seconds}") from error
    except requests.RequestException as error:
        if "timed out" in str(error):  # after retries, urllib3 wraps the timeout
            seconds = f"{http_timeouts()[1]:g} s, asked {http_attempts()} times"
            raise UnreadableScene(f"{without_secrets(href)}: no answer within {seconds}") from error
        cause = getattr(error.args[0] if error.args else error, "reason", error)
        reason = " ".join(str(cause).rsplit(": ", 1)[-1].split())
        raise UnreadableScene(
            f"{without_secrets(href)}: no connection: {without_secrets(reason)}"
        ) from error


def _option(name: str) -> str:
    return os.environ.get(name) or _GDAL[name]


class _SecretFilter(logging.Filter):
    """Removes secrets from the log records of GDAL and urllib3."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = unsigned(record.getMessage()), ()
        return True


_SECRET_FILTER = _SecretFilter()


def keep_secrets_from_the_log() -> None:
    """Remove secrets from what GDAL and urllib3 log."""
    for name in _LOGS:
        logging.getLogger(name).addFilter(_SECRET_FILTER)  # logging adds one filter only once
