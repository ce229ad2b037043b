"""How rasters are opened: by which drivers, within which limits, and what reaches nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy

import scenesweep.pipeline
from scenesweep.pipeline.errors import SceneError, UnreadableScene, printable
from scenesweep.pipeline.planning.plan import SHARD_BYTES, plan_scene
from scenesweep.pipeline.raster import gdal
from scenesweep.pipeline.raster import opening as raster
from scenesweep.pipeline.raster.chips import read_shard
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.raster.inspect import _GRID_FILE, inspect
from scenesweep.pipeline.raster.opening import open_raster, reaches_network
from scenesweep.pipeline.scene import stem
from tests.rasters import make_card, make_job, ref_of, write_raster

ROOT = Path(scenesweep.__file__).parents[1]
PIXELS = np.ones((1, 40, 60), np.uint8)


def apart(code: str, *arguments: str | Path) -> str:
    """Run code in a process of its own: drivers are of a process."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_the_named_drivers_are_there(tmp_path: Path) -> None:
    """Also when rasterio was used before, after a WarpedVRT, and for GDAL of another package."""
    path = write_raster(tmp_path / "s.tif", PIXELS)
    code = """
import sys, pyogrio, rasterio
from rasterio.vrt import WarpedVRT
from scenesweep.pipeline.raster import gdal
from scenesweep.pipeline.raster.opening import open_raster
with rasterio.open(sys.argv[1]) as dataset:
    WarpedVRT(dataset, crs="EPSG:4326").close()
before = len(gdal.drivers())
for _ in range(2):
    with open_raster(sys.argv[1]) as dataset:
        print(before > 100, *gdal.drivers())
        WarpedVRT(dataset, crs="EPSG:4326").close()
print("GPKG" in pyogrio.list_drivers(), "VRT" in gdal.drivers())
with open_raster(sys.argv[1], ("GTiff", "VRT")):
    print("VRT" in gdal.drivers())
"""
    allowed = f"True {' '.join(sorted({*DRIVERS, 'MEM'}))}"
    assert apart(code, path).splitlines() == [allowed, allowed, "True True", "True"]


