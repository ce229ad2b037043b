"""The built wheel, installed where no checkout is: the command is there and works."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.rasters import write_raster

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "model", "pipeline", "jobs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources, so that nothing of the build lies in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", "dist", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path) -> Path:
    """A fresh environment with the wheel alone; what it requires is taken from this one."""
    folder = wheel.parent / "env"
    venv.create(folder, symlinks=True)
    bin_folder = folder / "bin"
    python = str(bin_folder / "python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", str(wheel))
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return bin_folder


def test_types_weights_and_cards_are_in_it_and_tests_are_not(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {"model", "pipeline", "jobs"}
    assert {f"{package}/py.typed" for package in packages} <= names
    assert {"model/weights/naip-trees.safetensors", "model/cards/naip-trees.yaml"} <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == packages
    modules = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules <= names


def test_the_command_works_away_from_the_checkout(bin_folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (4, 96, 96), np.uint8)
    bands = ("red", "green", "blue", "nir")
    write_raster(tmp_path / "scene.tif", pixels, descriptions=bands)
    where = run(
        str(bin_folder / "python"),
        "-c",
        "import scenesweep; print(scenesweep.__file__)",
        cwd=tmp_path,
    )
    assert where.startswith(str(bin_folder.parent))
    command = str(bin_folder / "scenesweep")
    assert run(command, "models", "list", cwd=tmp_path).startswith("naip-trees\t")
    inspected = run(
        command, "inspect", "scene.tif", "--model", "naip-trees", "--json", cwd=tmp_path
    )
    assert json.loads(inspected)["cut"]["windows"] == 1
    swept = ("detect", "scene.tif", "--model", "naip-trees", "--out", "out", "--address", "none")
    assert "scenes: 1 done" in run(command, *swept, cwd=tmp_path)
    assert (tmp_path / "out/detections/date=unknown/scene.parquet").is_file()


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
