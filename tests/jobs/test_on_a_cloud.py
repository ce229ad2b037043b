"""The commands on a bucket do what they do on a folder, with the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import geopandas as gpd
import numpy as np
import obstore
import pyarrow.parquet as pq
import pytest

from scenesweep.jobs import cli
from scenesweep.pipeline.errors import Exit, UsageError
from scenesweep.pipeline.results.accuracy import open_published
from scenesweep.pipeline.runs import retention as retain
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.runs.retention import Retention, discard, expired
from scenesweep.pipeline.runs.writers import writing
from scenesweep.pipeline.storage.clients import client
from scenesweep.pipeline.storage.commit import atomic_write, remove
from scenesweep.pipeline.storage.location import Location, list_matching, name_in, sizes_under
from scenesweep.pipeline.storage.objects import ObjectLocation
from scenesweep.pipeline.sweep import sweep as sweep_api
from tests.faults.painted import Sweep, paint
from tests.nights import night_job, objects, publish_scene, seen
from tests.pipeline.planning.test_area import LEFT
from tests.rasters import SquareDetector, make_job, paint_squares, write_raster
from tests.stores import SLOWLY, bucket_served, contents, versions
from tests.sweeps import sweep

FORMATS = "publish.formats=[geojson, flatgeobuf, gpkg, coco]"


@pytest.fixture(params=SLOWLY)
def out(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ObjectLocation]:
    with bucket_served(monkeypatch, request.param) as out:
        yield out


@pytest.fixture
def painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A command on scenes, with a detector of squares in place of the network."""
    monkeypatch.setattr("scenesweep.pipeline.flow.make_detector", lambda *_, **__: SquareDetector())
    settings = ("publish.quicklook=true", FORMATS, "scenes.checksums=record", "tiling.shard=2")
    painted = paint(tmp_path, scenes=2, side=150)
    return Sweep(painted.scenes, painted.model, settings)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(220, 200, largest=10, seed=1)
    return write_raster(tmp_path / "scene.tif", pixels)


def detect(painted: Sweep, out: object, *more: str) -> int:
    return cli.main(["detect", *painted.arguments(Path("none"), "none"), "--out", str(out), *more])


def damage(path: Location, content: bytes) -> None:
    """Put other bytes as another program does: without their SHA-256."""
    assert isinstance(path, ObjectLocation)
    obstore.put(client(path.scheme, path.bucket), path.key, content)


