"""Limits of a run, completeness, notifications: as a command and by function."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from scenesweep.jobs import cli
from scenesweep.jobs.shared.limits import (
    Deadline,
    deadline_at,
    first_scenes,
    newest_first,
    shard_of,
)
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.runs.expected import completeness
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.scene import Hints, RasterFile, SceneRef
from tests.rasters import make_job, paint_squares, write_raster
from tests.small_models import a_model

NOW = datetime(2026, 11, 21, 22, 0, tzinfo=timezone(timedelta(hours=1)))


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Detect on four small scenes."""
    a_model(tmp_path)
    for number in range(4):
        pixels, _ = paint_squares(96, 96, largest=10, seed=number)
        write_raster(tmp_path / "scenes" / f"s{number}.tif", pixels)
    named = {"--model": tmp_path / "m.safetensors", "--out": tmp_path / "out"}
    words = [word for pair in named.items() for word in map(str, pair)]
    return ["detect", str(tmp_path / "scenes"), *words, "--address", "none"]


def newest(folder: Path) -> dict[str, Any]:
    path = sorted((folder / "out/runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)[
        -1
    ]
    return dict(json.loads(path.read_text()))


def test_shards_are_disjoint_stable_and_complete(tmp_path: Path) -> None:
    refs = tuple(SceneRef((RasterFile(f"{i}.tif"),), id=f"scene{i}") for i in range(200))
    job = make_job(tmp_path)
    model = a_model(tmp_path)
    parts = [shard_of(Order(refs, model, job), f"{i}/4").sources for i in (1, 2, 3, 4)]
    assert sorted(ref.id for part in parts for ref in part) == sorted(ref.id for ref in refs)
    assert all(30 < len(part) < 70 for part in parts)
    assert shard_of(Order(refs[:100], model, job), "2/4").sources == tuple(
        ref for ref in refs[:100] if ref in parts[1]
    )
    with pytest.raises(UsageError, match="5/4"):
        shard_of(Order(refs, model, job), "5/4")


def test_a_limit_takes_the_next_scenes_and_a_shard_its_own(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, "--limit", "3"]) == 0
    assert newest(tmp_path)["scenes"]["done"] == 3
    assert cli.main([*command, "--limit", "3"]) == 0
    assert newest(tmp_path)["scenes"] | {"done": 1, "up-to-date": 3} == newest(tmp_path)["scenes"]
    done = 0
    for part in ("1/2", "2/2"):
        assert cli.main([*command, "--shard", part]) == 0
        done += newest(tmp_path)["scenes"]["up-to-date"]
    assert done == 4
    assert cli.main([*command, "--limit", "1", "--dry-run", "--json"]) == 0
    assert cli.main([*command, "--shard", "0/2"]) == 2
    assert "shard" in capsys.readouterr().err


def test_the_newest_scenes_come_first(tmp_path: Path) -> None:
    """By the time in the catalog, then by that of the file; a scene without either comes last."""
    times = {"old": NOW - timedelta(days=9), "new": NOW, "naive": datetime(2026, 11, 20)}
    refs = [
        SceneRef((RasterFile(f"{name}.tif"),), id=name, hints=Hints(acquired_at=at))
        for name, at in times.items()
    ]
    for name, days in (("file", 3), ("other", 4)):
        path = tmp_path / f"{name}.tif"
        path.touch()
        at = (NOW - timedelta(days=days)).timestamp()
        os.utime(path, (at, at))
        refs.append(SceneRef((RasterFile(str(path)),), id=name))
    refs.insert(0, SceneRef((RasterFile("https://127.0.0.1:9/x.tif"),), id="unknown"))
    order = Order(tuple(refs), a_model(tmp_path), make_job(tmp_path))
    ids = [ref.id for ref in newest_first(order).sources]
    assert ids == ["new", "naive", "file", "other", "old", "unknown"]


