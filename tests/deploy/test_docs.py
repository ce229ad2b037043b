"""The pages build without a warning and ask nothing of other hosts; the tutorial runs."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pages = {page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")}
    assert len(list(tmp_path.rglob("index.html"))) == len(pages)
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|iframe)[^>]* src="(https?://[^"]+)', page.read_text())
        fetched += re.findall(r'<link rel="stylesheet" href="(https?://[^"]+)', page.read_text())
        assert fetched == []


def test_the_tutorial_runs_and_its_page_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "docs" / "tutorial.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("done: ")
    assert "boxes in a chip of 0.6 m a pixel" in said
    assert "1 shards taken over" in said
    code = script.read_text()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.S)
    shown = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    assert len(shown) > 15
    known = {line.strip() for line in code.splitlines()}
    assert [line for line in shown if line not in known] == []
