"""`scenesweep track` and `query --new-since` as a user types them."""

from __future__ import annotations

import shutil
from pathlib import Path

import geopandas as gpd
import pytest

from scenesweep.jobs import cli
from scenesweep.pipeline.storage.location import Location
from tests.nights import NIGHT, OTHER, night_job, objects, publish_night, publish_scene, seen
from tests.stores import bucket_served, contents

EARLIER = "2026-11-19"


def track(out: Location, *arguments: object) -> int:
    return cli.main(["track", str(out), *map(str, arguments)])


def test_track_and_ask_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    job = night_job(tmp_path / "out", "publish.formats=[]")
    some, out = objects(60), tmp_path / "out"
    publish_scene(tmp_path, job, "first", seen(some, 0, 1), day=NIGHT)
    publish_scene(tmp_path, job, "second", seen(objects(90), 0, 2), day=OTHER)
    shutil.rmtree(out / "coverage")
    assert track(out, "--within", 3, "--confirm-above", 0) == 0
    first, second, where = capsys.readouterr().out.splitlines()
    assert first.startswith(f"done: {NIGHT}: ")
    assert second.startswith(f"done: {OTHER}: ")
    assert where == f"objects: {out}/tracks/objects.parquet"
    assert caplog.messages == [
        "2 scenes have no coverage file: their whole outline counts as observed, also under clouds"
    ]
    table = gpd.read_parquet(out / "tracks" / "objects.parquet")
    new = table[table.first_seen.astype(str) == OTHER]
    assert f": {len(new):,} new" in second
    assert 20 < len(new) < 90
    assert cli.main(["query", str(out), "--new-since", OTHER]) == 0
    assert f"{len(new):,} detections" in capsys.readouterr().out
    assert cli.main(["query", str(out), "--new-since", OTHER, "--looks", "2"]) == 0
    assert "0 detections" in capsys.readouterr().out
    caplog.clear()
    publish_scene(tmp_path, job, "before", seen(some, 0, 3), day=EARLIER)
    assert cli.main(["query", str(out), "--new-since", OTHER]) == 0
    assert caplog.messages == [
        f"dates are not tracked, or changed since: {EARLIER}; run scenesweep track {out}"
    ]
    capsys.readouterr()
    assert track(out, "--within", 3, "--confirm-above", 0) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()[:3]] == [
        EARLIER,
        NIGHT,
        OTHER,
    ]
    assert track(out, "--within", 3, "--confirm-above", 0) == 0
    assert f"up-to-date: no date was added or changed since {OTHER}" in capsys.readouterr().out


def test_a_bucket_gets_the_bytes_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with bucket_served(monkeypatch) as bucket:
        listed = []
        for out in (tmp_path / "out", bucket):
            job = night_job(out, "publish.formats=[]")
            for number, day in enumerate((EARLIER, NIGHT)):
                found = seen(objects(60 + 30 * number), 0, number)
                publish_scene(tmp_path, job, f"scene{number}", found, day=day)
            assert track(out, "--within", 3) == 0
            publish_scene(tmp_path, job, "later", seen(objects(90), 0, 3), day=OTHER)
            assert track(out, "--within", 3) == 0  # reads what it wrote
            capsys.readouterr()
            assert cli.main(["query", str(out), "--new-since", NIGHT, "--looks=1"]) == 0
            assert cli.main(["count", str(out), "--h3=8"]) == 0
            listed.append(capsys.readouterr().out)
        assert listed[0] == listed[1]
        here, there = contents(tmp_path / "out"), contents(bucket)
        tracks = {name for name in here if name.startswith("tracks/")}
        assert len(tracks) == 5
        assert {name: here[name] for name in tracks} == {name: there[name] for name in tracks}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--within", "0"], "--within: expected metres, above 0 and up to 10,000, got 0"),
        (["--within", "nan"], "--within: expected metres, above 0 and up to 10,000, got nan"),
        (["--gone-after", "0"], "--gone-after: expected at least 1, got 0"),
        (["--min-score", "2"], "--min-score: expected a score from 0 to 1, got 2"),
        (["--confirm-above", "-1"], "--confirm-above: expected a score from 0 to 1, got -1"),
        ([], "expected tables in detections/date=*/*.parquet, found none"),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track(tmp_path, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scenesweep track: ")
    assert said in line


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert track(tmp_path / "none") == 2
    assert "found no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--new-since", "soon"], "--new-since: expected 2026-11-20"),
        (["--new-since", "unknown"], "--new-since: expected a date such as 2026-11-20"),
        (["--new-since", NIGHT, "--looks", "0"], "--looks: expected at least 1, got 0"),
        (["--new-since", NIGHT], "its objects are not tracked; run scenesweep track"),
        (["--aoi", "none.gpkg"], "--aoi none.gpkg: cannot be read"),
    ],
)
def test_a_wrong_query_is_one_line(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = publish_night(tmp_path, "publish.formats=[]")
    assert cli.main(["query", str(out), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scenesweep query: ")
    assert said in line


def test_a_folder_without_detections_is_left_alone(tmp_path: Path) -> None:
    assert track(tmp_path) == 2
    assert list(tmp_path.iterdir()) == []
