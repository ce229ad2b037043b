"""Each cloud: scenes and small files read from it, its errors in one line, and no secret shown."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import obstore
import pytest

from scenesweep.jobs import cli
from scenesweep.pipeline.errors import Exit, OutputError, UnreadableScene
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.opening import open_raster
from scenesweep.pipeline.storage import cloud_settings
from scenesweep.pipeline.storage.aws_profile import profile_value
from scenesweep.pipeline.storage.clients import client
from scenesweep.pipeline.storage.cloud_settings import NO_CREDENTIALS
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import list_matching, location_of
from scenesweep.pipeline.storage.objects import ObjectLocation, delete
from scenesweep.pipeline.storage.remote import list_objects, local_file, read_bytes, version_of
from tests.azurite import azurite, make_container
from tests.faults.apart import FORKS
from tests.faults.painted import paint
from tests.google_store import google_served
from tests.proxies import Proxy, proxied
from tests.rasters import SquareDetector, make_job, paint_squares, write_raster
from tests.servers import files_served
from tests.stores import (
    SCHEMES,
    bucket_served,
    contents,
    in_environment,
    of_store,
    s3_client,
)
from tests.sweeps import boxes_of, ordered, published, sweep
from tests.waiting import wait_until

ENDPOINTS = {
    "s3": "AWS_ENDPOINT_URL",
    "gs": "STORAGE_EMULATOR_HOST",
    "az": "AZURE_STORAGE_ENDPOINT",
}
CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gs": ("GOOGLE_BEARER_TOKEN",),
    "az": ("AZURE_STORAGE_KEY",),
}
UNSIGNED = {"s3": "AWS_NO_SIGN_REQUEST", "gs": "GS_NO_SIGN_REQUEST", "az": "AZURE_NO_SIGN_REQUEST"}
SECRETS = ("TOPSECRET", "Eby8vdM02")


@pytest.fixture(params=SCHEMES)
def out(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ObjectLocation]:
    with bucket_served(monkeypatch, request.param) as out:
        yield out


def upload(path: ObjectLocation, content: bytes) -> str:
    """Put an object as another program does, and return its address."""
    obstore.put(client(path.scheme, path.bucket), path.key, content)
    return str(path)


def write(path: ObjectLocation, content: bytes) -> None:
    with atomic_write(path, path.parent) as aside:
        aside.write_bytes(content)


@contextmanager
def through_proxy(scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Let all requests to the store go through a proxy."""
    endpoint = urlsplit(os.environ[ENDPOINTS[scheme]])
    with proxied(f"{endpoint.scheme}://{endpoint.netloc}") as proxy:
        monkeypatch.setenv(ENDPOINTS[scheme], proxy.url + endpoint.path)
        yield proxy