def test_a_sweep_into_a_bucket_is_that_into_a_folder(
    tmp_path: Path, painted: Sweep, out: ObjectLocation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect(painted, tmp_path / "out") == detect(painted, out) == Exit.DONE
    said = capsys.readouterr()
    assert f" in {out}/detections\n" in said.out
    assert f"report: {out}/runs/" in said.out
    assert "TOPSECRET" not in said.out + said.err
    here, there = contents(tmp_path / "out"), contents(out)
    assert here == there
    assert {name.split("/")[0] for name in there} == {
        *("checksums", "coco", "coverage", "detections", "flatgeobuf", "geojson", "gpkg", "items"),
        *("models", "quicklooks", "items.parquet", "collection.json", "catalog.json"),
    }
    parts = [name_in(p, f) for p in (tmp_path / "out", out) for f, _ in sizes_under(p / ".work")]
    assert len(parts) == 2 * len(set(parts)) > 8
    (report,) = list_matching(out / "runs", "*.json")
    assert [r["status"] for r in json.loads(report.read_bytes())["results"]] == ["done"] * 2
    before = versions(out)
    capsys.readouterr()
    assert detect(painted, out, "--json") == Exit.DONE
    report = json.loads(capsys.readouterr().out)
    assert [result["status"] for result in report["results"]] == ["up-to-date"] * 2
    touched = {path for path, when in versions(out).items() if before.get(path) != when}
    kinds = {path.removeprefix(f"{out}/").split("/")[0] for path in touched}
    assert kinds <= {"runs", ".work", "models", "items.parquet", "collection.json", "catalog.json"}


def test_a_scene_that_always_fails_is_left_alone(
    tmp_path: Path, painted: Sweep, out: ObjectLocation, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_text("text")
    painted = Sweep((*painted.scenes, bad), painted.model, painted.settings)
    more = ("--set", "quarantine_after=2", "--set", "scenes.checksums=ignore")
    assert [detect(painted, out, *more) for _ in range(3)] == [3, 3, 0]
    assert "2 up-to-date, 1 quarantined" in capsys.readouterr().out
    assert detect(painted, out, *more, "--retry-failed") == 3


def test_the_commands_work_on_what_is_there(
    tmp_path: Path, painted: Sweep, out: ObjectLocation, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    for where in (folder, out):
        assert detect(painted, where) == Exit.DONE
    capsys.readouterr()

    def both(command: str, *more: str) -> str:
        said = []
        for where in (folder, out):
            assert cli.main([command, str(where), *more]) == 0
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]
        return said[1]

    assert "2 scenes, " in both("verify")
    assert "all complete" in both("verify")
    assert "24 with the highest" in both("query", "--limit", "24")
    assert "detections" in both("query", "--scene", "scene1", "--min-score", "0.5")
    assert "done: unknown" in both("compact")
    assert "up-to-date: unknown" in both("compact")
    assert contents(out) == contents(folder)
    both("query", "--unique")
    for where, to in ((folder, tmp_path / "here.gpkg"), (out, tmp_path / "there.gpkg")):
        assert cli.main(["query", str(where), "--to", str(to)]) == 0
    assert (tmp_path / "here.gpkg").read_bytes() == (tmp_path / "there.gpkg").read_bytes()
    assert cli.main(["query", str(folder), "--to", f"{out}/found.parquet"]) == 0
    assert (out / "found.parquet").is_file()
    assert cli.main(["view", str(out)]) == Exit.USAGE
    assert "expected --to FOLDER" in capsys.readouterr().err
    assert cli.main(["view", str(out), "--to", str(tmp_path / "pages")]) == 0
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {
        *("index.html", "scene0.html", "scene1.html")
    }
    judged = [open_published(where, painted.sources) for where in (folder, out)]
    assert [len(one.score) for one in judged[0]] == [len(one.score) for one in judged[1]]


def test_nothing_there(out: ObjectLocation, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(out)]) == Exit.USAGE
    assert cli.main(["query", str(out)]) == Exit.USAGE
    assert cli.main(["compact", str(out)]) == Exit.USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_a_dry_run_writes_nothing(
    painted: Sweep, out: ObjectLocation, capsys: pytest.CaptureFixture[str]
) -> None:
    painted = Sweep(painted.scenes, painted.model)
    assert detect(painted, out, "--dry-run") == Exit.DONE
    assert "scenes: 2 to do" in capsys.readouterr().out
    assert list(out.objects()) == []
    assert detect(painted, out) == Exit.DONE
    capsys.readouterr()
    assert detect(painted, out, "--dry-run") == Exit.DONE
    assert "scenes: 2 up to date" in capsys.readouterr().out


def test_troubles_are_one_line(
    painted: Sweep, out: ObjectLocation, capsys: pytest.CaptureFixture[str]
) -> None:
    said, nowhere = {}, f"{out.scheme}://nowhere/out"
    for where in (nowhere, "abfs://bucket/out", f"{out}"):
        with writing(out, alone=True):
            said[where] = detect(painted, where), capsys.readouterr().err
    for code, line in said.values():
        assert line.splitlines()[-1].startswith("scenesweep detect: ")
        assert "Traceback" not in line
        assert code in (Exit.OUTPUT, Exit.USAGE, Exit.IN_USE)
    assert said[nowhere][0] == Exit.OUTPUT
    kind = "container" if out.scheme == "az" else "bucket"
    assert f"{nowhere}/.work/lock: no such {kind}" in said[nowhere][1]
    assert said["abfs://bucket/out"][0] == Exit.USAGE
    assert (
        "abfs://bucket/out: expected a folder, s3://BUCKET/PREFIX" in said["abfs://bucket/out"][1]
    )
    assert said[str(out)][0] == Exit.IN_USE
    assert "another run is writing there: process " in said[str(out)][1]
    with writing(out):
        assert cli.main(["verify", str(out)]) == Exit.IN_USE


def status_of(results: list[SceneResult]) -> tuple[str, tuple[str, ...]]:
    (result,) = results
    assert result.status != "failed", result.reason
    return result.status, result.warnings


def test_what_is_amiss_is_found_and_mended(scene: Path, out: ObjectLocation) -> None:
    job = make_job(out, "publish.quicklook=true")
    sweep([scene], job)
    clean = contents(out)
    for name in sorted(clean)[:3]:
        remove(out / name)
        assert status_of(sweep([scene], job, None)) == ("done", ()), name
        assert contents(out) == clean
        if name.startswith("checksums/"):
            continue
        damage(out / name, (out / name).read_bytes()[:-1] + b"?")
        assert status_of(sweep([scene], job)) == (
            "done",
            (f"damaged files were published again: {name}",),
        )
        assert contents(out) == clean
        damage(out / name, (out / name).read_bytes())  # the same bytes, without their SHA-256
        assert status_of(sweep([scene], job)) == ("up-to-date", ())
    (part, *_), work = list_matching(out / ".work", "*/part-*.parquet"), out / ".work"
    damage(part, part.read_bytes()[:-200])
    remove(out / "checksums" / "scene.sha256")
    said = status_of(sweep([scene], job))[1]
    assert said == ("damaged parts were done again: 1 shards (0)",)
    assert contents(out) == clean
    other = make_job(out, "publish.quicklook=false", "publish.formats=[]", "tiling.margin=20")
    assert status_of(sweep([scene], other)) == ("done", ())
    assert {name.split("/")[0] for name in contents(out)} == {
        *("checksums", "coverage", "detections", "items")
    }
    assert len(list_matching(work, "scene-*")) == 1


def test_a_folder_copied_into_a_bucket_is_up_to_date(
    tmp_path: Path, scene: Path, out: ObjectLocation
) -> None:
    """Its objects have no SHA-256 of ours: their bytes are read."""
    here = make_job(tmp_path / "out")
    sweep([scene], here)
    for path, _ in sizes_under(tmp_path / "out"):
        damage(out / name_in(tmp_path / "out", path), path.read_bytes())
    there = make_job(out)
    assert status_of(sweep([scene], there)) == ("up-to-date", ())
    shutil.rmtree(tmp_path / "out")


def test_the_api_takes_a_bucket(painted: Sweep, out: ObjectLocation, tmp_path: Path) -> None:
    run = sweep_api(painted.sources, painted.model, str(out), publish={"quicklook": False})
    assert [result.status for result in run.results] == ["done", "done"]
    assert run.results[0].files["detections"].startswith(f"{out}/detections/date=")
    again = sweep_api(painted.sources, painted.model, str(out), publish={"quicklook": False})
    assert [result.status for result in again.results] == ["up-to-date"] * 2
    with pytest.raises(UsageError, match="expected a folder, s3://"):
        sweep_api(painted.sources, painted.model, "abfs://container/out")


def test_a_scene_of_another_date_leaves_no_table_behind(
    tmp_path: Path, out: ObjectLocation
) -> None:
    job = night_job(out)
    for day in ("2026-11-20", "2026-11-21"):
        publish_scene(tmp_path, job, "scene", seen(objects(50), 0, 1), day=day)
    assert [path.parent.name for path in list_matching(out, "detections/date=*/*")] == [
        "date=2026-11-21"
    ]


def test_a_narrower_area_replaces_nothing_in_a_bucket(tmp_path: Path, out: ObjectLocation) -> None:
    scene = write_raster(tmp_path / "s.tif", np.ones((1, 300, 300), np.uint8))
    assert sweep([scene], make_job(out))[0].status == "done"
    before = contents(out)
    (refused,) = sweep([scene], make_job(out, area=LEFT))
    assert refused.status == "failed"
    assert "--replace" in refused.reason
    assert contents(out) == before
    assert sweep([scene], make_job(out, area=LEFT, replace_wider=True))[0].status == "done"
    assert sweep([scene], make_job(out, "merge.iou=0.4", area=LEFT))[0].status == "done"


def test_only_our_own_old_files_are_thrown_away(out: ObjectLocation) -> None:
    names = ["runs/20260901T040000-0a1b2c.json", "runs/20260902T040000-0a1b2c.json"]
    names += ["runs/notes.json", ".work/a.b-0123456789abcdef/part-000001.parquet"]
    names += [".work/scene-0123456789abcdef/part-000001.parquet", ".work/lock"]
    names += [".work/deep-0123456789abcdef/more/file", ".work/deep-0123456789abcdef/file"]
    for name in names:
        with atomic_write(out / name, out) as aside:
            aside.write_bytes(b"x")
    retention, now = Retention(runs_days=3, work_days=3), datetime.now(UTC)
    assert expired(out, retention, scene_ids={"scene"}, now=now) == [out / names[0]]
    later = now + timedelta(days=4)
    old = expired(out, retention, scene_ids={"scene"}, now=later)
    assert [name_in(out, path) for path in old] == [names[0], ".work/a.b-0123456789abcdef"]
    assert discard(old, out) == old
    left = {name_in(out, path) for path, _ in sizes_under(out)}
    assert left == set(names) - {names[0], names[3]}


def test_a_prefix_that_was_emptied_meanwhile_is_left(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_write(out / ".work" / "a-0123456789abcdef" / "part", out) as aside:
        aside.write_bytes(b"x")

    def and_it_is_emptied(path: Location) -> bool:
        if path.name.startswith("a-"):
            remove(path / "part")
        return True

    monkeypatch.setattr(retain, "_is_folder", and_it_is_emptied)
    later = datetime.now(UTC) + timedelta(days=4)
    assert expired(out, Retention(work_days=3), scene_ids=set(), now=later) == []


def test_a_table_on_s3_is_read_by_pyarrow(scene: Path, out: ObjectLocation) -> None:
    (result,) = sweep([scene], make_job(out))
    with (out / result.files["detections"].removeprefix(f"{out}/")).open("rb") as file:
        assert pq.read_table(file).num_rows == result.detections
        assert len(gpd.read_parquet(file)) == result.detections
