"""The API: one call that does what the command does, and packages that stay light until then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import torch

from scenesweep import Detector, sweep
from scenesweep.jobs import cli
from scenesweep.pipeline.engine import local
from scenesweep.pipeline.errors import Exit, ModelError, UsageError
from scenesweep.pipeline.flow import make_detector
from scenesweep.pipeline.settings import Settings
from scenesweep.pipeline.sweep import _expects_work, take_order
from tests.pipeline.raster.test_raster import apart
from tests.rasters import make_card, make_job, paint_squares, write_raster
from tests.small_models import a_model
from tests.sweeps import digests


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(200, 150, largest=10, seed=1)
    return write_raster(tmp_path / "scenes" / "scene.tif", pixels)


def test_a_sweep_is_the_command(tmp_path: Path, scene: Path) -> None:
    model = a_model(tmp_path)
    bad = tmp_path / "bad.tif"
    bad.write_text("text")
    run = sweep([scene, bad], model, tmp_path / "api", publish={"quicklook": False})
    done, failed = run.results
    assert (done.status, failed.status, run.exit_code) == ("done", "failed", 3)
    assert len(gpd.read_parquet(done.files["detections"])) == done.detections > 0
    assert [path.stem for path in (tmp_path / "api" / "runs").iterdir()] == [run.run_id]
    command = ["detect", scene, "--model", tmp_path / "m.safetensors", "--address", "none"]
    more = ["--out", tmp_path / "cli", "--set", "publish.quicklook=false"]
    assert cli.main([*map(str, [*command, *more])]) == 0
    assert digests(tmp_path / "api") == digests(tmp_path / "cli")
    again = sweep(scene.parent, model, tmp_path / "api", publish={"quicklook": False})
    assert [result.status for result in again.results] == ["up-to-date"]


def test_settings_come_as_a_value_or_a_mapping_with_groups_over_them(
    tmp_path: Path, scene: Path
) -> None:
    model = a_model(tmp_path)
    tree: dict[str, Any] = {"scenes": {"ids": "path"}, "publish": {"stac": False}}
    forms: list[Settings | dict[str, Any]] = [tree, Settings.model_validate(tree)]
    for number, given in enumerate(forms):
        out = tmp_path / f"out-{number}"
        (result,) = sweep(scene, model, out, settings=given, publish={"quicklook": False}).results
        assert result.scene_id.startswith("scenes-scene-")
        assert {"item", "detections"} <= result.files.keys()
        assert "quicklook" not in result.files
    with pytest.raises(UsageError, match=r"scenes\.id: there is no such name"):
        sweep(scene, model, tmp_path / "out", settings={"scenes": {"id": "path"}})


def test_wrong_arguments_are_named(tmp_path: Path, scene: Path) -> None:
    model = a_model(tmp_path)
    with pytest.raises(UsageError, match=r"tiling\.chips: there is no such name"):
        sweep(scene, model, tmp_path / "out", tiling={"chips": 3})
    with pytest.raises(UsageError, match="tilings: there is no such name"):
        sweep(scene, model, tmp_path / "out", tilings={"chip": 64})
    with pytest.raises(ModelError, match="expected a file or a built-in model"):
        sweep(scene, "no-model", tmp_path / "out")
    with pytest.raises(UsageError, match="cannot be read"):
        sweep(scene, model, tmp_path / "out", area=tmp_path / "none.geojson")


def test_work_is_expected_unless_all_scenes_are_published(tmp_path: Path, scene: Path) -> None:
    model, out = a_model(tmp_path), tmp_path / "out"
    order = take_order([str(scene)], model, str(out), None, Settings())
    assert _expects_work(order)
    assert sweep(scene, model, out).exit_code == 0
    assert not _expects_work(order)
    write_raster(scene.with_name("new.tif"), np.zeros((1, 64, 64), np.uint8))
    assert _expects_work(take_order([str(scene.parent)], model, str(out), None, Settings()))


def test_a_run_in_views_without_a_calibration_says_so_once(tmp_path: Path, scene: Path) -> None:
    knots = {"square": {"score": [0.2], "probability": [0.5]}}
    model = a_model(tmp_path, make_card(calibration=knots))
    views = {"views": ["plain", "flip-x"]}
    (warning,) = sweep(scene, model, tmp_path / "out", detect=views).warnings
    assert warning.startswith("no probability for square: the model was calibrated in other views")
    assert sweep(scene, model, tmp_path / "out", detect=views).warnings == ()
    assert sweep(scene, model, tmp_path / "plain").warnings == ()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TypeError("a bug")])
def test_what_is_not_the_scenes_fault_is_raised_after_the_report(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """As a function: a loop over folders ends at Ctrl-C. The command has its exit code."""

    def broken(*_: object, **__: object) -> None:
        raise error

    model = a_model(tmp_path)
    monkeypatch.setattr(local, "sweep", broken)
    with pytest.raises(type(error)):
        sweep(scene, model, tmp_path / "api")
    (report,) = (tmp_path / "api" / "runs").iterdir()
    code = Exit.STOPPED if isinstance(error, KeyboardInterrupt) else Exit.BUG
    assert json.loads(report.read_text())["exit_code"] == code
    command = ["detect", scene, "--model", tmp_path / "m.safetensors", "--address", "none"]
    assert cli.main([*map(str, command), "--out", str(tmp_path / "cli")]) == code


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A raster of a format that no scene may have."""
    path = tmp_path / "grid.asc"
    path.write_text("ncols 2\nnrows 1\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n")
    return path


