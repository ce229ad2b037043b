"""Scenes that have not changed are recognised without opening a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from scenesweep.pipeline import flow
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.publish.pieces import publish_scene
from scenesweep.pipeline.runs.known import recognised
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.sources.changes import Folders
from scenesweep.pipeline.storage.paths import Output
from tests.rasters import make_job, paint_squares, ref_of, write_raster
from tests.small_models import a_model
from tests.sweeps import digests, sweep

ALL = "publish.formats=[geojson, gpkg]"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(100, 90, largest=10, seed=1)
    return write_raster(tmp_path / "scenes" / "a.tif", pixels)


@pytest.fixture
def job(tmp_path: Path, scene: Path) -> Job:
    """A job whose output has the published scene."""
    job = make_job(tmp_path / "out", ALL)
    assert [result.status for result in sweep([scene], job)] == ["done"]
    return job


@pytest.fixture
def out(job: Job, tmp_path: Path) -> Output[Path]:
    return Output(tmp_path / "out")


def known(scene: Path, job: Job) -> list[SceneResult]:
    return recognised(Order((ref_of(scene),), a_model(scene.parents[1]), job))


def test_a_published_scene_is_recognised_without_planning(scene: Path, job: Job) -> None:
    (planned,) = sweep([scene], job)
    assert planned.status == "up-to-date"
    (result,) = known(scene, job)
    assert result == planned
    assert all(Path(path).is_file() for path in result.files.values())


@pytest.mark.parametrize("name", ["a.tif", "a.tfw", "a.tif.aux.xml", "a.tif.ovr", "a.tif.sha256"])
def test_a_changed_source_is_not(scene: Path, job: Job, name: str) -> None:
    path = scene.parent / name
    if path == scene:
        os.utime(path, ns=(1, 1))
    else:
        path.write_text("new")
    assert known(scene, job) == []


def test_another_scene_beside_it_changes_nothing(scene: Path, job: Job) -> None:
    for name in ("b.tif", "ab.tif", "a_b.tif"):
        (scene.parent / name).write_text("another")
    assert len(known(scene, job)) == 1


def test_each_missing_or_changed_file_is_noticed_and_repaired(
    scene: Path, job: Job, out: Output[Path]
) -> None:
    intact = digests(out.root)
    (result,) = known(scene, job)
    manifest = out.manifest("a")
    for path in [*map(Path, result.files.values()), manifest]:
        for change in (path.unlink, lambda path=path: path.write_bytes(path.read_bytes() + b" ")):
            change()
            assert known(scene, job) == []
            assert sweep([scene], job)[0].status in ("done", "up-to-date")
            assert digests(out.root) == intact
            assert len(known(scene, job)) == 1


@pytest.mark.parametrize(
    "setting", ["merge.iou=0.2", "detect.score_threshold=0.9", "publish.formats=[geojson]"]
)
def test_other_settings_are_another_result(scene: Path, job: Job, setting: str) -> None:
    assert known(scene, make_job(job.out, ALL, setting)) == []
    assert known(scene, replace(job, model_sha256="1" * 64)) == []
    assert len(known(scene, make_job(job.out, ALL, "engine.max_windows=100000"))) == 1


def test_recorded_checksums_ask_for_all_bytes(scene: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path / "out", "scenes.checksums=record")
    sweep([scene], job)
    sweep([scene], job)
    assert known(scene, job) == []


@pytest.mark.parametrize("text", ["", "{}", '{"inputs": "", "files": {}, "result": {}}'])
def test_a_damaged_record_is_no_record(scene: Path, job: Job, out: Output[Path], text: str) -> None:
    record = out.known("a")
    intact = record.read_bytes()
    record.write_text(text)
    assert known(scene, job) == []
    assert sweep([scene], job)[0].status == "up-to-date"
    assert record.read_bytes() == intact


def test_a_source_that_changes_while_it_is_swept_is_swept_again(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / "out")

    def changed_meanwhile(*arguments: Any) -> object:
        os.utime(scene, ns=(1, 1))
        return publish_scene(*arguments)

    monkeypatch.setattr(flow, "publish_scene", changed_meanwhile)
    sweep([scene], job)
    assert known(scene, job) == []


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.b.tif", "a.b.tfw", "a.tif", "a"):
        (tmp_path / name).touch()
    folders, listdir = Folders(), Mock(wraps=os.listdir)
    monkeypatch.setattr(os, "listdir", listdir)
    assert [path.name for path in folders.files_of(tmp_path / "a.b.tif")] == ["a.b.tfw", "a.b.tif"]
    assert {p.name for p in folders.files_of(tmp_path / "a.tif")} == {"a.b.tfw", "a.b.tif", "a.tif"}
    listdir.assert_called_once_with(tmp_path)
