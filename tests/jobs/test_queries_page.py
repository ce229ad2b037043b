"""docs/queries.md is copied by analysts: each of its snippets is run here, as on the demo's OUT."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyogrio
import pytest

from scenesweep.jobs import cli
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.publish.stac.catalog import write_catalog
from tests.nights import objects, publish_night, publish_scene, seen
from tests.rasters import make_card, make_job

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"
SNIPPETS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def snippets(language: str) -> list[str]:
    return [text for kind, text in SNIPPETS if kind == language]


def demo(folder: Path, name: str = "suburb", day: str = "2026-06-21") -> Path:
    """Publish what `make demo` does, smaller: one scene of trees, of one day, at its place."""
    out = folder / "demo-out" / "out"
    job = make_job(out, "publish.formats=[geojson,flatgeobuf]", card=make_card(classes=("tree",)))
    trees = objects(200)
    trees = replace(trees, label=np.zeros_like(trees.label))
    publish_scene(folder, job, name, seen(trees, 0, 1), day=day)
    write_catalog(out, open_model("naip-trees"))
    assert cli.main(["compact", str(out), "--pmtiles"]) == 0
    return folder


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's output in it, and nothing else that a snippet could lean on."""
    return demo(tmp_path_factory.mktemp("demo"))


def test_every_snippet_is_of_a_kind_that_is_run() -> None:
    assert {kind for kind, _ in SNIPPETS} == {"", "sql", "python", "ogr"}


@pytest.mark.parametrize("command", [c for text in snippets("") for c in text.splitlines()])
def test_commands_run(
    night: Path, monkeypatch: pytest.MonkeyPatch, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(night)
    name, *arguments = shlex.split(command)
    assert name == "scenesweep"
    assert cli.main(arguments) == 0
    assert not re.search(r"^0 detections", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("sql", snippets("sql"))
def test_sql_finds_something(night: Path, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    monkeypatch.chdir(night)
    found = duckdb.sql(sql)
    assert found is not None
    assert found.to_arrow_table().num_rows > 0


@pytest.mark.parametrize("code", snippets("python"))
def test_python_prints_something(
    night: Path, monkeypatch: pytest.MonkeyPatch, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(night)
    exec(compile(code, str(PAGE), "exec"), {})
    assert len(capsys.readouterr().out) > 10


def test_sql_runs_where_no_scene_has_the_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").mkdir()
    out = publish_night(tmp_path / "made")
    write_catalog(out, open_model("naip-trees"))
    assert cli.main(["compact", str(out), "--pmtiles"]) == 0
    (tmp_path / "demo-out").mkdir()
    out.rename(tmp_path / "demo-out" / "out")
    monkeypatch.chdir(tmp_path)
    for sql in snippets("sql"):
        found = duckdb.sql(sql)
        assert found is not None
        assert found.to_arrow_table().num_columns > 0


def test_new_trees_are_those_without_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same ground a day later: the scenes' boxes differ by a pixel at most, 0.6 m."""
    demo(tmp_path)
    demo(tmp_path, "later", "2026-06-22")
    monkeypatch.chdir(tmp_path)
    (code,) = [text for text in snippets("python") if "before" in text]
    exec(compile(code, str(PAGE), "exec"), {})
    assert re.search(r"^0 of \d+ trees on 2026-06-22 ", capsys.readouterr().out, re.M)


def test_qgis_filter_is_one_that_its_provider_takes(night: Path) -> None:
    """QGIS hands it to OGR as it is."""
    (condition,) = snippets("ogr")
    (path,) = (night / "demo-out" / "out" / "flatgeobuf").rglob("*.fgb")
    every = pyogrio.read_dataframe(path)
    wanted = every[(every.score >= 0.5) & (every.class_name == "tree") & ~every.truncated]
    found = pyogrio.read_dataframe(path, where=condition)
    assert 0 < len(found) < len(every)
    assert sorted(found.detection_id) == sorted(wanted.detection_id)