def test_what_other_settings_and_models_published_is_kept(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [*command, "--set", "merge.iou=0.2", "--only-new"]
    assert cli.main([*command, "--limit", "2"]) == 0
    assert cli.main([*changed, "--newest-first"]) == 0
    assert newest(tmp_path)["scenes"] | {"done": 2, "up-to-date": 2} == newest(tmp_path)["scenes"]
    for known in (tmp_path / "out" / ".work" / "known").glob("s[01].json"):
        known.unlink()  # as an older version left it
    capsys.readouterr()
    assert cli.main([*changed, "--dry-run"]) == 0
    assert "scenes: 4 up to date" in capsys.readouterr().out
    assert cli.main(changed) == 0
    report = newest(tmp_path)
    assert report["scenes"]["up-to-date"] == 4
    rows = {r["scene_id"]: r["detections"] for r in report["results"]}
    for result in report["results"]:
        table = pq.read_table(result["files"]["detections"], partitioning=None)
        assert rows[result["scene_id"]] == len(table)
    pixels, _ = paint_squares(96, 96, largest=10, seed=9)
    write_raster(tmp_path / "scenes" / "s3.tif", pixels)  # a changed source is swept again
    assert cli.main(changed) == 0
    assert newest(tmp_path)["scenes"] | {"done": 1, "up-to-date": 3} == newest(tmp_path)["scenes"]
    assert cli.main([*command, "--set", "merge.iou=0.2"]) == 0  # without it, all are swept again
    assert newest(tmp_path)["scenes"]["done"] == 2


def test_scenes_that_are_skipped_do_not_use_up_the_limit(tmp_path: Path) -> None:
    sources = tuple(SceneRef((RasterFile(f"{name}.tif"),), id=name) for name in "abc")
    order = Order(sources, a_model(tmp_path), make_job(tmp_path))
    kept = first_scenes(order, 1, skipped={"a"}).sources
    assert [source.scene_id for source in kept] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("05:30", datetime(2026, 11, 22, 5, 30, tzinfo=NOW.tzinfo)),
        ("23:00", datetime(2026, 11, 21, 23, 0, tzinfo=NOW.tzinfo)),
        (1380, datetime(2026, 11, 21, 23, 0, tzinfo=NOW.tzinfo)),  # what YAML makes of 23:00
        ("2026-11-23T04:00+00:00", datetime(2026, 11, 23, 4, tzinfo=UTC)),
        ("", None),
    ],
)
def test_a_deadline_is_the_next_such_time(text: str | int, at: datetime | None) -> None:
    assert deadline_at(text, NOW) == at


@pytest.mark.parametrize("text", ["soon", "25:00", "2026-11-23T04:00", "2026-11-20T04:00+00:00"])
def test_a_wrong_deadline_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=f"--deadline {text[:4]}"):
        deadline_at(text, NOW)


def test_a_deadline_stops_and_says_that_it_was_the_time() -> None:
    clock = iter([0.0, 1e11])
    deadline = Deadline(lambda: False, NOW, lambda: next(clock))
    assert (deadline(), deadline(), deadline.reached) == (False, True, True)
    stopped = Deadline(lambda: True, NOW)
    assert stopped()
    assert not stopped.reached


def test_a_run_ends_at_its_deadline_with_code_0_and_names_what_is_late(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenesweep.jobs.detect.deadline_at", lambda *_: NOW.replace(year=2000))
    expected = ["--expected", str(tmp_path / "scenes" / "s0.tif"), "--expected", "/in/new.tif"]
    named = ["--deadline", "05:30", "--set", "name=nightly", "--canary", "stop", *expected]
    assert cli.main([*command, *named]) == 0
    report = newest(tmp_path)
    assert report["scenes"]["unfinished"] == 4
    assert report["canary"] is None
    assert report["cut_short"] == "deadline 05:30 reached: 4 scenes are left for later"
    assert report["expected"] == {"done": 0, "failed": [], "late": ["s0"], "missing": ["new"]}
    monkeypatch.undo()
    assert cli.main([*command, *expected]) == 0
    assert newest(tmp_path)["expected"] == {
        "done": 1,
        "failed": [],
        "late": [],
        "missing": ["new"],
    }


def test_every_expected_scene_has_one_state() -> None:
    statuses = {"a": "done", "b": "up-to-date", "c": "failed", "d": "quarantined"}
    found = completeness(["f", "e", "d", "c", "b", "a", "a"], ["a", "b", "c", "d", "e"], statuses)
    assert found.counts() == {"done": 2, "failed": 2, "late": 1, "missing": 1}
    assert str(found) == "2 done, 2 failed, 1 late, 1 missing"


class Receiver(BaseHTTPRequestHandler):
    """Keeps what is posted, and answers with `status`."""

    status = 200
    posted: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.append(json.loads(body))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Receiver.posted, Receiver.status = [], 200
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook/SECRET?token=SECRET"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_summary_is_posted(command: list[str], address: str) -> None:
    assert cli.main([*command, "--notify", address]) == 0
    (message,) = Receiver.posted
    assert message["exit_code"] == 0
    assert message["scenes"]["done"] == 4
    assert message["text"].startswith("scenesweep : exit code 0\nscenes: 4 done")
    assert message["report"].endswith(".json")


def test_a_run_that_cannot_start_is_posted_too(command: list[str], address: str) -> None:
    assert cli.main([*command, "--notify", address, "--model", "none"]) == 2
    (message,) = Receiver.posted
    assert message["exit_code"] == 2
    assert message["error"].startswith("model 'none'")


@pytest.mark.parametrize("problem", ["refused", "status", "name"])
def test_a_failed_post_changes_nothing_and_shows_no_secret(
    tmp_path: Path,
    command: list[str],
    address: str,
    problem: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if problem == "refused":
        address = "http://127.0.0.1:9/hook/SECRET"
    elif problem == "name":
        address = "http://[SECRET/hook"
    Receiver.status = 500
    monkeypatch.setenv("SCENESWEEP_NOTIFY", address)
    assert cli.main(command) == 0
    assert "notify: " in caplog.text
    assert "SECRET" not in caplog.text
    assert "SECRET" not in json.dumps(newest(tmp_path))
