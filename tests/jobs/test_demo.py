"""The demo has two dates, and each command of docs/tutorial.md runs on it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from scipy.spatial import cKDTree

from scenesweep.jobs import cli
from scenesweep.jobs.suburb import PX_M, paint_two_dates

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
SECTION = PAGE.read_text(encoding="utf-8").partition("## Every command on the demo")[2]
BLOCKS = re.findall(r"^```\n(.*?)^```", SECTION, re.M | re.S)
COMMANDS = [line for text in BLOCKS for line in text.splitlines()]
SIZE = 1536


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run = ("demo", "--size", SIZE, "--out", folder / "demo-out", "--address", "none")
    assert cli.main([*map(str, run)]) == 0
    return folder


def test_both_dates_are_published_with_probabilities(demo: Path) -> None:
    for day, name in (("2026-06-21", f"suburb-{SIZE}-7"), ("2026-06-28", f"suburb-{SIZE}-7-later")):
        table = gpd.read_parquet(
            demo / "demo-out" / "out" / "detections" / f"date={day}" / f"{name}.parquet"
        )
        assert len(table) > 10
        assert table.probability.between(0, 1, inclusive="neither").all()
        order = np.argsort(table.score.to_numpy(), kind="stable")
        assert (np.diff(table.probability.to_numpy()[order]) >= 0).all()


def test_both_dates_lie_on_one_ground_but_for_an_error_of_a_metre(demo: Path) -> None:
    first, later = paint_two_dates(SIZE, seed=7)
    paths = [demo / "demo-out" / f"suburb-{SIZE}-7{end}.tif" for end in ("", "-later")]
    trees = []
    for path, truth in zip(paths, (first.trees, later.trees), strict=True):
        with rasterio.open(path) as scene:
            west, north = scene.bounds.left, scene.bounds.top
        trees.append(truth[:, :2] * (PX_M, -PX_M) + (west, north))
    distance, _ = cKDTree(trees[0]).query(trees[1])
    assert np.median(distance) == pytest.approx(np.hypot(0.9, 0.6), abs=1e-6)
    for path in paths:
        with rasterio.open(path.with_name(f"{path.stem}_scl.tif")) as quality:
            assert quality.res == pytest.approx((10 * PX_M,) * 2)
            assert (9 in quality.read(1)) == ("later" in path.name)


def test_every_command_of_the_tutorial_runs(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo)
    names = [shlex.split(line)[1] for line in COMMANDS]
    left_out = set(cli.COMMANDS) - set(names)
    assert left_out == {"demo", "train", "evaluate"}
    for line in COMMANDS:
        _, *words = shlex.split(line.replace("6144", str(SIZE)))
        assert cli.main(words) == 0, line
        said = capsys.readouterr().out
        assert said, line
        assert not re.search(r"^0 detections", said, re.M), line
    page = demo / "demo-out" / "out" / "review" / "review.html"
    assert page.is_file()
    (clear,) = (demo / "demo-out" / "clear" / "coverage").rglob("*.parquet")
    (masked_km2,) = gpd.read_parquet(clear).masked_km2
    assert masked_km2 > 0
    assert (demo / "new.gpkg").is_file()
