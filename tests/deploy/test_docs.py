"""The pages build without a warning and ask nothing of other hosts; the tutorial runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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


def test_the_tutorial_runs_and_its_page_shows_it(tmp_path: Path) -> None:
    script = ROOT / "docs" / "tutorial.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("done: ")
    assert lines[-2].endswith("boxes in a chip of 0.6 m a pixel")
    assert "1 shards taken over" in done.stdout
    code = script.read_text()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.S)
    shown = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    assert len(shown) > 15
    known = {line.strip() for line in code.splitlines()}
    assert [line for line in shown if line not in known] == []
