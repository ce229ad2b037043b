"""A bucket on the loopback to write to, and what lies in it."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from tempfile import mkdtemp
from typing import Any

import pytest

from scenesweep.pipeline.storage.location import Location, location_of, name_in, sizes_under
from scenesweep.pipeline.storage.objects import ObjectLocation
from tests.azurite import ACCOUNT, KEY, azurite, make_container
from tests.google_store import google_served
from tests.servers import s3_served

BUCKET = "results"


def s3_client() -> Any:
    """Return boto3's client of the S3 in the environment: another program than ours."""
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


SCHEMES = ("s3", "gs", "az")
SLOWLY = ["s3", *(pytest.param(scheme, marks=pytest.mark.cloud) for scheme in ("gs", "az"))]
"""For tests that are too slow to run on each cloud every time."""
_REQUESTS = {
    "GDAL_HTTP_TIMEOUT": "10",
    "GDAL_HTTP_CONNECTTIMEOUT": "1",
    "GDAL_HTTP_MAX_RETRY": "1",
    "GDAL_HTTP_RETRY_DELAY": "0.1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_NONE_OF = ("AWS_", "AZURE_", "GOOGLE_", "GS_", "STORAGE_EMULATOR_HOST", "CPL_GS_ENDPOINT")


@contextmanager
def bucket_served(
    monkeypatch: pytest.MonkeyPatch, scheme: str = "s3", *, address: str = "127.0.0.1"
) -> Iterator[ObjectLocation]:
    """Serve a store with one empty bucket, found by the environment; give a prefix in it."""
    for name in [name for name in os.environ if name.startswith(_NONE_OF)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", mkdtemp(prefix="home-"))  # Ray keeps its token there
    servers: dict[str, Callable[[], AbstractContextManager[dict[str, str]]]] = {
        "s3": partial(_s3, address),
        "gs": _google,
        "az": _azure,
    }
    with servers[scheme]() as variables:
        for name, value in (_REQUESTS | variables).items():
            monkeypatch.setenv(name, value)
        bucket = BUCKET
        if scheme == "s3":
            s3_client().create_bucket(Bucket=bucket)
        if scheme == "az":  # one server for all tests
            bucket = f"{BUCKET}-{secrets.token_hex(4)}"
            make_container(azurite(), bucket)
        out = location_of(f"{scheme}://{bucket}/nights/one")
        assert isinstance(out, ObjectLocation)
        yield out


@contextmanager
def _s3(address: str) -> Iterator[dict[str, str]]:
    with s3_served(address) as endpoint:
        yield {
            "AWS_ENDPOINT_URL": f"http://{endpoint}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "TOPSECRET",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }


@contextmanager
def _google() -> Iterator[dict[str, str]]:
    with google_served() as server:
        server.buckets[BUCKET] = {}
        yield {"STORAGE_EMULATOR_HOST": server.url, "GOOGLE_BEARER_TOKEN": server.token}


@contextmanager
def _azure() -> Iterator[dict[str, str]]:
    yield {
        "AZURE_STORAGE_ACCOUNT": ACCOUNT,
        "AZURE_STORAGE_KEY": KEY,
        "AZURE_STORAGE_ENDPOINT": azurite(),
    }


def in_environment(environment: dict[str, str], act: Callable[..., None], *more: Any) -> None:
    """Do something with this environment: a process of a fork server has that of its server."""
    os.environ.update(environment)
    act(*more)


def of_store() -> dict[str, str]:
    """Return what of the environment names the store."""
    names = (*_NONE_OF, "GDAL_", "HOME")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def contents(out: Location) -> dict[str, str]:
    """Hash all published files by their path under OUT: of a folder, of a prefix."""
    names = {name_in(out, path): path for path, _ in sizes_under(out)}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(names.items())
        if name.split("/")[0] not in (".work", "runs")
    }


def versions(out: ObjectLocation) -> dict[str, float]:
    """Return when each object was put."""
    return {str(path): facts.st_mtime for path, facts in out.objects()}
