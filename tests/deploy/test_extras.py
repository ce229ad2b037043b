"""Optional packages: the core runs without them, and each command says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scenesweep.jobs.cli import main
from tests.polygons import write_world
from tests.rasters import paint_squares, write_raster
from tests.small_models import a_model

ROOT = Path(__file__).parents[2]
EXTRAS = {
    "train": ("faster_coco_eval", "matplotlib", "tensorboard", "torchmetrics"),
    "query": ("duckdb",),
    "h3": ("h3",),
    "timm": ("timm",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}
WITHOUT_EXTRAS = """
import json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
from scenesweep.jobs.cli import main
for command in json.loads(sys.argv[2]):
    assert main(command) == 0, command
"""


def test_the_core_runs_without_any_extra(tmp_path: Path) -> None:
    a_model(tmp_path)
    write_raster(
        tmp_path / "scene.tif",
        paint_squares(64, 64, largest=10, seed=1)[0],
        tags={"TIFFTAG_DATETIME": "2026:11:20 10:00:00"},
    )
    write_world(tmp_path / "area.geojson")
    commands = (
        ["detect", "scene.tif", "--model=m.safetensors", "--out=OUT", "--address=none"],
        ["inspect", "scene.tif", "--model=m.safetensors"],
        ["models", "show", "m.safetensors"],
        ["verify", "OUT"],
        ["compact", "OUT"],
        ["count", "OUT", "--by=area.geojson"],
        ["track", "OUT"],
        ["view", "OUT"],
    )
    blocked = [name for names in EXTRAS.values() for name in names]
    words = [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(blocked), json.dumps(commands)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "package", "command"),
    [
        ("query", "duckdb", ("query", "OUT")),
        ("h3", "h3", ("count", "OUT", "--h3=7")),
        ("train", "tensorboard", ("train", "--images=i", "--labels=l", "--card=c", "--out=o")),
        ("train", "matplotlib", ("train", "--images=i", "--labels=l", "--card=c", "--out=o")),
        ("train", "torchmetrics", ("evaluate", "--images=i", "--labels=l", "--model=naip-trees")),
        ("train", "faster_coco_eval", ("evaluate", "--images=i", "--labels=l", "--model=m")),
    ],
)
def test_a_missing_package_is_one_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: str,
    package: str,
    command: tuple[str, ...],
) -> None:
    for name in (package, *(name for name in sys.modules if name.startswith(f"{package}."))):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"scenesweep {command[0]}: the package {package} is not installed; install it with: "
        f'pip install "scenesweep[{extra}]"\n'
    )


def test_the_extras_of_the_project_are_these() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        extra: {line.partition(">")[0].replace("-", "_") for line in lines}
        for extra, lines in project["optional-dependencies"].items()
    }
    assert extras.pop("all") == {f"scenesweep[{','.join(extras)}]"}
    assert extras == {name: set(packages) for name, packages in EXTRAS.items()}
