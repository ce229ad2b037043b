"""Headers for some hosts: sent to these hosts only, and shown nowhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenesweep.jobs import cli
from scenesweep.pipeline.errors import Exit, UsageError
from scenesweep.pipeline.storage.host_headers import VARIABLE, check_headers, headers_for
from scenesweep.pipeline.storage.remote import gdal_headers, read_bytes
from tests.rasters import make_job, paint_squares, write_raster
from tests.servers import FileServer, files_served
from tests.sweeps import sweep

TOKEN = 'Bearer TOP,SECRET "x"'


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    (tmp_path / "www").mkdir()
    with files_served(tmp_path / "www") as server:
        host = server.url.partition("://")[2]
        monkeypatch.setenv(VARIABLE, json.dumps({host: {"Authorization": TOKEN}}))
        yield server


def test_all_requests_to_the_host_have_them_and_no_other(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pixels, _ = paint_squares(100, 90, largest=10, seed=1)
    write_raster(server.root / "s.tif", pixels)
    (result,) = sweep([f"{server.url}/s.tif"], make_job(tmp_path / "out"))
    assert result.status == "done", result.reason
    assert "GET" in {command for command, _, _ in server.requests}
    assert set(server.tokens) == {TOKEN}
    with files_served(server.root) as other:
        (result,) = sweep([f"{other.url}/s.tif"], make_job(tmp_path / "other"))
        assert result.status == "done", result.reason
        assert set(other.tokens) == {None}
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"SECRET" not in written
    assert "SECRET" not in caplog.text


def test_a_redirect_to_another_host_has_none(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = server.url.partition("://")[2]
    monkeypatch.setenv(VARIABLE, json.dumps({host: {"X-Key": "SECRET"}}))
    (server.root / "a.txt").write_bytes(b"x")
    with files_served(server.root) as other:
        server.redirects["/a.txt"] = f"{other.url}/a.txt"
        assert read_bytes(f"{server.url}/a.txt") == b"x"
        assert server.keys == ["SECRET"]
        assert other.keys == [None]


def test_a_file_names_them_and_a_name_is_not_a_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "headers.yaml"
    path.write_text("Data.example.com: {Authorization: Bearer T, X-Api-Key: k}\n")
    monkeypatch.setenv(VARIABLE, str(path))
    check_headers()
    assert headers_for("https://data.EXAMPLE.com/a") == {
        "Authorization": "Bearer T",
        "X-Api-Key": "k",
    }
    for other in ("data.example.com.evil.org", "example.com", "data.example.com:8443"):
        assert headers_for(f"https://{other}/a") == {}
        assert gdal_headers(f"https://{other}/a") is None
    assert gdal_headers("https://data.example.com/a.tif") == (
        "/vsicurl/https://data.example.com/",
        "Authorization: Bearer T\r\nX-Api-Key: k\r\n",
    )
    assert headers_for("s3://data.example.com/a") == {}
    assert headers_for("data.tif") == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "no-such-file.yaml",
        '{"a": "SECRET"}',
        '{"a": {"B": 1}}',
        '{"https://a": {"B": "SECRET"}}',
        '{"a": {"B": "SECRET\\r\\nC: d"}}',
        '{"a": {"B: C": "SECRET"}}',
    ],
)
def test_a_wrong_variable_is_one_line_without_its_content(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=VARIABLE):
        check_headers()
    assert cli.main(["detect", "x.tif", "--model", "naip-trees", "--out", "out"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert VARIABLE in said
    assert "SECRET" not in said
    assert "Traceback" not in said
