"""A bucket on the loopback to write to, and what lies in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from scenesweep.pipeline.storage.location import Location, location_of, name_in, sizes_under
from scenesweep.pipeline.storage.objects import S3Location, client
from tests.servers import s3_served

BUCKET = "results"


@contextmanager
def bucket_served(
    monkeypatch: pytest.MonkeyPatch, address: str = "127.0.0.1"
) -> Iterator[S3Location]:
    """Serve an S3 with one empty bucket, found by the environment; give a prefix in it."""
    with s3_served(address) as endpoint:
        for name in ("AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{endpoint}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "TOPSECRET",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "GDAL_HTTP_TIMEOUT": "10",
            "GDAL_HTTP_CONNECTTIMEOUT": "1",
            "GDAL_HTTP_MAX_RETRY": "1",
        }.items():
            monkeypatch.setenv(name, value)
        client().create_bucket(Bucket=BUCKET)
        out = location_of(f"s3://{BUCKET}/nights/one")
        assert isinstance(out, S3Location)
        yield out


def in_environment(environment: dict[str, str], act: Callable[..., None], *more: Any) -> None:
    """Do something with this environment: a process of a fork server has that of its server."""
    os.environ.update(environment)
    act(*more)


def aws() -> dict[str, str]:
    """Return what of the environment names the store."""
    return {name: value for name, value in os.environ.items() if name[:4] in ("AWS_", "GDAL")}


def contents(out: Location) -> dict[str, str]:
    """Hash all published files by their path under OUT: of a folder, of a prefix."""
    names = {name_in(out, path): path for path, _ in sizes_under(out)}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(names.items())
        if name.split("/")[0] not in (".work", "runs")
    }


def versions(out: S3Location) -> dict[str, float]:
    """Return when each object was put."""
    return {str(path): facts.st_mtime for path, facts in out.objects()}
