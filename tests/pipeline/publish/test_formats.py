"""The other formats, read back as their users read them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
from faster_coco_eval import COCO

from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.labels import vector
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.publish.formats import FORMATS
from scenesweep.pipeline.publish.formats.layer import PALETTE
from scenesweep.pipeline.publish.formats.qml import write_style
from scenesweep.pipeline.publish.table import SCHEMA
from scenesweep.pipeline.settings import PublishSettings
from scenesweep.pipeline.storage.location import Location
from tests.nights import CLASSES, HEIGHT, WIDTH, night_job, objects, publish_scene, seen
from tests.rasters import make_job, paint_squares, ref_of, write_raster
from tests.sweeps import sweep

ALL = f"publish.formats=[{','.join(FORMATS)}]"
MAPS = [name for name, form in FORMATS.items() if form.geographic and name != "pmtiles"]


def test_settings_name_the_formats() -> None:
    (names,) = get_args(PublishSettings.model_fields["formats"].annotation)[:1]
    assert get_args(names) == tuple(FORMATS)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_of_nothing_is_whole(tmp_path: Path, name: str) -> None:
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", Candidates.none())
    read = gpd.read_file(files[name], layer=0)
    assert len(read) == 0
    if name != "geojson":  # which has no columns without rows
        assert set(read.columns) == set(SCHEMA.names) - {"bbox"}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_has_the_rows_of_the_table(tmp_path: Path, name: str) -> None:
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", seen(objects(150), 0, 1))
    table = gpd.read_parquet(files["detections"]).drop(columns=["bbox", "date"], errors="ignore")
    table = table.set_index("detection_id")
    read = gpd.read_file(files[name], layer=0).set_index("detection_id")
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
        assert (
            sorted(pyogrio.read_dataframe(files[name], layer=0, bbox=box).detection_id) == expected
        )
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
        assert sorted(result.files) == ["coverage", "detections", "gpkg", "gpkg-style", "item"]
    assert not (tmp_path / "out" / "geojson").exists()


def test_formats_no_longer_wanted_are_withdrawn(tmp_path: Path) -> None:
    pixels, _ = paint_squares(200, 150, largest=10, seed=1)
    scene = write_raster(tmp_path / "s.tif", pixels)
    sweep([scene], make_job(tmp_path / "out", ALL))
    sweep([scene], make_job(tmp_path / "out", "publish.formats=[flatgeobuf]", "publish.stac=false"))
    files = [p for p in (tmp_path / "out").rglob("*.*") if p.is_file() and ".work" not in p.parts]
    assert {p.suffix for p in files} == {".parquet", ".fgb", ".qml", ".sha256"}
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
    assert plan_scene(ref_of(scene), job).fingerprint


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


def test_a_label_is_shown_only_where_its_box_is_larger(tmp_path: Path) -> None:
    """As QGIS itself writes such a property; `test_qgis_labels_hide_no_box` has it drawn."""
    write_style(("tree",), tmp_path / "s.qml")
    settings = ElementTree.parse(tmp_path / "s.qml").getroot().find("./labeling/settings")
    assert settings is not None
    (place,) = settings.findall("./placement")
    assert place.get("fitInPolygonOnly") == "1"
    (show,) = settings.findall("./dd_properties/Option/Option/Option[@name='Show']")
    assert {o.get("name"): o.get("value") for o in show} == {
        "active": "true",
        "expression": '"width_m" * 1000 / @map_scale >= 8 AND "height_m" * 1000 / @map_scale >= 5',
        "type": "3",
    }


def test_a_gpkg_carries_its_style(tmp_path: Path) -> None:
    """In the table and the columns that QGIS reads, and registered as the format asks."""
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", seen(objects(20), 0, 1))
    style = pyogrio.read_dataframe(files["gpkg"], layer="layer_styles")
    (row,) = style.itertuples()
    assert row.styleQML == Path(str(files["gpkg-style"])).read_text(encoding="utf-8")
    assert (row.f_table_name, row.f_geometry_column, row.useAsDefault) == ("scene", "geom", True)
    with sqlite3.connect(str(files["gpkg"])) as database:
        contents = database.execute("select table_name, data_type from gpkg_contents").fetchall()
        geometry = database.execute("select column_name from gpkg_geometry_columns").fetchall()
        (version,) = database.execute("pragma user_version").fetchone()
    assert contents == [("scene", "features"), ("layer_styles", "attributes")]
    assert geometry == [("geom",)]
    assert version < 10400  # of which GDAL before 3.7 warns


def test_a_gpkg_with_a_style_has_one_layer_of_labels(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", seen(objects(20), 0, 1))
    frame = vector._read(Path(str(files["gpkg"])), None)
    assert len(frame) == pq.read_metadata(files["detections"]).num_rows


_ASK_QGIS = """
import json, os, sys
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
print(json.dumps(said), flush=True)
os._exit(0)  # QGIS may crash when Python takes its objects down
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


