"""The catalog, walked by pystac and checked against STAC's own schemas."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pystac
import pytest
import shapely
import stac_geoparquet.arrow as stac_geoparquet
from affine import Affine
from pystac.extensions.file import FileExtension
from pystac.extensions.table import TableExtension
from pystac.stac_object import STACObjectType
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.transform import from_origin

from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.pipeline.geometry.georef import to_lonlat, to_map
from scenesweep.pipeline.planning.footprint import bounding_box, footprint
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.publish.stac.catalog import write_catalog
from scenesweep.pipeline.publish.stac.item import SceneFacts, scene_item
from scenesweep.pipeline.publish.table import SCHEMA
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.scene import Scene
from tests.nights import CLASSES, NIGHT, night_job, publish_night
from tests.rasters import make_card, ref_of, write_raster
from tests.sweeps import FRAMES


@pytest.fixture(scope="module")
def model() -> ModelFile:
    """A model that says it is the one of the night's job."""
    return replace(open_model("naip-trees"), card=make_card(classes=CLASSES), sha256="0" * 64)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, model: ModelFile) -> Path:
    out = publish_night(tmp_path_factory.mktemp("night"), "publish.quicklook=true")
    assert write_catalog(out, model) == out / "catalog.json"
    return out


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_all_of_it_is_valid_stac(night: Path) -> None:
    validator = JsonSchemaSTACValidator()
    kinds = {
        "catalog.json": STACObjectType.CATALOG,
        "collection.json": STACObjectType.COLLECTION,
        "items/*.json": STACObjectType.ITEM,
        "models/*.json": STACObjectType.ITEM,
    }
    checked = 0
    for pattern, kind in kinds.items():
        for path in night.glob(pattern):
            content = load(path)
            assert validator.validate_core(content, kind, content["stac_version"])
            checked += 1
    assert checked == 2 + 5 + 1


def test_pystac_walks_from_the_catalog_to_every_file(night: Path) -> None:
    catalog = pystac.Catalog.from_file(str(night / "catalog.json"))
    (collection,) = catalog.get_children()
    assert isinstance(collection, pystac.Collection)
    items = {item.id: item for item in collection.get_items()}
    assert sorted(items) == ["east", "empty", "later", "undated", "west"]
    for item in items.values():
        assert item.get_collection() is collection
        assert item.get_root() is catalog
        kinds = {"coverage", "detections", "geojson", "geojson-style", "quicklook"}
        assert kinds == item.assets.keys()
        for asset in item.assets.values():
            content = Path(asset.get_absolute_href() or "").read_bytes()
            told = FileExtension.ext(asset)
            assert told.size == len(content)
            assert told.checksum == "1220" + hashlib.sha256(content).hexdigest()
    (model,) = [link.target for link in catalog.get_links("item")]
    assert str(model).endswith("models/squares-1-00000000.json")


def test_an_item_says_when_and_from_what(night: Path) -> None:
    item = pystac.Item.from_file(str(night / "items" / "west.json"))
    assert item.datetime == datetime.fromisoformat(f"{NIGHT}T10:00:00Z")
    table = pq.read_table(night / "detections" / f"date={NIGHT}" / "west.parquet")
    told = TableExtension.ext(item)
    assert [column.name for column in told.columns or []] == SCHEMA.names
    assert (told.row_count, told.primary_geometry) == (len(table), "geometry")
    names = table["class_name"].to_pylist()
    assert item.properties["scenesweep:counts"] == {name: names.count(name) for name in CLASSES}
    assert set(table["fingerprint"].to_pylist()) == {item.properties["scenesweep:fingerprint"]}
    assert item.properties["processing:level"] == "L4"
    assert "scenesweep" in item.properties["processing:software"]
    (model,) = item.get_links("derived_from")  # a path of this machine leads nowhere
    assert model.extra_fields["mlm:name"] == "squares"
    found = pystac.Item.from_file(model.get_absolute_href() or "")
    assert found.assets["model"].extra_fields["file:checksum"] == "1220" + "0" * 64


