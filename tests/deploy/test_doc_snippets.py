"""What the pages show is true: commands parse, code runs, files exist, every page is reachable."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from scenesweep.jobs.cli import COMMANDS, Parser
from scenesweep.jobs.demo import write_scene
from scenesweep.jobs.shared.run_config import RunConfig
from scenesweep.jobs.suburb import paint_suburb
from scenesweep.pipeline.settings import validated

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
]
FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.M | re.S)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def command_lines(page: Path) -> Iterator[list[str]]:
    """Give the words of each scenesweep command in the blocks of a page, without `scenesweep`."""
    for text in blocks(page, "", "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            if not re.search(r"(^|/| -- )scenesweep \w", line):
                continue
            words = shlex.split(line, comments=True)
            first = next(i for i, word in enumerate(words) if Path(word).name == "scenesweep")
            yield words[first + 1 :]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"scenesweep {command}")
    importlib.import_module(f"scenesweep.jobs.{command}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_parses(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, *arguments in command_lines(page):
        if "..." in arguments:
            continue
        try:
            parser_of(command).parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{name_of(page)}: {command} {arguments}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_in_the_text_exists(page: Path) -> None:
    for code in re.findall(r"`scenesweep (\w[^`]*)`", prose(page)):
        command, *words = shlex.split(code)
        if command == "COMMAND":
            continue
        assert command in COMMANDS, f"{name_of(page)}: {code}"
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if options:
            known = _options(parser_of(command))
            assert options <= known, f"{name_of(page)}: {code}"


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a parser and of its subcommands."""
    options = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options.update(*(_options(inner) for inner in action.choices.values()))
    return options


def test_there_are_many_commands() -> None:
    assert len([words for page in PAGES for words in command_lines(page)]) > 30


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_shell_block_is_valid_shell(page: Path) -> None:
    for text in blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), text


def test_rays_own_parsers_accept_the_commands_of_the_cluster_page() -> None:
    """Parsing alone: tests/jobs/test_submit.py runs them."""
    cli = importlib.import_module("ray.scripts.scripts").cli
    count = 0
    for text in blocks(DOCS / "cluster.md", "sh"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if words[:1] == ["ray"]:
                _parse_with_click(cli, words[1:])
                count += 1
    assert count >= 6


def _parse_with_click(command: click.Command, words: list[str]) -> None:
    if isinstance(command, click.Group):
        inner = command.get_command(click.Context(command), words[0])
        assert inner is not None, words
        _parse_with_click(inner, words[1:])
    else:
        command.make_context(command.name, [w for w in words if w not in (">", "/dev/null")])


def test_the_configurations_of_the_cluster_page_are_valid() -> None:
    trees = [yaml.safe_load(text) for text in blocks(DOCS / "cluster.md", "yaml")]
    trees = [tree for tree in trees if "resources" not in tree]  # a kustomization
    assert len(trees) == 3
    for tree in trees:
        validated(RunConfig, tree)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_of_the_project_in_the_text_exists(page: Path) -> None:
    """Paths from the project's root, such as `pipeline/flow.py` and `pipeline/raster/`."""
    tops = "pipeline|model|jobs|tests|deploy|docs|benchmarks|scenesweep"
    named = re.findall(rf"`((?:{tops})/[\w./-]*)`", prose(page))
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing == []


def test_the_readme_fits_a_screen_or_two_and_its_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 100
    (code,) = blocks(readme, "python")
    write_scene(tmp_path / "scenes" / "suburb.tif", paint_suburb(256, seed=3))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(readme), "exec"), {})
    table = capsys.readouterr().out.split()
    assert table == ["done", "OUT/detections/date=2026-06-21/suburb.parquet"]
    assert Path(table[1]).is_file()


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in PAGES[:3]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{name_of(page)}: {link}"


def test_the_navigation_and_the_first_page_name_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    kinds = [title for entry in nav for title in entry]
    assert kinds == ["Home", "Tutorial", "How-to guides", "Reference", "Explanation"]
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert sorted(_leaves(nav)) == sorted(pages)
    first = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)#:]+)", first))
    assert pages - linked == {"index.md"}


def _leaves(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        values = entry.values() if isinstance(entry, dict) else entry
        for value in values:
            yield from _leaves(value)
