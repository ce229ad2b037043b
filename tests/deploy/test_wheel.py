"""The built wheel in a fresh environment without the checkout: the command and the imports work."""

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
import yaml

import scenesweep
from tests.rasters import write_raster

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "model", "pipeline", "jobs", "scenesweep")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the sources, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, folder / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", "dist", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path) -> Path:
    """Make an environment with the wheel; its requirements come from the running environment."""
    folder = wheel.parent / "env"
    venv.create(folder, symlinks=True)
    bin_folder = folder / "bin"
    python = str(bin_folder / "python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", str(wheel))
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return bin_folder


def test_the_wheel_holds_scenesweep_with_types_weights_and_cards_only(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"scenesweep"}
    rooms = ("pipeline", "model", "jobs")
    modules = {
        f"scenesweep/{path.relative_to(ROOT)}"
        for room in rooms
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".json")
    }
    answers = "scenesweep/pipeline/runs/canary_answers.json"
    assert {"scenesweep/__init__.py", "scenesweep/py.typed", answers, *modules} <= names
    assert "scenesweep/model/weights/naip-trees.safetensors" in modules
    assert "scenesweep/pipeline/results/view/page/index.html" in modules


def test_the_version_is_the_one_of_the_package(wheel: Path) -> None:
    assert wheel.name.startswith(f"scenesweep-{scenesweep.__version__}-")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == scenesweep.__version__
    assert f"## {scenesweep.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_a_script_runs_beside_the_users_own_model_jobs_and_pipeline(
    bin_folder: Path, tmp_path: Path
) -> None:
    write_scene(tmp_path / "scene.tif")
    for name in ("model", "jobs", "pipeline"):
        (tmp_path / f"{name}.py").write_text(f"MINE = '{name}'\n")
    (tmp_path / "mine.py").write_text(
        "import jobs, model, pipeline\n"
        "from scenesweep import Detector, Settings, errors, sweep\n"
        "run = sweep('scene.tif', 'naip-trees', 'out', publish={'quicklook': False})\n"
        "print(model.MINE, jobs.MINE, pipeline.MINE, run.results[0].status)\n"
        "print(Detector.load('naip-trees').card.name, Settings().merge.stitch)\n"
        "try:\n"
        "    sweep('scene.tif', 'none', 'out')\n"
        "except errors.ModelError as error:\n"
        "    print(error)\n"
    )
    printed = run(str(bin_folder / "python"), "mine.py", cwd=tmp_path).splitlines()
    assert printed[:2] == ["model jobs pipeline done", "naip-trees False"]
    assert printed[2].startswith("model 'none': expected a file")


def test_the_command_works_away_from_the_checkout(bin_folder: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "scene.tif")
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


def write_scene(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (4, 96, 96), np.uint8)
    write_raster(path, pixels, descriptions=("red", "green", "blue", "nir"))


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
