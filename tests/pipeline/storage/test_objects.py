"""Objects answer as files do: names, listings, reads; and every trouble is one line."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scenesweep.pipeline.errors import OutputError, UsageError
from scenesweep.pipeline.storage import objects as store
from scenesweep.pipeline.storage.clients import Outdated
from scenesweep.pipeline.storage.commit import (
    atomic_write,
    atomic_write_group,
    remove,
    remove_folder,
)
from scenesweep.pipeline.storage.location import (
    list_matching,
    location_of,
    name_in,
    parquet,
    sizes_under,
)
from scenesweep.pipeline.storage.objects import (
    ObjectLocation,
    Version,
    age_s,
    put_over,
    read_version,
)
from tests.proxies import proxied
from tests.stores import BUCKET, bucket_served, s3_client


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectLocation]:
    with bucket_served(monkeypatch) as out:
        yield out


def write(path: ObjectLocation | Path, content: bytes) -> None:
    with atomic_write(path, path.parent) as aside:
        aside.write_bytes(content)


def test_a_place_is_a_folder_or_a_prefix() -> None:
    assert location_of("some/out") == Path("some/out")
    for named in ("s3://bucket/a/b", "S3://bucket/a/b/", "s3://bucket//a//b"):
        assert str(location_of(named)) == "s3://bucket/a/b"
    whole = location_of("s3://bucket")
    assert isinstance(whole, ObjectLocation)
    assert (whole.bucket, whole.key, str(whole)) == ("bucket", "", "s3://bucket")
    one = whole / "items" / "scene.v1.json"
    assert (one.bucket, one.key, one.name) == ("bucket", "items/scene.v1.json", "scene.v1.json")
    assert (one.stem, one.suffix, str(one.parent)) == ("scene.v1", ".json", "s3://bucket/items")
    assert name_in(whole, one) == "items/scene.v1.json"
    for wrong in ("gcs://bucket/a", "abfs://x/y", "s3://", "s3://a/../b", "s3:///a"):
        with pytest.raises(UsageError, match="expected a folder, s3://BUCKET/PREFIX, gs://"):
            location_of(wrong)
    with pytest.raises(UsageError, match=r"^s3://bucket: expected") as refused:
        location_of("s3://user:TOPSECRET@bucket")
    assert "TOPSECRET" not in str(refused.value)


def test_listings_are_those_of_a_folder(tmp_path: Path, out: ObjectLocation) -> None:
    names = ["a.json", "a-b.json", "x/date=1/s.parquet", "x/date=2/s.qml", "x/date=2/deep/s.qml"]
    names += [".work/s-1/part-1", ".work/s-2/part-1", ".work/sx"]
    for where in (tmp_path, out):
        for name in names:
            write(where / name, name.encode())
    for pattern in ("*", "*.json", "x/date=*/s.*", "x/date=*/s*", ".work/s-*", ".work/*", "no/*"):
        here, there = ([name_in(w, p) for p in list_matching(w, pattern)] for w in (tmp_path, out))
        assert here == there, pattern
    inside = [{name_in(w, p): n for p, n in sizes_under(w)} for w in (tmp_path, out)]
    assert inside[0] == inside[1]
    assert (out / "x").is_dir()
    assert not (out / "a.json").is_dir()
    assert not (out / "x/date").is_dir()
    remove(out / "a.json")
    remove(out / "a.json")
    remove_folder(out / "x")
    assert [name_in(out, path) for path in list_matching(out, "*")] == [".work", "a-b.json"]


def test_more_objects_than_a_page(out: ObjectLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        write(out / f"many/{number}", b"")
    monkeypatch.setattr(store, "_DELETED_AT_ONCE", 3)
    monkeypatch.setattr(store, "_LISTED_AT_ONCE", 3)
    assert len(list(out.objects())) == 7
    remove_folder(out / "many")
    assert list(out.objects()) == []


def test_an_object_reads_as_a_file(out: ObjectLocation) -> None:
    content = np.random.default_rng(0).bytes(300_000)
    write(out / "file", content)
    assert (out / "file").read_bytes() == content
    assert (out / "file").stat().st_size == len(content)
    with (out / "file").open("rb") as file:
        for at, size in ((0, 10), (299_990, 100), (5, 200_000), (150_000, 1), (300_000, 1)):
            file.seek(at)
            assert file.read(size) == content[at : at + size]
        assert file.seek(-3, io.SEEK_END) == 299_997
        assert file.read() == content[-3:]
    for path in (out / "none", out):
        with pytest.raises(FileNotFoundError):
            path.read_bytes()


def test_of_a_large_table_the_footer_alone_is_read(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"x": np.random.default_rng(0).random(200_000)})
    with atomic_write(out / "t.parquet", out) as aside:
        pq.write_table(table, aside)
    read = []
    reading = store._Reader.readinto

    def counted(reader: store._Reader, buffer: bytearray) -> int:
        read.append(reading(reader, buffer))
        return read[-1]

    monkeypatch.setattr(store._Reader, "readinto", counted)
    assert pq.read_metadata(parquet(out / "t.parquet")).num_rows == 200_000
    assert 0 < sum(read) < 150_000
    assert pq.read_table(parquet(out / "t.parquet")).equals(table)


def test_one_version_is_read(out: ObjectLocation) -> None:
    write(out / "file", bytes(200_000))
    with (out / "file").open("rb") as file:
        assert file.read(1) == b"\0"
        write(out / "file", b"\1" * 200_000)
        file.seek(100_000)
        with pytest.raises(OSError, match="file: changed while it was read"):
            file.read(1)


def test_an_answer_that_breaks_off_is_asked_for_again(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 1000
    write(out / "file", content)
    with proxied(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.cut = 1
        assert (out / "file").read_bytes() == content
        proxy.cut = 1
        with (out / "file").open("rb") as file:
            assert file.read() == content
        monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
        proxy.cut = 99
        with pytest.raises(OutputError, match=r"file: .*"):
            (out / "file").read_bytes()


def test_a_busy_store_is_asked_again(out: ObjectLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxied(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.1")
        for proxy.status in (503, 429):
            proxy.busy = 1
            write(out / "file", b"x")
            proxy.busy = 99
            assert f"the store is busy: HTTP {proxy.status}" in said_of(out)
            proxy.busy = 0


def test_a_large_file_is_one_object(
    tmp_path: Path, out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SINGLE_PUT", 6 << 20)
    content = np.random.default_rng(0).bytes(17 << 20)
    write(out / "large", content)
    assert (out / "large").read_bytes() == content
    assert (out / "large").put_digest() is not None


def test_files_written_together_arrive_in_their_order_or_not_at_all(out: ObjectLocation) -> None:
    first, last = files = (out / "a/first.json", out / "b/last.png")
    with atomic_write_group(files, out / ".work" / "aside") as asides:
        assert [aside.suffix for aside in asides.values()] == [".json", ".png"]
        for aside in asides.values():
            aside.write_bytes(b"x")
        folder = aside.parent
        assert list(out.objects()) == []
    assert not folder.exists()
    assert [name_in(out, path) for path, _ in out.objects()] == ["a/first.json", "b/last.png"]
    head = s3_client().head_object(Bucket=BUCKET, Key=last.key)
    assert head["ContentType"] == "image/png"

    def half() -> None:
        with atomic_write_group(files, out / ".work" / "aside") as asides:
            asides[first].write_bytes(b"y")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        half()
    assert first.read_bytes() == b"x"


def test_an_object_is_put_only_over_the_version_that_was_read(out: ObjectLocation) -> None:
    path = out / "lock"
    assert read_version(path) is None
    put_over(path, b"one", None)
    with pytest.raises(Outdated):
        put_over(path, b"two", None)
    seen = read_version(path)
    assert seen is not None
    assert (seen.content, 0 <= age_s(path, seen) < 5) == (b"one", True)
    assert put_over(path, b"two", seen) != seen.tag
    with pytest.raises(Outdated):
        put_over(path, b"three", seen)
    remove(path)
    with pytest.raises(Outdated):
        put_over(path, b"three", seen)
    with pytest.raises(Outdated):
        put_over(path, b"three", Version(b"", '"none"'))


def said_of(out: ObjectLocation) -> str:
    """Return what is said of a write and of a read, which must be the same but for the request."""
    started = time.monotonic()
    with pytest.raises(OutputError) as error:
        write(out / "file", b"x")
    with pytest.raises(OutputError):
        (out / "file").read_bytes()
    with pytest.raises(OutputError):
        list_matching(out, "*")
    assert time.monotonic() - started < 20
    said = str(error.value)
    assert "\n" not in said
    assert "TOPSECRET" not in said
    assert said.startswith(f"{out / 'file'}: ")
    return said


def test_a_store_that_cannot_be_reached_says_so(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    assert "no connection to the store: cannot connect to http://127.0.0.1:" in said_of(out)


def test_a_store_that_does_not_answer_is_given_up(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "no connection to the store: no answer within 1 s, asked 2 times" in said_of(out)


def test_no_credentials(out: ObjectLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "no access: expected credentials" in said_of(out)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "the profile (nobody) of AWS could not be found" in said_of(out)


def test_wrong_credentials(out: ObjectLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    requests.post(url, data=b"0", timeout=10)  # from now on it looks at them
    try:
        said = said_of(out)
    finally:
        requests.post(url, data=b"inf", timeout=10)
    assert "no access: credentials are wrong, or do not allow it: " in said
    assert "HTTP 403 Forbidden InvalidAccessKeyId: The AWS Access Key Id" in said


def test_no_such_bucket(out: ObjectLocation) -> None:
    there = ObjectLocation("s3", PurePosixPath("/nowhere/out"))
    with pytest.raises(OutputError, match=r"^s3://nowhere/out/file: no such bucket$"):
        write(there / "file", b"x")
    with pytest.raises(OutputError, match=r"^s3://nowhere/out: no such bucket$"):
        list_matching(there, "*")