_OPENS = """
import sys, threading, rasterio
from scenesweep import sweep
from scenesweep.pipeline.raster import gdal

def opens():
    try:
        rasterio.open(sys.argv[1]).close()
    except rasterio.errors.RasterioIOError:
        return False
    return True
"""


def test_a_sweep_gives_the_drivers_of_gdal_back(tmp_path: Path, scene: Path, grid: Path) -> None:
    code = """
print(opens())
before = gdal.drivers()
for source in (sys.argv[2], sys.argv[1]):
    (result,) = sweep(source, *sys.argv[3:]).results
    print(result.status, "expected one of the formats" in result.reason)
    print(opens(), gdal.drivers() == before)
"""
    a_model(tmp_path)
    said = apart(_OPENS + code, grid, scene, tmp_path / "m.safetensors", tmp_path / "out")
    assert said.splitlines() == ["True", "done False", "True True", "failed True", "True True"]


def test_drivers_stay_away_until_the_last_sweep_has_ended(grid: Path) -> None:
    code = """
entered, leave = threading.Event(), threading.Event()
def other():
    with gdal.drivers_restored():
        entered.set()
        leave.wait(30)
thread = threading.Thread(target=other)
with gdal.drivers_restored():
    gdal.keep_to([])
    thread.start()
    entered.wait(30)
print(opens())
leave.set()
thread.join()
print(opens())
"""
    assert apart(_OPENS + code, grid).splitlines() == ["False", "True"]


def test_a_detector_is_loaded_by_name() -> None:
    detector = Detector.load("naip-trees", device="cpu")
    found = detector.detect(np.zeros((1, 4, 64, 64), np.uint8))
    assert len(found.capped) == 1
    with pytest.raises(ModelError, match="detector settings: devise: there is no such name"):
        Detector.load("naip-trees", devise="cpu")


_STATE = """
import signal, sys, threading
import rasterio, ray, torch
from scenesweep import sweep
from scenesweep.model.inference import process
from scenesweep.pipeline.raster import gdal

allocator = []
process.keep_freed_memory = lambda: allocator.append("changed")

def state():
    return {
        "drivers": gdal.drivers(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": torch.get_num_threads(),
        "allocator": list(allocator),
    }

def call():
    torch.set_num_threads(3)
    before, modules = state(), dict(sys.modules)
    for address in ("none", "auto", "local"):
        (result,) = sweep(*sys.argv[1:3], sys.argv[3] + address, address=address).results
        after = state()
        print(address, result.status, [name for name in before if after[name] != before[name]])
    print([name for name, module in modules.items() if sys.modules.get(name) is not module])
    compiler = sys.modules.get("torch._dynamo.utils")
    print("stand-in" if compiler is not None and compiler.__spec__ is None else "real or absent")

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
thread = threading.Thread(target=call)
thread.start()
thread.join()
print(ray.is_initialized())
"""


def test_a_sweep_leaves_the_callers_process_as_it_was(tmp_path: Path, scene: Path) -> None:
    """From a thread that is not the main one, where Ray is initialised already."""
    a_model(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", _STATE]
    arguments = [scene, tmp_path / "m.safetensors", tmp_path / "out-"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *("none done []", "auto done []", "local done []"),
        *("[]", "real or absent", "True"),
    ]


def test_the_detector_of_a_sweep_sets_up_its_process(tmp_path: Path) -> None:
    threads, model = torch.get_num_threads(), a_model(tmp_path)
    job = make_job(tmp_path / "out", "detect.device=cpu", "detect.threads=2", card=model.card)
    try:
        torch.set_num_threads(3)
        make_detector(model, job=job)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "module",
    [
        "scenesweep",
        "scenesweep.model",
        "scenesweep.pipeline",
        "scenesweep.jobs.cli",
        "scenesweep.jobs.inspect",
        "scenesweep.jobs.count",
        "scenesweep.jobs.query",
        "scenesweep.jobs.track",
    ],
)
def test_what_is_light_stays_light(module: str) -> None:
    """Neither `scenesweep --help` nor `inspect` waits for torch, Ray or GeoPandas."""
    code = f"import sys, {module}; print({{'torch', 'ray', 'geopandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("out", ["gcs://bucket/out", "abfs://container/out", "s3://"])
def test_another_store_is_no_place_to_write_to(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=rf"^{out}: expected a folder, s3://BUCKET/PREFIX"):
        sweep(scene, a_model(tmp_path), out)
    assert not list(tmp_path.glob("*:"))
