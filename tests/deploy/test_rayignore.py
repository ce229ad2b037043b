"""What `ray job submit --working-dir .` sends of a checkout, packed by Ray's own function."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "model", "jobs")


def test_ray_packs_each_source_file_once_under_scenesweep(tmp_path: Path) -> None:
    checkout, package = tmp_path / "checkout", tmp_path / "package.zip"
    for name in (*ROOMS, "scenesweep", "tests", "docs"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True)
    for name in (".rayignore", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout / name)
    create_package(str(checkout), package, include_gitignore=True)
    with zipfile.ZipFile(package) as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}
    sources = {
        f"scenesweep/{path.relative_to(ROOT)}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names
    assert {name.split("/")[0] for name in names} == {
        "scenesweep",
        "pyproject.toml",
        ".gitignore",
        ".rayignore",
    }
