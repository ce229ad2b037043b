"""The other formats, read back as their users read them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
from faster_coco_eval import COCO

from pipeline.detect import Candidates
from pipeline.output.formats import FORMATS
from pipeline.output.formats.layer import PALETTE
from pipeline.output.formats.qml import write_style
from pipeline.plan import plan_scene
from pipeline.settings import PublishSettings
from pipeline.table import SCHEMA
from tests.nights import CLASSES, HEIGHT, WIDTH, night_job, objects, publish_scene, seen
from tests.pipeline.test_flow import sweep
from tests.rasters import make_job, paint_squares, write_raster

ALL = f"publish.formats=[{','.join(FORMATS)}]"
MAPS = [name for name, form in FORMATS.items() if form.geographic]


def test_settings_name_the_formats() -> None:
    (names,) = get_args(PublishSettings.model_fields["formats"].annotation)[:1]
    assert get_args(names) == tuple(FORMATS)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_of_nothing_is_whole(tmp_path: Path, name: str) -> None:
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", Candidates.none())
    read = gpd.read_file(files[name])
    assert len(read) == 0
    if name != "geojson":  # which has no columns without rows
        assert set(read.columns) == set(SCHEMA.names) - {"bbox"}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_has_the_rows_of_the_table(tmp_path: Path, name: str) -> None:
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", seen(objects(150), 0, 1))
    table = gpd.read_parquet(files["detections"]).drop(columns=["bbox", "date"], errors="ignore")
    table = table.set_index("detection_id")
    read = gpd.read_file(files[name]).set_index("detection_id")
    assert set(read.columns) == set(table.columns)
    assert sorted(read.index) == sorted(table.index)
    read = read.loc[table.index]
    assert read.crs is not None
    assert read.crs.to_authority() in (("OGC", "CRS84"), ("EPSG", "4326"))
    np.testing.assert_allclose(read.bounds, table.bounds, rtol=0, atol=1e-8)
    for column in ("class_name", "truncated", "fingerprint"):
        assert read[column].tolist() == table[column].tolist()
    np.testing.assert_allclose(read.score, table.score)
    np.testing.assert_array_equal(read.area_m2, table.area_m2)
    assert {str(time) for time in read.acquired_at} == {"2026-11-20 10:00:00+00:00"}


def test_flatgeobuf_and_gpkg_answer_a_bbox_from_their_index(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", seen(objects(200), 0, 1))
    table = gpd.read_parquet(files["detections"])
    box = table.geometry.iloc[0].buffer(3e-5).bounds
    expected = sorted(table.cx[box[0] : box[2], box[1] : box[3]].detection_id)
    assert 0 < len(expected) < len(table)
    for name in ("flatgeobuf", "gpkg"):
        assert sorted(pyogrio.read_dataframe(files[name], bbox=box).detection_id) == expected
    assert pyogrio.read_info(files["flatgeobuf"])["capabilities"]["fast_spatial_filter"]
    with sqlite3.connect(str(files["gpkg"])) as database:
        (index,) = database.execute("select count(*) from rtree_scene_geom").fetchone()
    assert index == len(table)


def test_same_detections_same_bytes(tmp_path: Path) -> None:
    written = []
    for run in ("a", "b"):
        job = night_job(tmp_path / run, ALL)
        files = publish_scene(tmp_path, job, "scene", seen(objects(50), 0, 1))
        written.append({kind: path.read_bytes() for kind, path in files.items()})
        with sqlite3.connect(str(files["gpkg"])) as database:
            (changed,) = database.execute("select last_change from gpkg_contents").fetchone()
        assert changed == "1970-01-01T00:00:00.000Z"
    assert written[0] == written[1]
    assert set(FORMATS) < set(written[0])
    assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None


@pytest.mark.parametrize("count", [0, 150])
def test_coco_readers_take_it(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", seen(objects(count), 0, 1))
    coco = COCO(str(files["coco"]))
    capsys.readouterr()
    table = pq.read_table(files["detections"], partitioning=None)
    assert coco.imgs[1] == {"id": 1, "file_name": "scene.tif", "width": WIDTH, "height": HEIGHT}
    assert [coco.cats[i]["name"] for i in (1, 2)] == list(CLASSES)
    annotations = [coco.anns[number] for number in range(1, len(table) + 1)]
    assert len(annotations) == len(coco.anns)
    for annotation, row in zip(annotations, table.to_pylist(), strict=True):
        x, y, width, height = annotation["bbox"]
        edges = [row[name] for name in ("x_min", "y_min", "x_max", "y_max")]
        np.testing.assert_allclose([x, y, x + width, y + height], edges, atol=0.002)
        assert annotation["detection_id"] == row["detection_id"]
        assert annotation["score"] == pytest.approx(row["score"], abs=1e-6)
        assert CLASSES[annotation["category_id"] - 1] == row["class_name"]


def test_what_is_not_written_is_said_on_every_run(tmp_path: Path) -> None:
    pixels, truth = paint_squares(200, 150, largest=10, seed=1)
    scene = write_raster(tmp_path / "s.tif", pixels)
    limit = len(truth) - 1
    job = make_job(
        tmp_path / "out", f"publish.geojson_max_rows={limit}", "publish.formats=[geojson,gpkg]"
    )
    for status in ("done", "up-to-date"):
        (result,) = sweep([scene], job)
        assert result.status == status
        assert result.warnings == (
            f"no geojson: {len(truth)} detections are more than publish.geojson_max_rows "
            f"({limit}); publish.formats has others",
        )
        assert sorted(result.files) == ["detections", "gpkg", "gpkg-style", "item"]
    assert not (tmp_path / "out" / "geojson").exists()


def test_formats_no_longer_wanted_are_withdrawn(tmp_path: Path) -> None:
    pixels, _ = paint_squares(200, 150, largest=10, seed=1)
    scene = write_raster(tmp_path / "s.tif", pixels)
    sweep([scene], make_job(tmp_path / "out", ALL))
    sweep([scene], make_job(tmp_path / "out", "publish.formats=[flatgeobuf]", "publish.stac=false"))
    left = {p.suffix for p in (tmp_path / "out").rglob("*.*") if p.is_file()}
    assert left == {".parquet", ".fgb", ".qml", ".sha256"}
    assert len(list((tmp_path / "out").rglob("*.qml"))) == 1


def test_a_missing_file_is_published_again(tmp_path: Path) -> None:
    pixels, _ = paint_squares(200, 150, largest=10, seed=1)
    scene = write_raster(tmp_path / "s.tif", pixels)
    job = make_job(tmp_path / "out", ALL)
    (first,) = sweep([scene], job)
    for kind in ("gpkg", "geojson-style", "item"):
        before = Path(first.files[kind]).read_bytes()
        Path(first.files[kind]).unlink()
        (again,) = sweep([scene], job)
        assert again.status == "done"
        assert Path(first.files[kind]).read_bytes() == before
    assert plan_scene(str(scene), job).fingerprint


def test_a_style_has_a_symbol_for_each_class(tmp_path: Path) -> None:
    names = ("ship", 'a "b" <c> & d', *(f"class {n}" for n in range(8)))
    write_style(names, tmp_path / "s.qml")
    style = ElementTree.parse(tmp_path / "s.qml").getroot()
    categories = style.findall("./renderer-v2/categories/category")
    assert [category.get("value") for category in categories] == list(names)
    symbols = {s.get("name"): s for s in style.findall("./renderer-v2/symbols/symbol")}
    for number, category in enumerate(categories):
        (color,) = symbols[category.get("symbol")].iterfind(".//Option[@name='outline_color']")
        red, green, blue, _ = (int(v) for v in (color.get("value") or "").split(","))
        assert f"#{red:02x}{green:02x}{blue:02x}" == PALETTE[number % len(PALETTE)]
    (text,) = style.findall("./labeling/settings/text-style")
    assert '"score"' in (text.get("fieldName") or "")


_ASK_QGIS = """
import json, sys
from qgis.core import QgsApplication, QgsVectorLayer
application = QgsApplication([], False)
application.initQgis()
said = []
for path in sys.argv[1:]:
    layer = QgsVectorLayer(path, "detections", "ogr")
    _, styled = layer.loadDefaultStyle()
    settings = layer.labeling().settings()
    said.append({
        "valid": layer.isValid(), "styled": styled, "rows": layer.featureCount(),
        "classes": [category.value() for category in layer.renderer().categories()],
        "colors": [c.symbol().symbolLayer(0).strokeColor().name() for c in
                   layer.renderer().categories()],
        "labels": [layer.labelsEnabled(), settings.fieldName, settings.isExpression,
                   settings.minimumScale],
    })
