"""Remote files at `https://` and `s3://`: timeouts, retries, credentials and file versions.

GDAL reads only the ranges of bytes that it needs. Environment variables take precedence over the
values here (`GDAL_HTTP_TIMEOUT`, `GDAL_HTTP_MAX_RETRY`, ...). Credentials come from the
environment too: `AWS_*`, `~/.aws`, the machine's role, `.netrc`. Addresses may contain secrets, so
every text that is logged, reported or published goes through `without_secrets`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scenesweep.model.errors import needs_extra
from scenesweep.pipeline.errors import UnreadableScene

if TYPE_CHECKING:
    import requests
    from pyarrow.fs import S3FileSystem
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
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/",
}
_ADDRESS = re.compile(r"((?:https?|s3)://)(?:[^\s/?#@'\"]*@)?([^\s?#'\"]*)[^\s'\"]*", re.IGNORECASE)
_QUERY = re.compile(r"\?[^\s'\"=]+=[^\s'\"]*")
_LOGS = (
    *("rasterio._env", "rasterio._err", "rasterio._io", "rasterio._base"),
    *("urllib3.connectionpool", "urllib3.util.retry"),
)
NO_CREDENTIALS = (
    "no access: expected credentials (AWS_*, a profile or a role; AWS_NO_SIGN_REQUEST=YES for an "
    "open bucket), found none"
)
"""The same text for every scene, so that a run can report it once."""
_UNSUPPORTED = (
    *("gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "wasb", "wasbs"),
    *("oss", "swift", "hdfs", "webhdfs", "ftp", "ftps", "sftp"),
)
_RETRIED_STATUS = (429, 500, 502, 503, 504)
_FALSE = ("NO", "FALSE", "OFF", "0")


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
    if scheme not in _UNSUPPORTED:
        return ""
    name = without_secrets(href)
    return f"{name}: {scheme}:// is not supported, see docs/inputs.md; copy the file first"


def is_remote(href: str) -> bool:
    """Say whether the address of a file is remote."""
    return href.lower().startswith(("https://", "http://", "s3://"))


def without_secrets(text: str) -> str:
    """Remove user names, passwords and queries, which may be signatures, from all addresses."""
    return _ADDRESS.sub(r"\1\2", text)


def unsigned(text: str) -> str:
    """Remove secrets from text of other libraries, which may show a query without its address."""
    return _QUERY.sub("", without_secrets(text))


def gdal_path(href: str) -> str:
    """Return the path by which GDAL opens a file."""
    if not is_remote(href):
        return href
    scheme, _, rest = href.partition("://")
    return f"/vsis3/{rest}" if scheme.lower() == "s3" else f"/vsicurl/{href}"


def gdal_options(href: str) -> dict[str, str]:
    """Return GDAL's options for a remote file; none for a file on disk."""
    if not is_remote(href):
        return {}
    _keep_secrets_from_the_log()
    options = {name: value for name, value in _GDAL.items() if name not in os.environ}
    if "?" in href:  # a server refuses HEAD for an address that is signed for GET
        options["CPL_VSIL_CURL_USE_HEAD"] = "NO"
    endpoint = _endpoint()
    if endpoint and "AWS_S3_ENDPOINT" not in os.environ:
        parts = urlsplit(endpoint)
        options["AWS_S3_ENDPOINT"] = parts.netloc
        options["AWS_HTTPS"] = "NO" if parts.scheme == "http" else "YES"
        options["AWS_VIRTUAL_HOSTING"] = os.environ.get("AWS_VIRTUAL_HOSTING", "FALSE")
    return options


def version_of(href: str) -> Version:
    """Ask the server for the version of a file.

    Raises:
        UnreadableScene: when the file does not exist, access is denied, the server does not
            answer before the timeout, or it does not support ranges of bytes.
    """
    return _s3_version(href) if href.lower().startswith("s3://") else _http_version(href)


def read_bytes(href: str) -> bytes:
    """Read a complete remote file, such as a STAC item.

    Raises:
        UnreadableScene: when it cannot be read.
    """
    if href.lower().startswith("s3://"):
        with _s3_errors(href), s3_files().open_input_stream(_key(href)) as stream:
            return bytes(stream.read())
    with _http_errors(href), _session() as session:
        response = session.get(href, timeout=http_timeouts())
        _check_status(href, response)
        return response.content


def list_bucket(prefix: str) -> list[str]:
    """Return the addresses of all objects under `s3://bucket/prefix/`, sorted.

    Raises:
        UnreadableScene: when the bucket cannot be listed.
    """
    from pyarrow.fs import FileSelector, FileType

    with _s3_errors(prefix):
        listed = s3_files().get_file_info(FileSelector(_key(prefix).rstrip("/"), recursive=True))
    return sorted(f"s3://{info.path}" for info in listed if info.type == FileType.File)


