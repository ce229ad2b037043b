"""The examples of docs/inputs.md, run as they are written there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine
from rasterio import windows
from shapely.geometry import mapping

from scenesweep.jobs import cli
from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.networks.network import build
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.raster.assemble import inspect_scene
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.pixels import open_scene
from scenesweep.pipeline.scene import RasterFile, SceneRef
from tests.catalogs import make_item, serve_api
from tests.pipeline.storage.test_network import put
from tests.rasters import SHARED, TRANSFORM, make_card, needs_data, paint_squares, write_raster
from tests.servers import FileServer, files_served, s3_served
from tests.sweeps import digests, tables

PAGE = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("scenesweep")
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FileServer, Path, str]]:
    """Make everything that the page names: files, a web server, a bucket, a STAC API."""
    root = tmp_path_factory.mktemp("world")
    pixels, _ = paint_squares(120, 100, largest=10, seed=1)
    three = np.concatenate([pixels] * 3)
    names = ("red", "green", "blue")
    scene = write_raster(root / "scenes" / "harbour.tif", three, descriptions=names)
    write_raster(root / "more" / "a.tif", three, descriptions=names)
    (root / "tonight.txt").write_text("# tonight\nscenes/harbour.tif\n")
    for name in ("west", "east"):
        transform = TRANSFORM @ Affine.translation(120 * (name == "east"), 0)
        path = root / "pieces" / f"{name}.tif"
        write_raster(path, three, descriptions=names, transform=transform)
    for band in ("B02", "B03", "B04"):
        write_raster(root / "S2A" / f"T32TQM_20260621_{band}_10m.tif", pixels)
    entries = re.findall(r"```yaml\n(- .*?)```", PAGE, re.DOTALL)[0]
    (root / "scenes.yaml").write_text(entries)
    outline = footprint(inspect(str(scene)))
    outline = footprint(inspect(str(scene)))
    assert outline is not None
    (root / "area.geojson").write_text(json.dumps(mapping(outline)))
    for name in ("land.gpkg", "closed.geojson", "platforms.geojson"):
        gpd.GeoDataFrame(geometry=[outline], crs="OGC:CRS84").to_file(root / name)
    cloudy = np.concatenate([three, np.full_like(pixels, 4)])
    write_raster(root / "night" / "harbour_SR.tif", cloudy, descriptions=(*names, "cloud"))
    write_raster(root / "night" / "harbour_udm2.tif", np.zeros((8, 100, 120), np.uint8))
    write_raster(root / "S2A" / "scl.tif", np.full((1, 100, 120), 4, np.uint8))
    item = make_item("harbour-1", {"image": {"href": "scenes/harbour.tif"}}, gsd=0.6)
    (root / "item.json").write_text(json.dumps(item))
    with files_served(root) as server, s3_served() as s3:
        items = [
            make_item(
                f"night-{n}",
                {
                    "visual": {"href": f"{server.url}/scenes/harbour.tif", "roles": ["visual"]},
                    "scl": {"href": f"{server.url}/S2A/scl.tif"},
                    **{
                        band: {"href": f"{server.url}/S2A/T32TQM_20260621_{band}_10m.tif"}
                        for band in ("B02", "B03", "B04")
                    },
                },
                **{"eo:cloud_cover": 30 * n},
            )
            for n in range(2)
        ]
        for one in items:
            one["collection"] = "sentinel-2-l2a"
        collection = {"type": "FeatureCollection", "features": items}
        (root / "items.json").write_text(json.dumps(collection))
        serve_api(server, items)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{s3}")
            patch.setenv("AWS_ACCESS_KEY_ID", "someone")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            put(f"http://{s3}", "night/harbour.tif", scene.read_bytes())
        card = make_card(name="three", bands=names)
        save_model(root / "ships.safetensors", card, build(card).state_dict())
        yield server, root, f"http://{s3}"


def test_the_page_has_examples() -> None:
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_of_the_page_runs(
    world: tuple[FileServer, Path, str],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, root, s3 = world
    monkeypatch.chdir(root)
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    here = command.replace("https://example.org", server.url).replace("s3://bucket", "s3://scenes")
    words = shlex.split(here)[1:]
    if words[0] == "detect":
        words += ["--dry-run"] * ("--dry-run" not in words)
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "would fail" not in said
    assert "harbour" in said or "T32TQM" in said or "port" in said or "night" in said


def test_a_scene_of_a_catalog_is_swept_and_then_up_to_date(
    world: tuple[FileServer, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, root, _ = world
    asked = ["detect", f"{server.url}/items.json", "--bands-from", "B04,B03,B02"]
    asked += ["--max-cloud", "20", "--model", str(root / "ships.safetensors")]
    asked += ["--out", str(tmp_path / "out"), "--address", "none", "--json"]
    for status in ("done", "up-to-date"):
        assert cli.main(asked) == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        assert (result["scene_id"], result["status"]) == ("night-0", status)
    (table,) = (tmp_path / "out" / "detections").rglob("*.parquet")
    assert table.relative_to(tmp_path / "out").as_posix() == (
        "detections/date=2026-06-21/night-0.parquet"
    )


def test_a_ray_run_of_such_scenes_publishes_what_the_loop_does(
    world: tuple[FileServer, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, root, _ = world
    monkeypatch.chdir(root)
    for address in ("none", "local"):
        asked = ["detect", "@scenes.yaml", f"{server.url}/more/a.tif", "--address", address]
        asked += ["--model", "ships.safetensors", "--out", str(tmp_path / address)]
        assert cli.main([*asked, "--set", "scenes.ids=path"]) == 0
    assert len(tables(digests(tmp_path / "none"))) == 5
    assert digests(tmp_path / "local") == digests(tmp_path / "none")


@needs_data
def test_a_mosaic_of_real_chips_is_their_vrt(tmp_path: Path) -> None:
    folder = SHARED / "naip_trees"
    chips = sorted(map(str, (folder / "images").glob("claremont_2018_*.tif")))
    mosaic = inspect_scene(SceneRef(tuple(map(RasterFile, chips)), "claremont", "mosaic"))
    vrt = inspect(str(folder / "scenes" / "claremont_2018.vrt"), drivers=("VRT",))
    assert (mosaic.width, mosaic.height) == (vrt.width, vrt.height)
    assert mosaic.transform is not None
    assert vrt.transform is not None
    assert mosaic.transform.almost_equals(vrt.transform, 1e-6)
    with open_scene(mosaic) as ours, open_scene(vrt) as gdals:
        seen = 0
        for row in range(0, vrt.height, 2048):
            for column in range(0, vrt.width, 2048):
                size = min(2048, vrt.width - column), min(2048, vrt.height - row)
                window = windows.Window(column, row, *size)
                mask = gdals.dataset_mask(window=window)
                if mask.any():
                    seen += 1
                    np.testing.assert_array_equal(ours.dataset_mask(window=window), mask)
                    read = ours.read([4, 1], window=window)
                    np.testing.assert_array_equal(read, gdals.read([4, 1], window=window))
                if seen == 4:
                    return
    pytest.fail("nothing was compared")


def test_no_scene_and_stray_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect"]) == 2
    assert (
        "no scenes: expected SCENE, --stac-api, or `sources` in --config" in capsys.readouterr().err
    )
    assert cli.main(["inspect", "a.tif", "--datetime", "2026"]) == 2
    assert "--datetime needs --stac-api" in capsys.readouterr().err
