"""docs/queries.md is copied by analysts: each of its snippets is run here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import duckdb
import pyogrio
import pytest

from jobs import cli
from model.file import open_model
from pipeline.output.stac.catalog import write_catalog
from tests.nights import CLASSES, publish_night

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"
SNIPPETS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def snippets(language: str) -> list[str]:
    return [text for kind, text in SNIPPETS if kind == language]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with OUT in it, and nothing else that a snippet could lean on."""
    folder = tmp_path_factory.mktemp("night")
    (folder / "made").mkdir()
    out = publish_night(folder / "made", "publish.formats=[flatgeobuf]")
    write_catalog(out, open_model("naip-trees"))
    assert cli.main(["compact", str(out)]) == 0
    out.rename(folder / "OUT")
    return folder


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


def test_qgis_filter_is_one_that_its_provider_takes(night: Path) -> None:
    """QGIS hands it to OGR as it is."""
    (condition,) = snippets("ogr")
    (path,) = (night / "OUT" / "flatgeobuf").rglob("west.fgb")
    every = pyogrio.read_dataframe(path)
    wanted = every[(every.score >= 0.5) & every.class_name.isin(CLASSES) & ~every.truncated]
    found = pyogrio.read_dataframe(path, where=condition)
    assert 0 < len(found) < len(every)
    assert sorted(found.detection_id) == sorted(wanted.detection_id)
