"""The image's recipe against the project's: it cannot be built here, so its text is compared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "deploy" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_it_has_the_makefiles_uv() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (wanted,) = re.findall(r"^UV_VERSION := (\S+)$", makefile, re.M)
    assert re.findall(r"^ARG UV_VERSION=(\S+)$", RECIPE, re.M) == [wanted, wanted]


def test_every_package_and_every_copied_file_is_in_its_context() -> None:
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word for line in re.findall(r"^COPY (?!--)(.*) \S+$", RECIPE, re.M) for word in line.split()
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["scenesweep*"]
    linked = {path.readlink().name for path in (ROOT / "scenesweep").iterdir() if path.is_symlink()}
    assert linked == {"model", "pipeline", "jobs"}
    assert {"scenesweep", *linked} <= copied
    assert PROJECT["project"]["readme"] in copied


def test_it_installs_what_is_pinned_and_runs_as_nobody_special() -> None:
    assert '--constraint /tmp/requirements.txt "$(echo /tmp/wheel/*.whl)[all]"' in RECIPE
    assert re.search(r"^USER 1000$", RECIPE, re.M)
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", RECIPE, re.M)
    assert PROJECT["project"]["requires-python"] == f">={python}"