def ask_qgis(python: str, script: str, *paths: Location, home: Path) -> list[Any]:
    """Return what a script that runs in QGIS's Python prints as its last line."""
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen", "HOME": str(home)}
    asked = subprocess.run(
        [python, "-c", script, *map(str, paths)],
        capture_output=True,
        check=True,
        env=environment,
        text=True,
    )
    said: list[Any] = json.loads(asked.stdout.splitlines()[-1])
    return said


def test_qgis_finds_the_style(tmp_path: Path) -> None:
    python = qgis_python()
    if python is None:
        pytest.skip("needs PyQGIS (Debian: python3-qgis)")
    job = night_job(tmp_path / "out", ALL)
    files = publish_scene(tmp_path, job, "scene", seen(objects(50), 0, 1))
    for said in ask_qgis(python, _ASK_QGIS, *(files[name] for name in MAPS), home=tmp_path):
        assert said["valid"]
        assert said["styled"]
        assert said["rows"] == pq.read_metadata(files["detections"]).num_rows
        assert said["classes"] == list(CLASSES)
        assert said["colors"] == list(PALETTE[: len(CLASSES)])
        assert said["labels"] == [True, 'format_number("score", 2)', True, 5000]
    Path(str(files["gpkg-style"])).unlink()  # what a colleague gets who is sent the file alone
    (said,) = ask_qgis(python, _ASK_QGIS, files["gpkg"], home=tmp_path)
    assert said["classes"] == list(CLASSES)


_DRAW = """
import json, os, sys
import numpy as np
from qgis.core import *
from qgis.PyQt.QtCore import QSize
application = QgsApplication([], False)
application.initQgis()
layer = QgsVectorLayer(sys.argv[1], "detections", "ogr")
layer.loadDefaultStyle()
crs = QgsCoordinateReferenceSystem("EPSG:32611")
middle = QgsCoordinateTransform(layer.crs(), crs, QgsProject.instance()).transform(
    layer.extent().center())
def draw(scale, labels):
    map = QgsMapSettings()
    map.setLayers([layer])
    map.setDestinationCrs(crs)
    map.setOutputDpi(96)
    map.setOutputSize(QSize(800, 600))
    half_x, half_y = (side / 96 * 0.0254 * scale / 2 for side in (800, 600))
    map.setExtent(QgsRectangle(middle.x() - half_x, middle.y() - half_y,
                               middle.x() + half_x, middle.y() + half_y))
    map.setFlag(QgsMapSettings.DrawLabeling, labels)
    context = QgsExpressionContext()
    context.appendScope(QgsExpressionContextUtils.mapSettingsScope(map))
    map.setExpressionContext(context)
    job = QgsMapRendererParallelJob(map)
    job.start()
    job.waitForFinished()
    image = job.renderedImage()
    bits = image.bits()
    bits.setsize(image.byteCount())
    pixels = np.frombuffer(bits, np.uint8).reshape(600, 800, 4).astype(int)
    del bits  # before its image
    return pixels
said = []
for scale in (250, 1000, 2000, 3000, 4900):
    bare, labelled = draw(scale, False), draw(scale, True)
    changed = np.abs(bare - labelled).sum(2) > 60
    line = (np.abs(bare - [255, 255, 255, 255]).sum(2) > 200)
    said.append([scale, int(line.sum()), int((line & changed).sum()), int(changed.sum())])
print(json.dumps(said), flush=True)
os._exit(0)  # QGIS may crash when Python takes its objects down
"""


def test_qgis_labels_hide_no_box(tmp_path: Path) -> None:
    """Trees of 7.2 m, as at 1 : 3,000 labels hid more than half of their lines."""
    python = qgis_python()
    if python is None:
        pytest.skip("needs PyQGIS (Debian: python3-qgis)")
    columns, rows = np.meshgrid(np.arange(10, 380, 18), np.arange(10, 280, 18))
    corner = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(float)
    trees = Candidates(
        np.hstack([corner, corner + 12]),
        np.full(len(corner), 0.5, np.float32),
        np.zeros(len(corner), np.int16),
        np.zeros(len(corner), np.bool_),
    )
    files = publish_scene(tmp_path, night_job(tmp_path / "out", ALL), "trees", trees)
    drawn = ask_qgis(python, _DRAW, files["gpkg"], home=tmp_path)
    for scale, lines, hidden, changed in drawn:
        assert lines > 1000
        assert hidden < 0.05 * lines
        assert (changed > 0) == (scale == 250)  # where a tree is 29 mm wide
