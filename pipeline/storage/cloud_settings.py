"""The environment variables of Amazon S3, Google Cloud Storage and Azure.

Each cloud has tools with variables of their own, and GDAL has others. Here both become one
configuration: for obstore, which lists, reads and writes objects, and for GDAL, which reads
scenes. docs/inputs.md lists the variables.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scenesweep.pipeline.errors import OutputError
from scenesweep.pipeline.storage.aws_profile import profile_keys, profile_value

_FALSE = ("", "NO", "FALSE", "OFF", "0")
_METADATA = ("169.254.169.254", 80)
_METADATA_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Cloud:
    """What is fixed for one kind of store.

    `gdal` is the prefix of GDAL's paths, `bucket` what its users call a bucket.
    `headers` are headers of GDAL's requests to this cloud, and to no other server; '' if none.
    `by_generation` tells that a version is named by a number instead of an ETag.
    """

    gdal: str
    bucket: str
    lacking: str
    endpoint: Callable[[str], str]
    for_obstore: Callable[[str], dict[str, Any]]
    for_gdal: Callable[[], dict[str, str]]
    has_credentials: Callable[[], bool]
    headers: Callable[[], str] = lambda: ""
    by_generation: bool = False


def _is_set(*names: str) -> bool:
    """Say whether one of these variables is set to something like yes."""
    return any(os.environ.get(name, "").upper() not in _FALSE for name in names)


def _first(*names: str) -> str:
    """Return the value of the first of these variables that has one."""
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _checked(address: str, variable: str) -> str:
    """Return the address of a server.

    Raises:
        OutputError: when it is none.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        plain = address.partition("?")[0].rpartition("@")[2]  # without a signature or password
        raise OutputError(f"{variable}: expected http://HOST or https://HOST, got {plain!r}")
    return address


def _on_a_machine_of_a_cloud() -> bool:
    """Say whether the service answers that gives a cloud's machines their credentials."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").upper() not in _FALSE:
        return False
    try:
        with socket.create_connection(_METADATA, _METADATA_TIMEOUT_S):
            return True
    except OSError:
        return False


# Amazon S3


def _s3_endpoint(_bucket: str = "") -> str:
    """Return the endpoint in the variables of GDAL and of AWS; Amazon's own by default."""
    host = os.environ.get("AWS_S3_ENDPOINT")
    if host:
        secure = os.environ.get("AWS_HTTPS", "YES").upper() not in _FALSE
        return f"{'https' if secure else 'http'}://{host}"
    given = _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    given = given or profile_value("endpoint_url")
    return _checked(given, "AWS_ENDPOINT_URL") if given else ""


def _s3_address(bucket: str) -> str:
    return _s3_endpoint() or f"https://s3.{_s3_region(bucket)}.amazonaws.com"


@lru_cache(maxsize=256)
def _region_of(bucket: str) -> str:
    """Ask Amazon for the region of a bucket; only pyarrow has this request."""
    from pyarrow.fs import resolve_s3_region

    try:
        return str(resolve_s3_region(bucket))
    except OSError:
        return ""


def _s3_region(bucket: str) -> str:
    region = _first("AWS_REGION", "AWS_DEFAULT_REGION") or profile_value("region")
    if not region and not _s3_endpoint():
        region = _region_of(bucket)
    return region or "us-east-1"


def _s3_unsigned() -> bool:
    return _is_set("AWS_NO_SIGN_REQUEST")


