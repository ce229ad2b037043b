"""The reference pages in docs/ are up to date and leave nothing out."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import scenesweep
from scenesweep.jobs.cli import COMMANDS
from scenesweep.jobs.shared.run_config import RunConfig
from scenesweep.pipeline.publish.table import COLUMNS, SCHEMA

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    generated = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    assert isinstance(generated, dict)
    return generated


def test_the_committed_pages_are_up_to_date(pages: dict[str, str]) -> None:
    stale = [name for name, text in pages.items() if (DOCS / name).read_text() != text]
    assert stale == [], "run `make docs` and commit the pages"


def test_every_name_command_column_and_setting_has_a_text(pages: dict[str, str]) -> None:
    assert [f"## `scenesweep.{name}`" for name in scenesweep.__all__] == [
        line for line in pages["reference/api.md"].splitlines() if line.startswith("## ")
    ]
    assert [f"## {name}" for name in COMMANDS] == [
        line for line in pages["reference/cli.md"].splitlines() if line.startswith("## ")
    ]
    assert list(COLUMNS) == SCHEMA.names
    rows = [line.split(" | ") for line in pages["settings.md"].splitlines() if line.startswith("|")]
    settings = {row[0].strip("| `"): row[-1].strip("| ") for row in rows if "`" in row[0]}
    assert {"tiling.chip", "engine.stop_grace_s", "search.url", "out", "RAY_ADDRESS"} <= set(
        settings
    )
    assert [name for name, text in settings.items() if not text] == []
    groups = {name for name in RunConfig.model_fields if f"## {name}\n" in pages["settings.md"]}
    assert groups | set(settings) >= set(RunConfig.model_fields)


def test_every_option_has_a_help_text(pages: dict[str, str]) -> None:
    rows = [line for line in pages["reference/cli.md"].splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |") or row.endswith("| |")] == []
