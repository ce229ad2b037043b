"""Areas of interest: what is looked at, recorded, refused, and not replaced without asking."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from pyproj import Transformer
from rasterio.transform import from_origin
from shapely import Geometry, Polygon
from shapely.geometry import box, mapping, shape

from scenesweep import sweep as api
from scenesweep.jobs import cli
from scenesweep.pipeline.errors import NoGeoreference, UsageError
from scenesweep.pipeline.planning.area import (
    area_in_scene,
    area_sha256,
    checked_area,
    is_narrower,
    read_area,
)
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.results.view.pack import read_detections
from scenesweep.pipeline.results.view.page import scene_facts
from scenesweep.pipeline.results.view.published import find_published
from scenesweep.pipeline.runs.report import run_summary
from scenesweep.pipeline.settings import load_settings
from scenesweep.pipeline.sweep import carry_out, take_order
from tests.rasters import TRANSFORM, UTM, make_job, paint_squares, write_raster
from tests.small_models import a_model
from tests.sweeps import digests, published, sweep

SIDE = 300
ELSEWHERE = from_origin(500_000, 3_775_000, 0.6, 0.6)


def on_ground(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    """Return a rectangle of scene pixels in longitude and latitude."""
    ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    back = Transformer.from_crs(UTM, "OGC:CRS84", always_xy=True)
    return Polygon([back.transform(*(TRANSFORM @ point)) for point in ring])


LEFT, MIDDLE = on_ground(-20, -20, 150, SIDE + 20), on_ground(100, 100, 200, 200)
AROUND = on_ground(-20, -20, SIDE + 20, SIDE + 20)
FAR = box(10, 50, 11, 51)
Detect = Callable[..., int]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(SIDE, SIDE, largest=10, seed=9, count=200)
    return write_raster(tmp_path / "scene.tif", pixels)


@pytest.fixture
def far(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(SIDE, SIDE, largest=10, seed=4)
    return write_raster(tmp_path / "far.tif", pixels, transform=ELSEWHERE)


@pytest.fixture
def detect(tmp_path: Path, scene: Path) -> Detect:
    """Return a function that sweeps the scene on an area from the command line."""
    a_model(tmp_path)

    def run(area: Polygon, *more: object) -> int:
        path = tmp_path / "aoi.geojson"
        path.write_text(json.dumps(mapping(area)))
        options = [word for word in more if str(word).startswith("--")]
        scenes = [word for word in more if word not in options]
        asked = [
            scene,
            *scenes,
            *options,
            "--model",
            tmp_path / "m.safetensors",
            "--out",
            tmp_path / "out",
        ]
        asked += ["--address", "none", "--set", "publish.quicklook=false", "--aoi", path]
        return cli.main(["detect", *map(str, asked)])

    return run


def recorded_area(out: Path) -> Any:
    (table,) = (out / "detections").rglob("*.parquet")
    return json.loads((pq.read_schema(table).metadata or {})[b"scenesweep"])["area"]


def rings_of_page(out: Path) -> Any:
    page = find_published(out)["scene"]
    detections = read_detections(page.table, classes=("square",), most=1000)
    return scene_facts(page, detections, ())["area"]


def test_the_area_is_recorded_wherever_results_are(tmp_path: Path, scene: Path) -> None:
    out = tmp_path / "out"
    (result,) = sweep([scene], make_job(out, area=LEFT))
    outline = footprint(inspect(str(scene)))
    assert outline is not None
    area = recorded_area(out)
    assert area["sha256"] == area_sha256(LEFT)
    assert shape(area["geometry"]).symmetric_difference(outline & LEFT).area < 1e-12
    item = json.loads(Path(result.files["item"]).read_text())
    assert item["geometry"] == area["geometry"]
    assert item["bbox"] == pytest.approx((outline & LEFT).bounds)
    assert item["properties"]["scenesweep:area_sha256"] == area["sha256"]
    (ring,) = area["rings_px"]
    assert np.abs(np.array(ring).max(axis=0) - [150, SIDE]).max() < 0.6
    assert np.abs(np.array(ring).min(axis=0)).max() < 0.6
    assert rings_of_page(out) == area["rings_px"]


def test_a_whole_scene_has_no_area(tmp_path: Path, scene: Path) -> None:
    (result,) = sweep([scene], make_job(tmp_path / "out"))
    assert recorded_area(tmp_path / "out") is None
    item = json.loads(Path(result.files["item"]).read_text())
    assert "scenesweep:area_sha256" not in item["properties"]
    assert rings_of_page(tmp_path / "out") == []


def test_the_report_has_the_area(tmp_path: Path, scene: Path) -> None:
    settings = load_settings(None, ["publish.quicklook=false"])
    order = take_order([str(scene)], a_model(tmp_path), str(tmp_path / "out"), LEFT, settings)
    summary = run_summary(carry_out(order, address="none"), order.job)
    said = json.loads(json.dumps(summary))["area"]
    assert said["sha256"] == area_sha256(LEFT)
    assert shape(said["geometry"]).equals(LEFT)
    whole = replace(order, job=replace(order.job, area=None))
    assert run_summary(carry_out(whole, address="none"), whole.job)["area"] is None


@pytest.mark.parametrize(
    ("first", "then", "refused"),
    [
        (None, LEFT, True),
        (AROUND, LEFT, True),
        (LEFT, MIDDLE, True),  # they overlap: some of LEFT would be lost
        (None, AROUND, False),  # an area around the scene is the whole scene
        (AROUND, None, False),
        (LEFT, None, False),
        (LEFT, AROUND, False),
        (LEFT, LEFT | MIDDLE, False),
        (MIDDLE, on_ground(100, 100, 200, 200.5), False),
    ],
)
def test_a_narrower_area_replaces_nothing_without_being_told(
    tmp_path: Path, scene: Path, first: Geometry | None, then: Geometry | None, refused: bool
) -> None:
    out = tmp_path / "out"
    (wide,) = sweep([scene], make_job(out, area=first))
    before = digests(out)
    (narrow,) = sweep([scene], make_job(out, "merge.iou=0.4", area=then))
    if not refused:
        assert narrow.status == "done", narrow.reason
        return
    assert narrow.status == "failed"
    assert f"would be replaced ({wide.detections} detections): use --replace" in narrow.reason
    assert digests(out) == before
    (replaced,) = sweep([scene], make_job(out, area=then, replace_wider=True))
    assert replaced.status == "done"
    assert 0 < replaced.detections < wide.detections
    (again,) = sweep([scene], make_job(out, area=then))
    assert again.status == "up-to-date"


def test_an_area_replaces_its_own_results(tmp_path: Path, scene: Path) -> None:
    for change in ("merge.iou=0.5", "merge.iou=0.3", "detect.score_threshold=0.4"):
        (result,) = sweep([scene], make_job(tmp_path / "out", change, area=MIDDLE))
        assert result.status == "done", result.reason


def test_a_table_without_a_record_of_its_area_counts_as_whole(tmp_path: Path, scene: Path) -> None:
    (result,) = sweep([scene], make_job(tmp_path / "out", area=MIDDLE))
    table = pq.read_table(result.files["detections"], partitioning=None)
    pq.write_table(table.replace_schema_metadata({}), result.files["detections"])
    (refused,) = sweep([scene], make_job(tmp_path / "out", "merge.iou=0.4", area=MIDDLE))
    assert refused.status == "failed"
    assert "--replace" in refused.reason
    (mended,) = sweep([scene], make_job(tmp_path / "out", area=MIDDLE))
    assert mended.status == "done"  # the list of checksums says that it was the same


def test_a_detection_counts_by_its_centre(tmp_path: Path) -> None:
    pixels = np.full((1, 128, 128), 1, np.uint8)
    pixels[0, 40:50, 40:50] = pixels[0, 40:50, 60:70] = 255
    path = write_raster(tmp_path / "s.tif", pixels)
    area = on_ground(0, 0, 64.5, 128)  # holds a whole square, and less than half of the other
    (result,) = sweep([path], make_job(tmp_path / "out", area=area))
    assert published(result).x_min.tolist() == [40]


def test_a_scene_outside_the_area_keeps_what_is_published(
    tmp_path: Path, scene: Path, far: Path
) -> None:
    out = tmp_path / "out"
    sweep([scene, far], make_job(out))
    before = {name: digest for name, digest in digests(out).items() if "far" in name}
    results = sweep([scene, far], make_job(out, area=LEFT, replace_wider=True))
    assert [result.status for result in results] == ["done", "done"]
    assert [result.outside_area for result in results] == [False, True]
    assert results[1].files == {}
    assert "no pixels in the area of interest: nothing was looked at" in results[1].warnings[0]
    assert {name: digest for name, digest in digests(out).items() if "far" in name} == before


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_an_area_that_meets_no_scene_is_wrong_usage(
    tmp_path: Path, detect: Detect, dry: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    areas = {
        "longitude 10 to 11, latitude 50 to 51": FAR,
        "longitude 60 to 63": box(60, -35, 63, -33),  # as far as can be: beyond the scene's CRS
    }
    for text, area in areas.items():
        assert detect(area, *dry) == 2
        printed = capfd.readouterr().err
        assert text in printed
        assert "does not meet the scene; in GeoJSON, longitude comes first" in printed
        assert "Traceback" not in printed
    assert not list(tmp_path.glob("out/*/*.*"))


def test_an_area_that_meets_some_scenes_warns_of_the_others(
    tmp_path: Path,
    far: Path,
    detect: Detect,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    warning = "far: no pixels in the area of interest: nothing was looked at"
    assert detect(LEFT, far, "--dry-run") == 0
    assert f"warning: {warning}" in capfd.readouterr().out
    assert detect(LEFT, far) == 0
    assert warning in caplog.text
    assert "scenes: 2 done, of these 1 outside the area of interest" in capfd.readouterr().out
    assert [path.stem for path in (tmp_path / "out").glob("detections/*/*")] == ["scene"]


def test_a_narrower_run_fails_its_scene_alone(
    tmp_path: Path,
    scene: Path,
    detect: Detect,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert detect(AROUND) == 0
    other = write_raster(tmp_path / "other.tif", paint_squares(SIDE, SIDE, largest=9, seed=2)[0])
    for dry in (["--dry-run"], []):
        capfd.readouterr()
        assert detect(LEFT, other, *dry) == 3
        said = capfd.readouterr().out if dry else caplog.text
        (line,) = [line for line in said.splitlines() if "--replace" in line]
        assert "scene.tif: the published results of scene cover ground outside" in line
    assert detect(LEFT, other, "--replace") == 0
    with pytest.raises(UsageError, match="does not meet the scene"):
        api(scene, str(tmp_path / "m.safetensors"), tmp_path / "out", area=FAR, replace=True)


@pytest.mark.parametrize(
    ("area", "said"),
    [
        (
            box(454934, 38731, 455000, 38800),
            "coordinates such as 455000, 38731 are not degrees; GeoJSON is always longitude, "
            "latitude (reproject to EPSG:4326)",
        ),
        (box(34, -118, 35, -117), "coordinates such as 35, -118 are not degrees"),
    ],
)
def test_projected_or_swapped_coordinates_are_named(
    tmp_path: Path,
    detect: Detect,
    capfd: pytest.CaptureFixture[str],
    area: Polygon,
    said: str,
) -> None:
    for more in ((), ("--dry-run",)):
        assert detect(area, *more) == 2
        assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_geopackage_with_a_style_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "area.gpkg"
    outline = box(-117, 34, -116, 35)
    gpd.GeoDataFrame(geometry=[outline], crs="EPSG:4326").to_file(path, layer="area")
    styles = pd.DataFrame({"styleName": ["outline"], "styleQML": ["<qgis/>"]})
    pyogrio.write_dataframe(styles, path, layer="layer_styles")
    assert len(pyogrio.list_layers(path)) == 2
    assert shapely.equals(read_area(path), outline)


def test_odd_vector_files_are_refused_in_a_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gpkg"
    gpd.GeoDataFrame(geometry=[box(1e9, 1e9, 2e9, 2e9)], crs="EPSG:32611").to_file(wrong)
    with pytest.raises(UsageError, match="outside the reach of its CRS"):
        read_area(wrong)
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="expected polygons with a CRS"):
        read_area(table)
    empty = tmp_path / "empty.geojson"
    empty.write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(UsageError, match="expected polygons"):
        read_area(empty)


def test_an_area_may_cross_itself_and_the_antimeridian() -> None:
    bow = Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert shapely.area(checked_area(bow, "area")) == pytest.approx(2)
    across = checked_area(box(175, -10, 185, 10), "area")
    assert shapely.equals(across, box(175, -10, 180, 10) | box(-180, -10, -175, 10))


def test_an_area_as_wide_as_the_world_is_placed_in_any_scene(scene: Path) -> None:
    inspected = inspect(str(scene))
    inside = area_in_scene(box(-180, -90, 180, 90), inspected)
    assert shapely.covers(inside, box(0, 0, SIDE, SIDE))
    with pytest.raises(NoGeoreference, match="needs a georeferenced scene"):
        area_in_scene(FAR, replace(inspected, crs=None))


def test_an_area_is_narrower_where_it_loses_ground() -> None:
    unit = box(0, 0, 1, 1)
    assert not is_narrower(unit, unit)
    assert not is_narrower(box(0, 0, 1, 2), unit)
    assert not is_narrower(box(1e-9, 0, 1, 1), unit)  # rounding
    assert is_narrower(box(0.001, 0, 5, 5), unit)
    assert is_narrower(box(2, 2, 3, 3), unit)