def test_a_scene_without_a_time_has_all_of_it(night: Path) -> None:
    item = pystac.Item.from_file(str(night / "items" / "undated.json"))
    assert item.datetime is None
    assert item.common_metadata.start_datetime == datetime(1900, 1, 1, tzinfo=UTC)
    assert item.common_metadata.end_datetime is not None


def test_a_collection_sums_up_its_items(night: Path) -> None:
    collection = pystac.Collection.from_file(str(night / "collection.json"))
    items = list(collection.get_items())
    shapes = shapely.union_all([shapely.geometry.shape(item.geometry or {}) for item in items])
    np.testing.assert_allclose(collection.extent.spatial.bboxes[0], shapes.bounds)
    times = [item.datetime for item in items if item.datetime]
    assert collection.extent.temporal.intervals == [[min(times), max(times)]]
    rows = [item.properties["table:row_count"] for item in items]
    summaries = collection.summaries.to_dict()
    assert summaries["table:row_count"] == {"minimum": min(rows), "maximum": max(rows)}
    assert summaries["scenesweep:classes"] == sorted(CLASSES)
    assert summaries["scenesweep:model"] == ["squares@1"]


def test_the_items_are_also_one_table(night: Path) -> None:
    path = night / "items.parquet"
    back = list(stac_geoparquet.stac_table_to_items(pq.read_table(path)))
    assert len(back) == 5
    for item in back:
        original = load(night / "items" / f"{item['id']}.json")
        read, expected = pystac.Item.from_dict(item), pystac.Item.from_dict(original)
        assert read.datetime == expected.datetime
        assert shapely.equals(
            shapely.geometry.shape(item["geometry"]), shapely.geometry.shape(original["geometry"])
        )
        hrefs = {key: asset["href"] for key, asset in item["assets"].items() if asset}
        assert hrefs == {key: asset["href"] for key, asset in original["assets"].items()}
    frame = gpd.read_parquet(path).set_index("id")
    assert frame.crs is not None
    assert frame.crs.to_epsg() == 4326
    counts = duckdb.execute(
        f'select id, "scenesweep:counts".ship from \'{path}\' where "table:row_count" > 0'
    ).fetchall()
    assert dict(counts) == {
        name: row["ship"] for name, row in frame["scenesweep:counts"].items() if name != "empty"
    }