def http_retries() -> Retry:
    """Return the retries of HTTP requests: the same as GDAL's."""
    from urllib3 import Retry

    return Retry(
        total=int(_option("GDAL_HTTP_MAX_RETRY")),
        backoff_factor=float(_option("GDAL_HTTP_RETRY_DELAY")),
        status_forcelist=_RETRIED_STATUS,
        allowed_methods=None,  # a search of a STAC API is a POST, and changes nothing
        respect_retry_after_header=False,  # a server may ask for an hour
        raise_on_status=False,
    )


def http_timeouts() -> tuple[float, float]:
    """Return the timeouts for a connection and for a response, in seconds."""
    return float(_option("GDAL_HTTP_CONNECTTIMEOUT")), float(_option("GDAL_HTTP_TIMEOUT"))


def http_attempts() -> int:
    """Return the number of attempts of a request, the first included."""
    return int(_option("GDAL_HTTP_MAX_RETRY")) + 1


def unsigned_s3() -> bool:
    """Say whether requests to S3 are sent without credentials."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "NO").upper() not in _FALSE


def s3_endpoint() -> str | None:
    """Return the endpoint from GDAL's variables; libraries read AWS's own variables themselves."""
    host = os.environ.get("AWS_S3_ENDPOINT")
    scheme = "http" if os.environ.get("AWS_HTTPS", "YES").upper() in _FALSE else "https"
    return f"{scheme}://{host}" if host else None


def _session() -> requests.Session:
    import requests  # slow to import
    from requests.adapters import HTTPAdapter

    _keep_secrets_from_the_log()
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=http_retries()))
    return session


def s3_files() -> S3FileSystem:
    """Return the S3 file system that the environment configures, as GDAL would use it."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    env = os.environ
    options: dict[str, object] = {}
    if env.get("AWS_S3_ENDPOINT"):
        options["endpoint_override"] = env["AWS_S3_ENDPOINT"]
        options["scheme"] = urlsplit(s3_endpoint() or "").scheme
    elif _endpoint():
        options["endpoint_override"] = _endpoint()
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    if region:
        options["region"] = region
    return S3FileSystem(
        anonymous=unsigned_s3(),
        connect_timeout=http_timeouts()[0],
        request_timeout=http_timeouts()[1],
        retry_strategy=AwsStandardS3RetryStrategy(http_attempts()),
        **options,
    )


def _http_version(href: str) -> Version:
    headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
    with _http_errors(href), _session() as session:
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


def _s3_version(href: str) -> Version:
    with _s3_errors(href), s3_files().open_input_file(_key(href)) as file:
        metadata = file.metadata() or {}
        tag = metadata.get("ETag") or metadata.get("Last-Modified") or b""
        return Version(tag.decode(), int(file.size()))


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


@contextmanager
def _s3_errors(href: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        hint = "; a prefix, for all objects below it, ends with a slash"
        raise UnreadableScene(
            f"{without_secrets(href)}: no such object{'' if Path(_key(href)).suffix else hint}"
        ) from error
    except OSError as error:
        reason = " ".join(str(error).split())
        denied = "ACCESS_DENIED" in reason or "HTTP response code 403" in reason
        if "NO_SUCH_BUCKET" in reason:
            raise UnreadableScene(f"{without_secrets(href)}: no such bucket") from error
        if denied and not unsigned_s3() and not _has_credentials():
            raise UnreadableScene(f"{without_secrets(href)}: {NO_CREDENTIALS}") from error
        why = "no access: credentials are wrong" if denied else "cannot be read"
        raise UnreadableScene(
            f"{without_secrets(href)}: {why}: {without_secrets(reason)}"
        ) from error


def _has_credentials() -> bool:
    """Say whether AWS's tools find any credentials for S3."""
    with needs_extra("s3"):
        import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        return botocore.session.get_session().get_credentials() is not None
    except BotoCoreError:  # a profile that does not exist
        return False


def _key(href: str) -> str:
    return href.partition("://")[2]


def _endpoint() -> str:
    """Return the endpoint in the variables that boto3 reads; empty for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _option(name: str) -> str:
    return os.environ.get(name) or _GDAL[name]


class _SecretFilter(logging.Filter):
    """Removes secrets from the log records of GDAL and urllib3."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = unsigned(record.getMessage()), ()
        return True


_SECRET_FILTER = _SecretFilter()


def _keep_secrets_from_the_log() -> None:
    for name in _LOGS:
        logging.getLogger(name).addFilter(_SECRET_FILTER)  # logging adds one filter only once
