"""docs/counts.md is copied by analysts: its snippets run in their order, as on the demo's OUT."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import duckdb
import pytest

from scenesweep.jobs import cli
from tests.jobs.test_queries_page import demo

PAGE = Path(__file__).parents[2] / "docs" / "counts.md"
SNIPPETS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo(tmp_path))
    capsys.readouterr()
    for kind, text in SNIPPETS:
        if kind == "sh":  # needs labels, which the demo does not have
            continue
        run(kind, text)
        printed = capsys.readouterr().out
        assert printed or kind == "sql"
    assert {path.name for path in tmp_path.iterdir()} >= {
        *("blocks.gpkg", "counts.gpkg", "counts.csv", "counts.parquet", "cells.parquet"),
        *("inside.gpkg", "inside.qml"),
    }


def run(kind: str, text: str) -> None:
    """Run the commands, the SQL or the Python of a snippet, which must find something."""
    if kind == "python":
        exec(compile(text, str(PAGE), "exec"), {})
    elif kind == "sql":
        found = duckdb.sql(text)
        assert found is not None
        assert found.to_arrow_table().num_rows > 0
    else:
        assert kind == ""
        for line in text.splitlines():
            name, *arguments = shlex.split(line)
            assert name == "scenesweep"
            assert cli.main(arguments) == 0