def test_scenes_in_a_bucket_are_swept_and_a_changed_one_again(
    tmp_path: Path, out: ObjectLocation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pixels, truth = paint_squares(300, 200, largest=10, seed=1)
    before, after = (
        write_raster(tmp_path / "s.tif", painted).read_bytes() for painted in (pixels, pixels * 0)
    )
    asked = [upload(out / "s.tif", before), f"{out}/none.tif", f"{out.scheme}://nobucket/a.tif"]
    job = make_job(tmp_path / "out")
    done, missing, elsewhere = sweep(asked, job)
    np.testing.assert_allclose(ordered(boxes_of(published(done))), ordered(truth), atol=0.01)
    kind = "container" if out.scheme == "az" else "bucket"
    assert missing.reason == f"{asked[1]}: no such object"
    assert elsewhere.reason == f"{asked[2]}: no such {kind}"
    assert sweep(asked[:1], job)[0].status == "up-to-date"
    upload(out / "s.tif", after)
    emptied = sweep(asked[:1], job)[0]
    assert (emptied.status, emptied.detections) == ("done", 0)
    assert list_objects(f"{out}/") == asked[:1]
    assert version_of(asked[0]).size == len(read_bytes(asked[0]))
    with pytest.raises(UnreadableScene, match=r"no such object; a prefix, .* ends with a slash"):
        version_of(str(out))
    files = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    for secret in SECRETS:
        assert secret not in caplog.text
        assert secret.encode() not in files


def test_all_that_a_run_reads_may_be_in_a_bucket(
    tmp_path: Path, out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenesweep.pipeline.flow.make_detector", lambda *_, **__: SquareDetector())
    painted = paint(tmp_path, scenes=2, side=150)
    scenes = [upload(out / f"in/{path.name}", path.read_bytes()) for path in painted.scenes]
    upload(out / "in/list.txt", f"{scenes[0]}\n{scenes[1]}\n".encode())
    upload(out / "in/model.safetensors", Path(painted.model).read_bytes())
    ring = [[-180, -80], [180, -80], [180, 84], [-180, 84], [-180, -80]]
    area = {"type": "Polygon", "coordinates": [ring]}
    upload(out / "in/area.geojson", json.dumps(area).encode())
    night = {
        "sources": [f"@{out}/in/list.txt"],
        "model": f"{out}/in/model.safetensors",
        "aoi": f"{out}/in/area.geojson",
        "address": "none",
    }
    upload(out / "in/night.yaml", json.dumps(night).encode())
    folder = tmp_path / "folder"
    for where in (out, folder):
        words = ["detect", "--config", f"{out}/in/night.yaml", "--out", str(where)]
        assert cli.main(words) == Exit.DONE
    there = {k: v for k, v in contents(out).items() if not k.startswith("in/")}
    assert there == contents(folder)
    assert any(name.startswith("detections/") for name in there)
    assert cli.main(["detect", "--config", f"{out}/in/none.yaml", "--out", "x"]) == Exit.USAGE
    assert local_file(f"{out}/in/list.txt").name == "list.txt"
    assert local_file(Path(f"{out}/in/list.txt")).read_bytes() == read_bytes(f"{out}/in/list.txt")


def said_of(path: ObjectLocation) -> str:
    """Return the cause that a write, a read, a listing and a scene all name, in one line."""
    started, texts = time.monotonic(), []
    acts = (
        lambda: write(path, b"x"),
        path.read_bytes,
        lambda: list_matching(path.parent, "*"),
        lambda: delete([path]),
        lambda: version_of(str(path)),
        lambda: inspect(str(path)),
    )
    for act in acts:
        with pytest.raises((OutputError, UnreadableScene)) as error:
            act()
        texts.append(str(error.value))
    assert time.monotonic() - started < 60
    for text in texts:
        assert "\n" not in text
        assert not any(secret in text for secret in SECRETS)
        assert text.startswith((f"{path}: ", f"{path.parent}: "))
    return texts[0]


def test_no_credentials_is_one_line(out: ObjectLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS[out.scheme]:
        monkeypatch.delenv(name)
    assert said_of(out / "f.tif") == f"{out}/f.tif: {NO_CREDENTIALS[out.scheme]}"
    if out.scheme == "s3":  # a machine of a cloud, but without a role
        monkeypatch.setattr(cloud_settings, "_on_a_machine_of_a_cloud", lambda: True)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
        assert said_of(out / "f.tif") == f"{out}/f.tif: {NO_CREDENTIALS[out.scheme]}"


def test_wrong_credentials_are_one_line(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    wrong = {"gs": "TOPSECRET-BUT-OLD", "az": "AAAA" + os.environ.get("AZURE_STORAGE_KEY", "")[4:]}
    if out.scheme == "s3":
        url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        requests.post(url, data=b"0", timeout=10)  # from now on it looks at them
    else:
        monkeypatch.setenv(CREDENTIALS[out.scheme][0], wrong[out.scheme])
    try:
        assert "no access: credentials are wrong, or do not allow it" in said_of(out / "f.tif")
    finally:
        if out.scheme == "s3":
            requests.post(url, data=b"inf", timeout=10)


def test_a_bucket_that_does_not_exist_is_one_line(out: ObjectLocation) -> None:
    kind = "container" if out.scheme == "az" else "bucket"
    there = location_of(f"{out.scheme}://nowhere/f.tif")
    assert isinstance(there, ObjectLocation)
    for act in (lambda: write(there, b"x"), there.read_bytes, lambda: [*there.parent.glob("*")]):
        with pytest.raises(OutputError, match=rf"^{out.scheme}://nowhere.*: no such {kind}$"):
            act()


def test_a_busy_store_is_asked_again(out: ObjectLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    with through_proxy(out.scheme, monkeypatch) as proxy:
        for proxy.status in (503, 429):
            proxy.busy = 1
            write(out / "f.tif", b"x")
            proxy.busy = 1
            assert (out / "f.tif").read_bytes() == b"x"
        proxy.status, proxy.busy = 503, 999
        assert "f.tif: the store is busy: HTTP 503" in said_of(out / "f.tif")
        proxy.busy, proxy.cut = 0, 1
        content = bytes(range(256)) * 1000
        write(out / "large", content)
        assert (out / "large").read_bytes() == content


def test_a_store_that_is_not_there_is_one_line(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(ENDPOINTS[out.scheme], address)
        assert f"no connection to the store: cannot connect to {address}" in said_of(out / "f.tif")
        silent.listen()
        assert "no answer within 1 s, asked 2 times" in said_of(out / "f.tif")


def test_an_endpoint_that_is_none_is_one_line(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINTS[out.scheme], "ftp://host")
    says = f"{ENDPOINTS[out.scheme]}: expected http://HOST or https://HOST, got 'ftp://host'"
    assert said_of(out / "f.tif") == f"{out}/f.tif: {says}"


def test_a_public_bucket_is_read_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: ObjectLocation
) -> None:
    content = write_raster(tmp_path / "s.tif", np.ones((1, 80, 80), np.uint8)).read_bytes()
    if out.scheme == "az":
        name = f"open-{out.bucket}"
        make_container(azurite(), name, public=True)
        out = ObjectLocation("az", out.path.parents[-1] / name)
    if out.scheme == "gs":
        with google_served() as server:
            server.buckets["open"], server.public = {}, {"open"}
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
            out = ObjectLocation("gs", out.path.parents[-1] / "open")
            read_openly(upload(out / "s.tif", content), "gs", monkeypatch)
            return
    href = upload(out / "s.tif", content)
    if out.scheme == "s3":
        s3_client().put_object_acl(Bucket=out.bucket, Key=f"{out.key}/s.tif", ACL="public-read")
        s3_client().put_bucket_acl(Bucket=out.bucket, ACL="public-read")
    read_openly(href, out.scheme, monkeypatch)


def read_openly(href: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS[scheme]:
        monkeypatch.delenv(name)
    with pytest.raises(UnreadableScene, match="no access: expected credentials"):
        inspect(href)
    monkeypatch.setenv(UNSIGNED[scheme], "YES")
    assert inspect(href).width == 80
    assert list_objects(href.rpartition("/")[0] + "/") == [href]


def test_who_asks_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write_raster(tmp_path / "s.tif", np.ones((1, 80, 80), np.uint8)).read_bytes()
    with bucket_served(monkeypatch, "gs") as out, google_served() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        server.buckets[out.bucket] = {}
        href = upload(out / "s.tif", content)
        server.payer = "my-project"
        with pytest.raises(UnreadableScene, match="HTTP 400"):
            inspect(href)
        monkeypatch.setenv("GS_USER_PROJECT", "my-project")
        assert inspect(href).width == 80


def test_a_token_goes_to_its_own_cloud_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_raster(tmp_path / "s.tif", np.ones((1, 80, 80), np.uint8))
    with bucket_served(monkeypatch, "gs") as out, files_served(tmp_path) as other:
        href = upload(out / "s.tif", file.read_bytes())
        with open_raster(href) as dataset, open_raster(f"{other.url}/s.tif") as elsewhere:
            assert dataset.read().any()
            assert elsewhere.read().any()
        assert set(other.tokens) == {None}


@pytest.mark.parametrize("address", ["h/?sig=TOPSECRET", "someone:TOPSECRET@h"])
def test_a_wrong_endpoint_is_named_without_its_secrets(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    with pytest.raises(
        OutputError, match=r"expected http://HOST or https://HOST, got 'h"
    ) as caught:
        client("s3", "bucket")
    assert "TOPSECRET" not in str(caught.value)


def test_keys_of_a_profile_are_read_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "credentials"
    with bucket_served(monkeypatch, "s3"):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
        found: list[object] = []
        for number in range(2):
            keys.write_text(
                f"[default]\naws_access_key_id = k{number}\naws_secret_access_key = s\n"
            )
            os.utime(keys, ns=(number, number))
            found.append(dict(client("s3", "bucket").config)["access_key_id"])
        assert found == ["k0", "k1"]


def test_a_service_account_comes_before_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nrole_arn = arn:aws:iam::1:role/r\n")
    with bucket_served(monkeypatch, "s3"):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        with pytest.raises(OutputError, match="has no keys"):
            client("s3", "bucket")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        assert client("s3", "bucket") is not None


def upload_large(out: ObjectLocation, file: Path) -> None:
    with atomic_write(out / "large", out) as aside:
        file.rename(aside)


def test_a_kill_during_an_upload_leaves_nothing(
    tmp_path: Path, out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(70 << 20))
    with through_proxy(out.scheme, monkeypatch) as proxy:
        proxy.slow = True
        arguments = (of_store(), upload_large, out, tmp_path / "file")
        process = FORKS.Process(target=in_environment, args=arguments)
        process.start()
        wait_until(proxy.uploading.is_set)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        sent = [path for path in proxy.paths if path.split()[0] in ("PUT", "POST")]
        assert len(sent) == 1, "one request, so there are no parts that anybody must delete"
        assert not any(word in sent[0] for word in ("uploads", "partNumber", "comp=block"))
        assert process.exitcode == -signal.SIGKILL
        proxy.slow = False
        assert list(out.objects()) == []


def test_a_profile_gives_keys_or_says_how_to_get_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket_served(monkeypatch, "s3") as out:
        for name in CREDENTIALS["s3"]:
            monkeypatch.delenv(name)
        (tmp_path / "credentials").write_text(
            "[keys]\naws_access_key_id = a\naws_secret_access_key = TOPSECRET\n"
        )
        (tmp_path / "config").write_text(
            "[profile keys]\nregion = eu-west-1\n[profile login]\nsso_session = work\n"
        )
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "keys")
        assert profile_value("region") == "eu-west-1"
        write(out / "file", b"x")
        monkeypatch.setenv("AWS_PROFILE", "login")
        assert "aws configure export-credentials --profile login" in said_of(out / "f.tif")


def test_no_command_imports_obstore_to_show_its_help() -> None:
    program = (
        "import sys; from scenesweep.jobs import cli\n"
        "for words in (['--help'], ['detect', '--help']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit: pass\n"
        "assert 'obstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
