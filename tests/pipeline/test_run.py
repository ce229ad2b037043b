"""The API: one call that does what the command does, and packages that stay light until then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import torch

from jobs import cli
from model import Detector
from pipeline import sweep
from pipeline.errors import ModelError, UsageError
from pipeline.flow import make_detector
from tests.model.test_model import a_model
from tests.pipeline.test_flow import digests
from tests.rasters import make_job, paint_squares, write_raster


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


def test_a_detector_is_loaded_by_name() -> None:
    detector = Detector.load("naip-trees", device="cpu")
    found = detector.detect(np.zeros((1, 4, 64, 64), np.uint8))
    assert len(found.capped) == 1
    with pytest.raises(ModelError, match="detector settings: devise: there is no such name"):
        Detector.load("naip-trees", devise="cpu")


def test_the_detector_of_a_sweep_sets_up_its_process(tmp_path: Path) -> None:
    threads, model = torch.get_num_threads(), a_model(tmp_path)
    job = make_job(tmp_path / "out", "detect.device=cpu", "detect.threads=2", card=model.card)
    try:
        torch.set_num_threads(3)
        make_detector(model, job=job)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("module", ["model", "pipeline", "jobs.cli", "jobs.inspect"])
def test_what_is_light_stays_light(module: str) -> None:
    """Neither `scenesweep --help` nor `inspect` waits for torch, Ray or GeoPandas."""
    code = f"import sys, {module}; print({{'torch', 'ray', 'geopandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("out", ["gs://bucket/out", "az://container/out", "s3://"])
def test_another_store_is_no_place_to_write_to(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=rf"^{out}: expected a folder or s3://BUCKET/PREFIX"):
        sweep(scene, a_model(tmp_path), out)
    assert not list(tmp_path.glob("*:"))
