"""The commands as a user types them: outputs, exit codes, no tracebacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import yaml

from scenesweep.jobs import cli
from scenesweep.jobs.demo import compare, write_scene
from scenesweep.jobs.detect import summary
from scenesweep.jobs.suburb import paint_suburb
from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.networks.network import build
from scenesweep.pipeline.runs.report import Run, SceneResult
from tests.rasters import SHARED, make_card, make_job, needs_data, paint_squares, write_raster
from tests.small_models import a_model
from tests.sweeps import digests, tables

CARD3 = make_card(
    name="three", bands=("red", "green", "blue"), chip_px=512, margin_px=32, gsd_m=0.6
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    a_model(tmp_path)
    return str(tmp_path / "m.safetensors")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(200, 150, largest=10, seed=1)
    return write_raster(tmp_path / "scenes" / "scene.tif", pixels)


def detect(*arguments: object) -> int:
    return cli.main(["detect", "--address", "none", *map(str, arguments)])


def test_exit_codes(tmp_path: Path, model: str, scene: Path) -> None:
    out = ("--model", model, "--out", tmp_path / "out")
    bad = tmp_path / "bad.tif"
    bad.write_text("text")
    assert detect(scene, *out) == 0
    assert detect(scene, *out) == 0
    assert detect(scene, bad, *out) == 3
    assert detect(bad, tmp_path / "none.tif", *out) == 4
    assert detect(scene, *out[2:], "--model", "no-model") == 2
    assert detect(scene, *out, "--set", "tiling.chips=3") == 2
    assert detect(scene, *out, "--aoi", tmp_path / "no.geojson") == 2


def test_wrong_usage_shows_no_traceback(
    model: str, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect(scene) == 2
    assert detect(scene, "--model", scene, "--out", tmp_path / "o") == 2
    assert detect(scene, "--model", model, "--out", scene) == 2
    out = ("--model", model, "--out", tmp_path / "o", "--dry-run")
    assert detect(scene, *out, "--address", "non") == 2
    assert detect(scene, *out, "--aoi", "https://127.0.0.1:1/area.geojson") == 2
    said = capsys.readouterr().err
    assert "--address non: expected none, local, auto, ray://HOST:PORT or HOST:PORT" in said
    assert "https://127.0.0.1:1/area.geojson: " in said
    assert "--model is missing: give it, or `model` in --config" in said
    assert "expected a safetensors file" in said
    assert "expected a folder, found a file" in said
    assert "Traceback" not in said


def test_results_are_on_stdout_and_the_report_is_true(
    tmp_path: Path, model: str, scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_text("text")
    out = tmp_path / "out"
    assert detect(scene, bad, "--model", model, "--out", out, "--json") == 3
    said = json.loads(capsys.readouterr().out)
    (report,) = (out / "runs").glob("*.json")
    assert json.loads(report.read_text()) == said
    others = dict.fromkeys(("up-to-date", "quarantined", "unfinished", "in-use"), 0)
    assert said["scenes"] == {"done": 1, "failed": 1, **others}
    done, failed = said["results"]
    assert done["detections"] == said["detections"] == len(gpd.read_parquet(out / "detections"))
    assert done["windows"] == 6 * 4
    assert set(done["seconds"]) == {"plan", "read", "detect", "stage", "publish"}
    assert all(Path(path).is_file() for path in done["files"].values())
    assert "expected one of the formats" in failed["reason"]
    assert said["settings"]["tiling"]["chip"] == 64


def test_a_run_that_was_cut_short_does_not_say_that_nothing_is_there() -> None:
    job = make_job(Path("out"))
    looked = SceneResult("a", "a", "done", windows=1)
    for results, unfinished, said in (
        ((looked,), 0, "none"),
        ((), 2, "none published yet"),
        ((SceneResult("a", "a", "failed"),), 0, "none, because no window has valid pixels"),
    ):
        ended = Run("r", datetime.now(UTC), 1.0, results, unfinished)
        assert f"detections: {said}\n" in summary(ended, job)


def test_a_run_says_once_which_scenes_have_no_date() -> None:
    def run(*days: str) -> Run:
        results = [
            SceneResult(
                "a", "a", "done", files={"detections": f"out/detections/date={d}/a.parquet"}
            )
            for d in days
        ]
        return Run("r", datetime.now(UTC), 1.0, tuple(results))

    job = make_job(Path("out"))
    said = summary(run("unknown", "2026-06-21", "unknown"), job)
    assert said.count("dates: 2 scenes have none -> date=unknown; set scenes.acquired_at") == 1
    assert "dates:" not in summary(run("2026-06-21"), job)


@pytest.mark.parametrize(
    "settings",
    [
        "{}",
        "{scenes: {checksums: record, ids: path, acquired_at: 2026-06-21}}",
        "{publish: {formats: [geojson, flatgeobuf, gpkg, coco], quicklook: true, stac: true}}",
        "{retention: {runs_days: 1, work_days: 1}, merge: {stitch: true}}",
    ],
)
@pytest.mark.parametrize("address", ["none", "local"])
def test_a_dry_run_and_inspect_write_nothing(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, settings: str, address: str
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path = write_raster(folder / "w" / "scene.tif", paint_squares(200, 150, largest=9, seed=1)[0])
    night = folder / "night.yaml"
    night.write_text(settings)
    before = sorted(folder.rglob("*"))
    asked = [path, "--config", night, "--model", model]
    assert detect(*asked, "--out", "out", "--dry-run", "--address", address) == 0
    assert cli.main(["inspect", *map(str, asked)]) == 0
    assert sorted(folder.rglob("*")) == before


def test_inspect_says_what_a_scene_is_and_how_it_is_cut(
    model: str, scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(scene), "--model", model, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["id"], said["width"], said["crs"]) == ("scene", 200, "EPSG:32611")
    assert said["gsd_m"] == pytest.approx([0.6, 0.6], rel=1e-3)
    assert said["cut"]["windows"] == 24
    assert said["cut"]["shards"] == 24
    assert said["valid_share"] == 1
    assert cli.main(["inspect", str(scene)]) == 0
    assert "200 x 150 px (0.03 Mpx)" in capsys.readouterr().out
    assert cli.main(["inspect", str(scene) + ".no"]) == 4


def test_models_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list"]) == 0
    assert capsys.readouterr().out.startswith("naip-trees\ttree\t0.6 m\t")
    assert cli.main(["models", "show", "naip-trees"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["classes"] == ["tree"]


def test_a_model_is_trained_and_judged_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image,x,y"]
    for i in range(4):
        pixels, boxes = paint_squares(64, 64, largest=12, seed=i, count=5)
        write_raster(tmp_path / "chips" / f"c{i}.tif", pixels)
        lines += [f"c{i},{int(b[0] + b[2]) // 2},{int(b[1] + b[3]) // 2}" for b in boxes]
    (tmp_path / "points.csv").write_text("\n".join(lines))
    (tmp_path / "all.txt").write_text("c0\nc1\nc2\nc3\n")
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(make_card().model_dump(mode="json")))
    common = ["--images", tmp_path / "chips", "--labels", tmp_path / "points.csv"]
    lists = ["--train-list", tmp_path / "all.txt", "--val-list", tmp_path / "all.txt"]
    more = ["--card", card, "--box-m", 7.2, "--epochs", 1, "--out", tmp_path / "t.safetensors"]
    assert cli.main(["train", *map(str, [*common, *lists, *more])]) == 0
    judged = ["evaluate", *common, "--list", tmp_path / "all.txt", "--json"]
    capsys.readouterr()
    assert cli.main([*map(str, [*judged, "--model", tmp_path / "t.safetensors"])]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {"card", "best"}
    (tmp_path / "points.csv").write_text("a,b\n1,2\n")
    assert cli.main([*map(str, [*judged, "--model", tmp_path / "t.safetensors"])]) == 2


def test_the_demo_scene_is_swept_and_compared_with_its_truth(tmp_path: Path) -> None:
    suburb = paint_suburb(512, seed=3)
    scene = tmp_path / "suburb.tif"
    write_scene(scene, suburb)
    assert detect(scene, "--model", "naip-trees", "--out", tmp_path / "out") == 0
    (table,) = (tmp_path / "out" / "detections").rglob("*.parquet")
    assert table.parent.name == "date=2026-06-21"
    assert compare(table, suburb.trees).f_score > 0.6


@pytest.mark.faults
def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path: Path, model: str) -> None:
    """kill -9 of the driver of a Ray run, then the same command again, against a plain loop.

    With a network; `tests/faults/test_kills.py` does it with a detector of squares.
    """
    pixels, _ = paint_squares(640, 640, largest=10, seed=1)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    settings = ["tiling.shard=1", "engine.batch_windows=1", "engine.detectors=1"]

    def start(out: Path, address: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "scenesweep.jobs.detect", str(scene), "--model", model]
        command += ["--out", str(out), "--address", address]
        command += [word for one in settings for word in ("--set", one)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    clean, killed = tmp_path / "clean", tmp_path / "killed"
    assert start(clean, "none").wait() == 0
    run = start(killed, "local")
    deadline = time.monotonic() + 120
    while len(list(killed.rglob("part-*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(2)  # its workers notice and end
    staged = len(list(killed.rglob("part-*.parquet")))
    assert staged >= 3
    assert digests(killed) == {}
    assert start(killed, "local").wait() == 0
    (report,) = (killed / "runs").glob("*.json")
    assert json.loads(report.read_text())["results"][0]["resumed_shards"] >= staged
    assert digests(killed) == digests(clean)
    assert len(tables(digests(clean))) == 1


@needs_data
def test_scenes_with_the_wrong_bands_are_refused_one_by_one(tmp_path: Path) -> None:
    scenes = [
        SHARED / "banepa_buildings" / "scene.tif",
        SHARED / "sentinel2_ships" / "images",
    ]
    assert detect(*scenes, "--model", "naip-trees", "--out", tmp_path / "out") == 4
    (report,) = (tmp_path / "out" / "runs").glob("*.json")
    reasons = [result["reason"] for result in json.loads(report.read_text())["results"]]
    assert len(reasons) == 11
    assert all("asks for 4 bands" in reason for reason in reasons)
    assert all("the scene has 3 (red, green, blue); missing: nir" in reason for reason in reasons)


@needs_data
def test_a_card_of_three_bands_runs_on_them_at_its_own_scale(tmp_path: Path) -> None:
    save_model(tmp_path / "three.safetensors", CARD3, build(CARD3).state_dict())
    ships = sorted((SHARED / "sentinel2_ships" / "images").glob("*.tif"))[:2]
    out = tmp_path / "out"
    scene = SHARED / "banepa_buildings" / "scene.tif"
    assert detect(scene, "--model", tmp_path / "three.safetensors", "--out", out) == 0
    (report,) = (out / "runs").glob("*.json")
    (result,) = json.loads(report.read_text())["results"]
    shrink = 0.1315 / 0.6
    assert result["megapixels"] == pytest.approx(2048 * 4096 * shrink**2 / 1e6, rel=0.05)
    coarse = make_card(name="ten", bands=("red", "green", "blue"), gsd_m=8.6)
    save_model(tmp_path / "ten.safetensors", coarse, build(coarse).state_dict())
    assert detect(*ships, "--model", tmp_path / "ten.safetensors", "--out", out) == 0


@needs_data
def test_ray_and_the_plain_loop_publish_the_same_bytes_of_real_scenes(tmp_path: Path) -> None:
    scenes = SHARED / "naip_trees" / "images" / "claremont_2018_1?.tif"
    runs = {"loop": ("none", 1), "two": ("local", 2)}
    for name, (address, detectors) in runs.items():
        more = ["--address", address, "--set", f"engine.detectors={detectors}"]
        arguments = [scenes, "--model", "naip-trees", "--out", tmp_path / name, *more]
        assert cli.main(["detect", *map(str, arguments)]) == 0
    assert len(gpd.read_parquet(tmp_path / "loop" / "detections")) > 100
    assert digests(tmp_path / "two") == digests(tmp_path / "loop")


@needs_data
def test_seams_do_not_show_on_a_real_scene(tmp_path: Path) -> None:
    """Other chips, other margins: nearly all detections stay at their place."""
    chip = SHARED / "naip_trees" / "images" / "claremont_2018_1.tif"
    for name, chip_px in (("whole", 256), ("cut", 128)):
        cut = ("--set", f"tiling.chip={chip_px}", "--set", "detect.precision=float32")
        assert detect(chip, "--model", "naip-trees", "--out", tmp_path / name, *cut) == 0
    whole, cut_up = (gpd.read_parquet(tmp_path / n / "detections") for n in ("whole", "cut"))
    a, b = (np.stack([f.x_min + f.x_max, f.y_min + f.y_max], 1) / 2 for f in (whole, cut_up))
    nearest = np.linalg.norm(a[:, None] - b[None], axis=2).min(axis=1)
    assert len(a) > 20
    assert (nearest < 3).mean() > 0.85
    assert abs(len(a) - len(b)) <= 0.15 * len(a)