_S3_OTHER_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Any of these comes before a profile."""


def _s3_for_obstore(bucket: str) -> dict[str, Any]:
    endpoint = _s3_endpoint()
    config = {"region": _s3_region(bucket)}
    if endpoint:
        parts = urlsplit(endpoint)
        is_number = (parts.hostname or "").replace(".", "").isdigit()
        virtual = _is_set("AWS_VIRTUAL_HOSTING") and not is_number
        at = f"{parts.scheme}://{bucket}.{parts.netloc}" if virtual else endpoint
        config |= {"endpoint": at, "aws_endpoint_url_s3": at}
        config["virtual_hosted_style_request"] = "true" if virtual else "false"
    if _s3_unsigned():
        config["skip_signature"] = "true"
    elif not _first(*_S3_OTHER_KEYS):
        config |= profile_keys()
    return {"config": config}


def _s3_has_credentials() -> bool:
    if _s3_unsigned() or _first(*_S3_OTHER_KEYS) or profile_keys():
        return True
    return _on_a_machine_of_a_cloud()


def _s3_for_gdal() -> dict[str, str]:
    endpoint = _s3_endpoint()
    if not endpoint or "AWS_S3_ENDPOINT" in os.environ:
        return {}
    parts = urlsplit(endpoint)
    return {
        "AWS_S3_ENDPOINT": parts.netloc,
        "AWS_HTTPS": "NO" if parts.scheme == "http" else "YES",
        "AWS_VIRTUAL_HOSTING": os.environ.get("AWS_VIRTUAL_HOSTING", "FALSE"),
    }


# Google Cloud Storage


def _gs_endpoint(_bucket: str = "") -> str:
    given = _first("CPL_GS_ENDPOINT", "GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST")
    address = given if "://" in given or not given else f"http://{given}"
    given = address.rstrip("/") or "https://storage.googleapis.com"
    return _checked(given, "STORAGE_EMULATOR_HOST")


def _gs_unsigned() -> bool:
    return _is_set("GS_NO_SIGN_REQUEST", "GOOGLE_SKIP_SIGNATURE")


def _gs_for_obstore(_bucket: str) -> dict[str, Any]:
    config: dict[str, Any] = {"config": {"base_url": _gs_endpoint()}}
    if _gs_unsigned():
        config["config"]["skip_signature"] = "true"
    if os.environ.get("GS_USER_PROJECT"):
        payer = {"x-goog-user-project": os.environ["GS_USER_PROJECT"]}
        config["client_options"] = {"default_headers": payer}
    return config


def _gs_has_credentials() -> bool:
    named = _first(
        *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_BEARER_TOKEN"),
        *("GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY", "GCE_METADATA_HOST"),
    )
    of_user = Path("~/.config/gcloud/application_default_credentials.json").expanduser()
    return bool(_gs_unsigned() or named or of_user.is_file()) or _on_a_machine_of_a_cloud()


def _gs_for_gdal() -> dict[str, str]:
    options = {"CPL_GS_ENDPOINT": f"{_gs_endpoint()}/"}
    if _gs_unsigned():
        options["GS_NO_SIGN_REQUEST"] = "YES"
    elif os.environ.get("GOOGLE_BEARER_TOKEN"):
        options["GS_NO_SIGN_REQUEST"] = "YES"  # `_gs_headers` has the token
    elif "GOOGLE_APPLICATION_CREDENTIALS" not in os.environ:
        account = _first("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")
        options |= {"GOOGLE_APPLICATION_CREDENTIALS": account} if account else {}
    return options


def _gs_headers() -> str:
    token, payer = os.environ.get("GOOGLE_BEARER_TOKEN"), os.environ.get("GS_USER_PROJECT")
    if _gs_unsigned() or not token:
        return ""
    return f"Authorization: Bearer {token}" + (f",x-goog-user-project: {payer}" if payer else "")


# Azure Blob Storage


def _az_settings() -> dict[str, str]:
    """Return account, key, signature and endpoint: from a connection string, or one by one."""
    pairs = _first("AZURE_STORAGE_CONNECTION_STRING").split(";")
    parts = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    account = parts.get("AccountName") or _first(
        "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"
    )
    suffix = parts.get("EndpointSuffix", "core.windows.net")
    key = _first("AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY")
    given = _first("AZURE_STORAGE_BLOB_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    settings = {
        "account": account,
        "key": parts.get("AccountKey") or key,
        "sas": parts.get("SharedAccessSignature")
        or _first("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
        "endpoint": parts.get("BlobEndpoint") or given,
    }
    endpoint = settings["endpoint"] or f"https://{account}.blob.{suffix}"
    settings["endpoint"] = _checked(endpoint.rstrip("/"), "AZURE_STORAGE_ENDPOINT")
    return settings


def _az_unsigned() -> bool:
    return _is_set("AZURE_NO_SIGN_REQUEST", "AZURE_SKIP_SIGNATURE")


def _az_for_obstore(_bucket: str) -> dict[str, Any]:
    given = _az_settings()
    config = {"account_name": given["account"], "endpoint": given["endpoint"]}
    if _az_unsigned():
        config["skip_signature"] = "true"
    else:
        config |= {"account_key": given["key"]} if given["key"] else {}
        config |= {"sas_key": given["sas"].lstrip("?")} if given["sas"] else {}
    return {"config": config}


def _az_has_credentials() -> bool:
    given = _az_settings()
    by_login = _first("AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "IDENTITY_ENDPOINT")
    if not given["account"]:
        return False
    known = _az_unsigned() or given["key"] or given["sas"] or by_login
    return bool(known) or _on_a_machine_of_a_cloud()


def _az_for_gdal() -> dict[str, str]:
    given = _az_settings()
    options = {"AZURE_STORAGE_ACCOUNT": given["account"]}
    if _first("AZURE_STORAGE_CONNECTION_STRING") and not _az_unsigned():
        return {}
    if not given["endpoint"].endswith(f"{given['account']}.blob.core.windows.net"):
        options["CPL_AZURE_ENDPOINT"] = given["endpoint"]
    if _az_unsigned():
        return options | {"AZURE_NO_SIGN_REQUEST": "YES"}
    options |= {"AZURE_STORAGE_ACCESS_KEY": given["key"]} if given["key"] else {}
    return options | ({"AZURE_STORAGE_SAS_TOKEN": given["sas"]} if given["sas"] else {})


_LACKING = "no access: expected credentials ({}), found none"
NO_CREDENTIALS: Mapping[str, str] = {
    "s3": _LACKING.format("AWS_*, a profile or a role; AWS_NO_SIGN_REQUEST=YES for an open bucket"),
    "gs": _LACKING.format(
        "GOOGLE_APPLICATION_CREDENTIALS, a login or the machine's account; "
        "GS_NO_SIGN_REQUEST=YES for an open bucket"
    ),
    "az": _LACKING.format(
        "AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or an identity; "
        "AZURE_NO_SIGN_REQUEST=YES for an open container"
    ),
}
"""The same text for every scene of a cloud, so that a run can report it once."""

CLOUDS: Mapping[str, Cloud] = {
    "s3": Cloud(
        gdal="/vsis3/",
        bucket="bucket",
        lacking="AWS_NO_SIGN_REQUEST configuration option",
        endpoint=_s3_address,
        for_obstore=_s3_for_obstore,
        for_gdal=_s3_for_gdal,
        has_credentials=_s3_has_credentials,
    ),
    "gs": Cloud(
        gdal="/vsigs/",
        bucket="bucket",
        lacking="GS_NO_SIGN_REQUEST configuration option",
        endpoint=_gs_endpoint,
        for_obstore=_gs_for_obstore,
        for_gdal=_gs_for_gdal,
        has_credentials=_gs_has_credentials,
        headers=_gs_headers,
        by_generation=True,
    ),
    "az": Cloud(
        gdal="/vsiaz/",
        bucket="container",
        lacking="AZURE_NO_SIGN_REQUEST configuration option",
        endpoint=lambda _bucket: _az_settings()["endpoint"],
        for_obstore=_az_for_obstore,
        for_gdal=_az_for_gdal,
        has_credentials=_az_has_credentials,
    ),
}