def test_catalog_depends_on_the_items_alone(
    night: Path, model: ModelFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = publish_night(tmp_path, "publish.quicklook=true")
    (out / "items" / "foreign.json").write_text("{}")
    (out / "items" / "broken.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        write_catalog(out, model)
    assert len(caplog.messages) == 2
    assert all("the catalog does not include it" in message for message in caplog.messages)
    for name in ("catalog.json", "collection.json", "items.parquet"):
        assert (out / name).read_bytes() == (night / name).read_bytes()
        assert str(tmp_path).encode() not in (out / name).read_bytes()
    (out / "detections" / f"date={NIGHT}" / "west.parquet").unlink()  # as if killed before it
    write_catalog(out, model)
    collection = pystac.Collection.from_file(str(out / "collection.json"))
    assert sorted(i.id for i in collection.get_items()) == ["east", "empty", "later", "undated"]


def test_an_out_without_items_has_no_catalog(tmp_path: Path, model: ModelFile) -> None:
    assert write_catalog(tmp_path, model) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("href", "links", "told"),
    [
        ("/data/night/a scene.tif", [], "night/a scene.tif"),
        ("scene.tif", [], "scene.tif"),
        ("s3://bucket/a/b.tif", ["s3://bucket/a/b.tif"], "a/b.tif"),
        ("https://me:secret@host:80/b.tif?sig=secret#x", ["https://host:80/b.tif"], "b.tif"),
        ("https://host/get/b.tif?key=secret", [], "get/b.tif"),  # the query may name the file
        ("/vsicurl/https://me:secret@host/b.tif", [], "host/b.tif"),
    ],
)
def test_no_path_no_secret_and_no_dead_link_is_published(
    tmp_path: Path, href: str, links: list[str], told: str
) -> None:
    path = write_raster(tmp_path / "x" / "s.tif", np.ones((1, 64, 64), np.uint8))
    for ids in ("stem", "path"):
        job = night_job(tmp_path / "out", f"scenes.ids={ids}")
        plan = plan_scene(ref_of(path), job)
        parts = tuple(replace(part, href=href) for part in plan.scene.parts)
        elsewhere = replace(plan.source, scene=replace(plan.scene, href=href, parts=parts))
        item = scene_item(replace(plan, source=elsewhere), job, SceneFacts({}, None, {}), {})
        found = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
        assert found == [*links, "../models/squares-1-00000000.json"]
        source = item["properties"]["processing:lineage"].removeprefix("squares@1 over ")
        assert source == (told if ids == "path" else told.rpartition("/")[2])
        assert "secret" not in json.dumps(item)
        assert "/data" not in json.dumps(item)


PLACES = FRAMES | {
    "antimeridian": ("EPSG:32601", from_origin(166_021 - 90_000, 1_200_000, 600, 600)),
    "south_pole": ("EPSG:3031", from_origin(-90_000, 60_000, 600, 600)),
    "beside_the_pole": ("EPSG:3413", from_origin(100_000, 60_000, 600, 600)),
    "wide": ("EPSG:32633", from_origin(300_000, 7_900_000, 1000, 1000)),
}


def scene_at(folder: Path, crs: str | None, transform: Affine | None) -> Scene:
    pixels = np.ones((1, 200, 300), np.uint8)
    return inspect(str(write_raster(folder / "s.tif", pixels, crs=crs, transform=transform)))


@pytest.mark.parametrize("name", PLACES)
def test_a_footprint_holds_the_scene_and_nothing_else(tmp_path: Path, name: str) -> None:
    scene = scene_at(tmp_path, *PLACES[name])
    outline = footprint(scene)
    assert outline is not None
    assert outline.is_valid
    west, south, east, north = outline.bounds
    assert west >= -180
    assert east <= 180
    assert south >= -90
    assert north <= 90
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 1.5, (2000, 2)) * [scene.width, scene.height]
    within = (points > 0) & (points < [scene.width, scene.height])
    inside = np.logical_and.reduce(within, axis=1)
    edge = np.minimum(np.abs(points), np.abs(points - [scene.width, scene.height])).min(axis=1)
    assert scene.crs is not None
    assert scene.transform is not None
    places = to_lonlat(to_map(points, scene.transform), scene.crs)
    clear = edge > 2  # of the outline, which has straight sides in degrees
    held = [outline.intersects(point) for point in shapely.points(places[clear])]
    np.testing.assert_array_equal(held, inside[clear])


def test_a_bbox_across_the_antimeridian_has_west_above_east(tmp_path: Path) -> None:
    outline = footprint(scene_at(tmp_path, *PLACES["antimeridian"]))
    assert outline is not None
    west, _, east, _ = bounding_box(outline)
    assert 170 < west < 180
    assert -180 < east < -170
    over_the_pole = footprint(scene_at(tmp_path, *PLACES["south_pole"]))
    assert over_the_pole is not None
    assert bounding_box(over_the_pole)[::2] == [-180, 180]
    assert bounding_box(over_the_pole)[1] == -90


def test_a_catalog_that_is_up_to_date_is_not_written_again(
    tmp_path: Path, model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = publish_night(tmp_path)
    write_catalog(out, model)
    files = [out / name for name in ("catalog.json", "collection.json", "items.parquet")]
    read: list[str] = []
    read_bytes = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    intact = [(path.stat().st_mtime_ns, read_bytes(path)) for path in files]
    write_catalog(out, model)
    assert [(path.stat().st_mtime_ns, read_bytes(path)) for path in files] == intact
    assert read == ["catalog.parquet"]  # what the last run kept
    item = out / "items" / "east.json"
    item.write_text(item.read_text() + "\n")
    read.clear()
    write_catalog(out, model)
    assert "east.json" in read
    assert "west.json" not in read
    for path in files:  # a lost file is written again, from items that are not read
        path.unlink()
        write_catalog(out, model)
    assert [read_bytes(path) for path in files] == [content for _, content in intact]
