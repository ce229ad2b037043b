"""Scenes behind https:// and s3://: ranges only, versions, faults, and no secret said."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.shutil import copy
from rasterio.windows import Window

from scenesweep.model.boxes import DetectorOutput
from scenesweep.pipeline.errors import UnreadableScene
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.raster.chips import read_shard
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.pixels import open_scene
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.storage.network import without_secrets
from scenesweep.pipeline.storage.remote import (
    gdal_options,
    gdal_path,
    list_objects,
    read_bytes,
    version_of,
)
from tests.chips import mosaic, noise
from tests.pipeline.raster.test_assemble import cut, refs
from tests.pipeline.raster.test_ground import sparse
from tests.rasters import SquareDetector, make_job, paint_squares, ref_of, write_raster
from tests.servers import FileServer, files_served, s3_served
from tests.sweeps import boxes_of, ordered, published, sweep

SECRET = "sig=TOPSECRET&expires=1"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "2")
    (tmp_path / "www").mkdir()
    with files_served(tmp_path / "www") as server:
        yield server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_served() as endpoint:
        for name, value in {
            "AWS_S3_ENDPOINT": endpoint,
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_HTTPS": "NO",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "TOPSECRET",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        yield f"http://{endpoint}"


def put(endpoint: str, key: str, body: bytes) -> None:
    import boto3

    s3 = boto3.client("s3", endpoint_url=endpoint)
    s3.create_bucket(Bucket="scenes")
    s3.put_object(Bucket="scenes", Key=key, Body=body)


def write_cog(path: Path, size: int = 1024) -> Path:
    """Write a COG of noise, which does not compress."""
    noise = np.random.default_rng(0).integers(0, 255, (1, size, size), dtype=np.uint8)
    raw = write_raster(path.with_suffix(".raw"), noise)
    copy(raw, path, driver="COG", blocksize=256, overviews="NONE")
    raw.unlink()
    return path


def test_only_the_bytes_of_a_window_are_read(server: FileServer) -> None:
    size = write_cog(server.root / "s.tif", 4096).stat().st_size
    plan = plan_scene(ref_of(f"{server.url}/s.tif"), make_job(server.root, "tiling.shard=1"))
    server.forget()
    read_shard(plan.source, plan.layout.shard(int(plan.layout.numbers[2000])))
    assert 0 < server.bytes_sent < size / 20
    assert all(wanted for command, _, wanted in server.requests if command == "GET")


def heads(server: FileServer) -> int:
    """Return how often the length of a file was asked for, which each opening does."""
    return sum(command == "HEAD" for command, _, _ in server.requests)


def test_a_remote_file_stays_open_for_the_next_shard(server: FileServer) -> None:
    write_cog(server.root / "s.tif", 1024)
    plan = plan_scene(ref_of(f"{server.url}/s.tif"), make_job(server.root, "tiling.shard=4"))
    server.forget()
    shards = [plan.layout.shard(number) for number in plan.layout.numbers]
    assert len(shards) > 4
    first = [read_shard(plan.source, shard) for shard in shards]
    assert heads(server) <= 2
    server.forget()
    again = [read_shard(plan.source, shard) for shard in shards]
    assert server.requests == []  # GDAL still has all decoded blocks
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_the_bands_of_a_remote_scene_stay_open(server: FileServer) -> None:
    hrefs = []
    for name in ("red", "nir"):
        write_cog(server.root / f"{name}.tif", 512)
        hrefs.append(f"{server.url}/{name}.tif")
    plan = plan_scene(SceneRef(refs(*hrefs), "both"), make_job(server.root))
    server.forget()
    for number in plan.layout.numbers[:6]:
        read_shard(plan.source, plan.layout.shard(number))
    assert heads(server) <= 2 * len(hrefs)


def test_a_read_asks_for_several_ranges_at_once(server: FileServer) -> None:
    write_cog(server.root / "s.tif", 2048)
    plan = plan_scene(ref_of(f"{server.url}/s.tif"), make_job(server.root, "tiling.shard=16"))
    server.delay_s, server.most_at_once = 0.1, 0
    read_shard(plan.source, plan.layout.shard(0))
    assert server.most_at_once >= 3


def test_a_file_that_changes_while_it_is_read_is_not_published(
    tmp_path: Path, server: FileServer
) -> None:
    pixels, _ = paint_squares(300, 200, largest=10, seed=1)
    changed, truth = paint_squares(300, 200, largest=10, seed=2)
    path, job = write_raster(server.root / "s.tif", pixels), make_job(tmp_path / "out")

    class Replacing(SquareDetector):
        def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
            write_raster(path, changed)
            return super().detect(chips)

    (result,) = sweep([f"{server.url}/s.tif"], job, Replacing())
    assert result.status == "failed"
    assert result.reason == (
        f"{server.url}/s.tif: it changed on its server while it was read, so nothing is "
        "published; rerun the same command"
    )
    (again,) = sweep([f"{server.url}/s.tif"], job)
    assert (again.status, again.resumed_shards) == ("done", 0)
    np.testing.assert_allclose(ordered(boxes_of(published(again))), ordered(truth), atol=0.01)


def test_unwritten_blocks_of_a_remote_file_are_not_ground(server: FileServer) -> None:
    pixels = np.full((1, 128, 128), 7, np.uint8)
    sparse(server.root / "s.tif", pixels, [Window(0, 0, 64, 128)])
    scene = inspect(f"{server.url}/s.tif")
    assert "2 of 4 blocks are not in the file: nothing is looked at there" in scene.warnings[0]
    with open_scene(scene) as opened:
        valid = opened.dataset_mask(window=Window(0, 0, 128, 128)) > 0
    assert (valid == (np.arange(128) < 64)).all()


def test_a_scene_over_http_is_swept_as_one_on_disk(tmp_path: Path, server: FileServer) -> None:
    pixels, truth = paint_squares(300, 200, largest=10, seed=1)
    write_raster(server.root / "s.tif", pixels)
    (result,) = sweep([f"{server.url}/s.tif"], make_job(tmp_path / "out"))
    assert (result.status, result.warnings) == ("done", ())
    np.testing.assert_allclose(ordered(boxes_of(published(result))), ordered(truth), atol=0.01)


def test_files_of_one_scene_may_be_here_and_there(server: FileServer) -> None:
    pixels = noise(1, 60, 100)
    here = cut(server.root / "west.tif", pixels, (0, 0, 50, 60))
    cut(server.root / "east.tif", pixels, (50, 0, 100, 60))
    for files in ((here, f"{server.url}/east.tif"), (f"{server.url}/east.tif", here)):
        plan = plan_scene(SceneRef(refs(*files), "both", "mosaic"), make_job(server.root))
        np.testing.assert_array_equal(mosaic(plan), pixels)


def test_a_changed_remote_file_is_redone_and_an_equal_one_is_not(
    tmp_path: Path, server: FileServer
) -> None:
    pixels, _ = paint_squares(100, 100, largest=10, seed=1)
    path, job = server.root / "s.tif", make_job(tmp_path / "out")
    write_raster(path, pixels)
    whole = path.read_bytes()
    (first,) = sweep([f"{server.url}/s.tif"], job)
    path.write_bytes(whole)
    (same,) = sweep([f"{server.url}/s.tif"], job)
    write_raster(path, np.ones_like(pixels))
    assert path.stat().st_size == len(whole)
    (changed,) = sweep([f"{server.url}/s.tif"], job)
    assert (first.status, same.status, changed.status) == ("done", "up-to-date", "done")
    assert (first.detections > 0, changed.detections) == (True, 0)


def test_a_server_without_versions_gets_a_warning(tmp_path: Path, server: FileServer) -> None:
    write_raster(server.root / "s.tif", np.ones((1, 80, 80), np.uint8))
    server.tagless = True
    results = [sweep([f"{server.url}/s.tif"], make_job(tmp_path / "out"))[0] for _ in range(2)]
    assert [result.status for result in results] == ["done", "up-to-date"]
    for result in results:
        assert "s.tif: its server gives neither ETag nor Last-Modified" in result.warnings[0]


def test_a_server_that_fails_for_a_moment_is_asked_again(server: FileServer) -> None:
    write_raster(server.root / "s.tif", np.ones((1, 80, 80), np.uint8))
    server.failures = 2
    assert inspect(f"{server.url}/s.tif").width == 80
    server.failures = 99
    with pytest.raises(UnreadableScene, match=r"s\.tif: cannot be read: HTTP 503"):
        inspect(f"{server.url}/s.tif")


def test_a_server_that_hangs_fails_its_scene_alone(tmp_path: Path, server: FileServer) -> None:
    write_raster(server.root / "good.tif", np.ones((1, 80, 80), np.uint8))
    server.hanging = ("/slow.tif",)
    hrefs = [f"{server.url}/{name}.tif" for name in ("slow", "good", "gone")]
    slow, good, gone = sweep(hrefs, make_job(tmp_path / "out"))
    assert (slow.status, good.status, gone.status) == ("failed", "done", "failed")
    assert slow.reason.startswith(f"{server.url}/slow.tif: no answer within 1 s")
    assert gone.reason == f"{server.url}/gone.tif: no such file (HTTP 404)"


def test_a_server_that_hangs_midway_is_named(server: FileServer) -> None:
    write_cog(server.root / "s.tif")
    plan = plan_scene(ref_of(f"{server.url}/s.tif"), make_job(server.root))
    server.hanging = ("/s.tif",)
    with pytest.raises(UnreadableScene, match=rf"^{server.url}/s\.tif: cannot be read: .*time"):
        read_shard(plan.source, plan.layout.shard(0))


def test_whole_files_are_not_downloaded_unasked(server: FileServer) -> None:
    size = write_cog(server.root / "s.tif", 4096).stat().st_size
    server.whole = True
    with pytest.raises(UnreadableScene, match="ranges of bytes"):
        inspect(f"{server.url}/s.tif")
    assert server.bytes_sent < size


def test_no_connection_is_said_in_one_line() -> None:
    with pytest.raises(UnreadableScene) as caught:
        inspect(f"https://127.0.0.1:9/s.tif?{SECRET}")
    assert str(caught.value).startswith("https://127.0.0.1:9/s.tif: no connection")
    assert "SECRET" not in str(caught.value)


def test_no_secret_is_published_reported_or_logged(
    tmp_path: Path, server: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pixels, _ = paint_squares(100, 100, largest=10, seed=1)
    write_raster(server.root / "s.tif", pixels)
    server.signature = SECRET
    address = server.url.replace("http://", "http://me:PASSWORD@")
    job = make_job(tmp_path / "out", "publish.quicklook=true")
    results = sweep([f"{address}/{name}.tif?{SECRET}" for name in ("s", "none")], job)
    results += sweep([f"{address}/s.tif?sig=SECRETLY-EXPIRED"], job)
    assert [result.status for result in results] == ["done", "failed", "failed"]
    assert results[0].href == f"{server.url}/s.tif"
    files = [p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()]
    server.failures = 2
    inspect(f"{address}/s.tif?{SECRET}")
    assert any(record.name.startswith("urllib3") for record in caplog.records)
    said = json.dumps([result.reason for result in results]) + caplog.text
    for text in (*files, said.encode(), repr(results).encode()):
        assert b"SECRET" not in text
        assert b"PASSWORD" not in text


@given(st.text("abc/-", min_size=1), st.text("abcXY=&%", min_size=1))
def test_addresses_are_shown_without_queries(path: str, query: str) -> None:
    for scheme in ("https", "s3", "gs", "az"):
        whole = f"{scheme}://host/{path}"
        assert without_secrets(f"GET {whole}?{query}: 403") == f"GET {whole} 403"
        assert without_secrets(f"'{whole}?{query}' failed") == f"'{whole}' failed"
        assert without_secrets(without_secrets(whole)) == whole
        assert without_secrets(f"{scheme}://user:pa55@host/{path}") == whole
    assert without_secrets(f"/folder/{path}?{query}") == f"/folder/{path}?{query}"


def test_the_environment_wins_over_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gdal_options("scenes/s.tif") == {}
    assert gdal_path("s3://bucket/a/b.tif") == "/vsis3/bucket/a/b.tif"
    assert gdal_path("https://host/a.tif?x=1") == "/vsicurl/https://host/a.tif?x=1"
    assert gdal_options("s3://b/k")["GDAL_HTTP_MAX_RETRY"] == "4"
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "9")
    assert "GDAL_HTTP_MAX_RETRY" not in gdal_options("s3://b/k")
    monkeypatch.delenv("AWS_S3_ENDPOINT", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    options = gdal_options("s3://b/k")
    assert (options["AWS_S3_ENDPOINT"], options["AWS_HTTPS"]) == ("127.0.0.1:9000", "NO")


def test_a_scene_in_a_bucket_that_changes_but_not_in_length_is_redone(
    tmp_path: Path, bucket: str
) -> None:
    pixels, _ = paint_squares(300, 200, largest=10, seed=1)
    before, after = (
        write_raster(tmp_path / "s.tif", painted).read_bytes()
        for painted in (pixels, pixels[:, ::-1])
    )
    assert len(before) == len(after)
    job, found = make_job(tmp_path / "out"), []
    for body in (before, before, after):
        put(bucket, "night/s.tif", body)
        (result,) = sweep(["s3://scenes/night/s.tif"], job)
        found.append((result.status, result.warnings))
    assert found == [("done", ()), ("up-to-date", ()), ("done", ())]


def test_scenes_in_a_bucket(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, truth = paint_squares(300, 200, largest=10, seed=1)
    put(bucket, "night/s.tif", write_raster(tmp_path / "s.tif", pixels).read_bytes())
    job = make_job(tmp_path / "out")
    asked = ["s3://scenes/night/s.tif", "s3://scenes/night/none.tif", "s3://nobucket/a.tif"]

    def run() -> list[SceneResult]:
        return sweep(asked, job)

    done, missing, elsewhere = run()
    assert (done.status, missing.status, elsewhere.status) == ("done", "failed", "failed")
    np.testing.assert_allclose(ordered(boxes_of(published(done))), ordered(truth), atol=0.01)
    assert missing.reason == "s3://scenes/night/none.tif: no such object"
    assert elsewhere.reason == "s3://nobucket/a.tif: no such bucket"
    assert run()[0].status == "up-to-date"
    put(bucket, "night/s.tif", write_raster(tmp_path / "s.tif", pixels * 0).read_bytes())
    emptied = run()[0]
    assert (emptied.status, emptied.detections) == ("done", 0)
    assert list_objects("s3://scenes/night/") == asked[:1]
    with pytest.raises(UnreadableScene, match=r"no such object; a prefix, .* ends with a slash"):
        version_of("s3://scenes/night")
    with pytest.raises(UnreadableScene, match=r"s3://nobucket/x/: no such bucket$"):
        list_objects("s3://nobucket/x/")
    monkeypatch.delenv("AWS_S3_ENDPOINT")
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket)
    assert inspect(asked[0]).width == 300
    assert version_of(asked[0]).size == len(read_bytes(asked[0]))
