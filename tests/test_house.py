"""The house rules: which room may import which, where Ray is, and what lies at the roots.

The rooms stand in the order of the data's way, the lowest first. A file may import from its own
room and from rooms below it, so there is no cycle and nothing runs back up. Imports inside
functions and under `TYPE_CHECKING` count too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODEL = (
    "errors boxes labelled_chips architecture settings card private_apis losses networks files "
    "inference evaluate training"
)
PIPELINE = (
    "errors versions storage geometry scene raster settings sources planning detection publish "
    "engine runs flow sweep labels results"
)
JOBS = "suburb shared training cli COMMAND"
ROOMS = {
    "model": MODEL.split(),
    "pipeline": PIPELINE.split(),
    "jobs": JOBS.split(),
}
LEVELS = {
    f"{top}.{room}": (list(ROOMS).index(top), ROOMS[top].index(room))
    for top in ROOMS
    for room in ROOMS[top]
}
RAY = {"pipeline/engine/ray.py", "jobs/training/ray.py"}
COMMANDS = [
    "compact",
    "count",
    "crops",
    "demo",
    "detect",
    "evaluate",
    "inspect",
    "metrics",
    "models",
    "query",
    "review",
    "track",
    "train",
    "verify",
    "view",
]
PATHS = "pipeline/storage/paths.py"
LAYOUT = "coverage|tracks|detections|items|checksums|runs|models|quicklooks|compact|aside|lock"
SPELLED = re.compile(
    rf"(\.{{0,2}}/)?({LAYOUT})/\S*|\S*\.work\b\S*|\S*\bdate=\S*"
    r"|\S*\b(catalog|collection|failures)\.json|\S*\bitems\.parquet"
)
"""Text without spaces that is the path of something in OUT, or a part of one."""
FILES = [path for top in ROOMS for path in sorted((ROOT / top).rglob("*.py"))]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Give line and full dotted name of everything that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import"
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


def room_of(dotted: str) -> str:
    """Return `top.room` of a module below `scenesweep`; '' for the root package itself."""
    parts = dotted.removeprefix("scenesweep").strip(".").split(".")
    if len(parts) < 2 or parts[0] not in ROOMS:
        return ""
    if parts[0] == "jobs" and parts[1] in COMMANDS:
        return "jobs.COMMAND"
    return f"{parts[0]}.{parts[1]}"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    here = room_of(f"scenesweep.{module_of(path)}")
    for line, name in imports_of(path):
        where = f"{path.relative_to(ROOT)}:{line}: {name}"
        assert name.split(".")[0] not in ROOMS, f"{where}: import it as scenesweep.{name}"
        there = room_of(name) if name.startswith("scenesweep.") else ""
        if here and there and here != there:
            assert LEVELS[there] < LEVELS[here], f"{where}: {there} is not below {here}"


def test_every_room_has_its_level() -> None:
    rooms = {room_of(f"scenesweep.{module_of(path)}") for path in FILES} - {""}
    assert rooms == set(LEVELS)


def test_ray_is_imported_in_two_files() -> None:
    names = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(name.split(".")[0] == "ray" for _, name in imports_of(path))
    }
    assert names == RAY


def test_roots_are_not_crowded() -> None:
    loose = {top: {path.stem for path in (ROOT / top).glob("*.py")} for top in ROOMS}
    assert len(loose["pipeline"]) <= 8
    assert len(loose["model"]) <= 8
    assert loose["jobs"] == {"__init__", "cli", *COMMANDS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def texts_of(tree: ast.Module) -> Iterator[tuple[ast.Constant, str]]:
    """Yield the string constants of a file, without its docstrings."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node, node.value


def spelled_paths(source: str) -> list[str]:
    """Return the names and paths below OUT that a file spells itself."""
    tree = ast.parse(source)
    joined = {
        id(node.right)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
    }
    return [
        text
        for node, text in texts_of(tree)
        if SPELLED.fullmatch(text) or (id(node) in joined and re.fullmatch(LAYOUT, text))
    ]


@pytest.mark.parametrize(
    "source",
    [
        'out / "checksums"',
        'out / ".work" / name',
        'list_matching(out, "runs/*.json")',
        'f"./models/{name}"',
        'f"geojson/date={day}"',
        'href = "../catalog.json"',
    ],
)
def test_a_spelled_path_is_noticed(source: str) -> None:
    assert spelled_paths(source)


@pytest.mark.parametrize(
    "source", ['"""OUT/.work/lock"""', 'kinds["detections"]', 'print("see OUT/runs for reports")']
)
def test_other_texts_are_no_paths(source: str) -> None:
    assert not spelled_paths(source)


def test_only_one_file_knows_what_lies_where_in_an_output() -> None:
    spelled = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] != "model"
        for name in spelled_paths(path.read_text())
    }
    assert {line for line in spelled if not line.startswith(PATHS)} == set()