def test_a_file_that_is_read_on_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it changed or its reader failed; of several, the last ones do."""
    monkeypatch.setattr(raster, "_kept", {})
    monkeypatch.setattr(raster, "_MOST_KEPT", 2)
    paths = [str(write_raster(tmp_path / f"{i}.tif", PIXELS * (i + 1))) for i in range(4)]

    def opened(path: str, keep: str = "a") -> rasterio.DatasetReader:
        with open_raster(path, keep=keep) as dataset:
            assert (dataset.read() == paths.index(path) + 1).all()
        return dataset

    first = opened(paths[0])
    assert opened(paths[0]) is first
    assert not first.closed
    assert opened(paths[0], "b") is not first
    assert opened(paths[1], "").closed
    with pytest.raises(UnreadableScene), open_raster(paths[0], keep="a") as dataset:
        raise rasterio.errors.RasterioIOError("a block is broken")
    assert dataset is first
    assert first.closed
    last = [opened(path) for path in paths[1:]]
    assert [dataset.closed for dataset in last] == [True, False, False]
    with open_raster(paths[2], keep="a") as one, open_raster(paths[2], keep="a") as other:
        assert one is last[1]
        assert other is not one  # each has its own


def test_a_vrt_that_is_named_may_read_what_it_names(tmp_path: Path) -> None:
    gdal.keep_to(["VRT"])
    vrt = tmp_path / "s.vrt"
    copy(write_raster(tmp_path / "s.tif", PIXELS), vrt, driver="VRT")
    with open_raster(str(vrt), ("VRT", "GTiff")) as dataset:
        assert (dataset.read() == 1).all()


@pytest.mark.parametrize(
    ("href", "remote"),
    [
        ("https://a.b/c.tif", True),
        ("s3://bucket/key.tif", True),
        ("/vsicurl/http://a/b.tif", True),
        ("/vsizip/vsicurl/http://a/b.zip/c.tif", True),
        ("zip+https://a/b.zip!c.tif", True),
        ("/data/a.tif", False),
        ("file:///data/a.tif", False),
        ("/vsizip/data/a.zip/b.tif", False),
        ("a:b.tif", False),
    ],
)
def test_the_network_is_for_scenes_that_were_named_so(href: str, remote: bool) -> None:
    assert reaches_network(href) is remote
    closed = "CPL_VSIL_CURL_ALLOWED_EXTENSIONS" in gdal.options(remote=remote)
    assert closed is not remote


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MAX_BANDS", 2, "claims 3 bands, at most 2"),
        ("MAX_PIXELS", 2399, "claims 60 x 40 pixels, at most 2,399"),
        ("MAX_BLOCKS", 1, "claims 2 blocks of 60 x 20 pixels"),
        ("MAX_BLOCK_BYTES", 2399, "blocks of 60 x 20 pixels and 3 bands take"),
    ],
)
def test_claims_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, said: str
) -> None:
    pixels = np.ones((3, 40, 60), np.uint8)
    path = write_raster(tmp_path / "s.tif", pixels, blockysize=20, interleave="pixel")
    inspect(str(path))
    monkeypatch.setattr(raster, limit, value)
    with pytest.raises(UnreadableScene, match=said):
        inspect(str(path))


def test_a_shard_that_does_not_fit_is_made_smaller_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raster(tmp_path / "s.tif", np.ones((1, 600, 600), np.float32))
    job = make_job(tmp_path / "out", "tiling.shard=4")
    whole = plan_scene(ref_of(path), make_job(tmp_path / "out")).layout.grid.side
    monkeypatch.setattr("scenesweep.pipeline.planning.plan.SHARD_BYTES", SHARD_BYTES / 2000)
    with pytest.raises(
        SceneError, match=r"4 x 4 windows of 64 px takes \d MB \(1 bands of float32"
    ):
        plan_scene(ref_of(path), job)
    monkeypatch.setattr("scenesweep.pipeline.planning.plan.SHARD_BYTES", 100_000)
    assert (
        plan_scene(ref_of(path), make_job(tmp_path / "out")).layout.grid.side < whole or whole == 1
    )
    monkeypatch.setattr("scenesweep.pipeline.planning.plan.SHARD_BYTES", 1000)
    with pytest.raises(SceneError, match="one window of 64 px takes"):
        plan_scene(ref_of(path), make_job(tmp_path / "out"))


@pytest.mark.parametrize("gsd_m", [0.2, 2.1])
def test_resampling_in_strips_is_resampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gsd_m: float
) -> None:
    """Strips of a few rows give the pixels that one read gives."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 300, 350), np.uint8)
    path = write_raster(tmp_path / "s.tif", pixels, nodata=7)
    card = make_card(gsd_m=gsd_m, bands=(1, 2))
    plan = plan_scene(ref_of(path), make_job(tmp_path / "out", "tiling.shard=2", card=card))
    shards = [plan.layout.shard(int(number)) for number in plan.layout.numbers[:6]]
    whole = [read_shard(plan.source, shard) for shard in shards]
    monkeypatch.setattr("scenesweep.pipeline.raster.chips._STRIP_BYTES", 3000)
    for shard, expected in zip(shards, whole, strict=True):
        found = read_shard(plan.source, shard)
        np.testing.assert_array_equal(found.valid, expected.valid)
        np.testing.assert_array_equal(found.pixels, expected.pixels)


@pytest.mark.parametrize("grid", ["/tmp/grid.gsb", "https://a/b.tif", "..\\\\grid.gsb"])
def test_a_crs_that_names_a_file_is_refused(grid: str) -> None:
    base = rasterio.CRS.from_epsg(4326).to_wkt()
    wkt = f'BOUNDCRS[SOURCECRS[{base}],PARAMETERFILE["Latitude file","{grid}"]]'
    assert _GRID_FILE.search(wkt)
    assert _GRID_FILE.search(f'EXTENSION["PROJ4","+proj=longlat +nadgrids={grid}"]')
    assert not _GRID_FILE.search('EXTENSION["PROJ4","+proj=merc +nadgrids=@null +wktext"]')
    assert not _GRID_FILE.search(rasterio.CRS.from_epsg(3857).to_wkt())


def test_ids_of_long_names_are_short_and_differ() -> None:
    one, other = stem("n" * 250 + "1.tif"), stem("n" * 250 + "2.tif")
    assert one != other
    assert len(one) == len(other) == 120
    assert stem("caf\udce9" * 60 + ".tif") == stem("caf\udce9" * 60 + ".tif")


def test_names_cannot_break_a_line_or_steer_a_terminal() -> None:
    assert printable("a\nb\x1b[31m\u202ec\udce9 é 北") == r"a\nb\x1b[31m\u202ec\udce9 é 北"


def test_nothing_reaches_a_shell() -> None:
    """No module of the program starts another program."""
    forbidden = {"subprocess", "pty", "popen2", "commands"}
    for path in (
        p for folder in ("model", "pipeline", "jobs") for p in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, path
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                called = f"{node.value.id}.{node.attr}"
                assert not called.startswith(("os.system", "os.popen", "os.spawn", "os.exec")), path
            elif isinstance(node, ast.Name):
                assert node.id not in ("eval", "exec"), path
