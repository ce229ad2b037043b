"""The pages build without a warning and load nothing from other hosts; the tutorial runs."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from code import InteractiveConsole
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
    printed = capsys.readouterr().out
    assert printed.startswith("done: ")
    assert "boxes in a chip of 0.6 m a pixel" in printed
    assert "1 shards reused" in printed
    code = script.read_text()
    shown = [line.strip() for line in "".join(tutorial_blocks()).splitlines() if line.strip()]
    assert len(shown) > 15
    known = {line.strip() for line in code.splitlines()}
    known |= {"from scenesweep import sweep", "from scenesweep import Detector"}
    known |= {'folder = Path("tutorial-out")'}
    assert [line for line in shown if line not in known] == []


def tutorial_blocks() -> list[str]:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_tutorials_page_runs_when_it_is_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    console = InteractiveConsole(names)  # an unfinished block needs its blank line there
    for line in "".join(f"{block}\n" for block in tutorial_blocks()).splitlines():
        console.push(line)
    printed, errors = capsys.readouterr()
    assert "Traceback" not in errors
    assert "Error" not in errors
    assert "in the fullest" in printed
    assert "boxes in a chip of 0.6 m a pixel" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["tutorial-out"]


def test_the_tutorial_without_a_folder_prints_its_usage() -> None:
    command = [sys.executable, str(ROOT / "docs" / "tutorial.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "usage: python docs/tutorial.py FOLDER (the folder to write to)\n"