print(json.dumps(said))
"""


def qgis_python() -> str | None:
    """Return an interpreter that has PyQGIS: $QGIS_PYTHON, or the system's."""
    for candidate in (os.environ.get("QGIS_PYTHON"), shutil.which("python3", path="/usr/bin")):
        if (
            candidate
            and not subprocess.run(
                [candidate, "-c", "import qgis.core"], capture_output=True, check=False
            ).returncode
        ):
            return candidate
    return None


def test_qgis_finds_the_style(tmp_path: Path) -> None:
    python = qgis_python()
    if python is None:
        pytest.skip("needs PyQGIS (Debian: python3-qgis)")
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", seen(objects(50), 0, 1))
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path)}
    asked = subprocess.run(
        [python, "-c", _ASK_QGIS, *(str(files[name]) for name in MAPS)],
        capture_output=True,
        check=True,
        env=environment,
        text=True,
    )
    for said in json.loads(asked.stdout.splitlines()[-1]):
        assert said["valid"]
        assert said["styled"]
        assert said["rows"] == pq.read_metadata(files["detections"]).num_rows
        assert said["classes"] == list(CLASSES)
        assert said["colors"] == list(PALETTE[: len(CLASSES)])
        assert said["labels"] == [True, 'format_number("score", 2)', True, 5000]
