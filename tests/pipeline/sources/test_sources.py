"""Every way to name scenes: lists, bands in files of their own, and STAC in all its forms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest

from scenesweep.pipeline.errors import SceneError, UsageError
from scenesweep.pipeline.planning.plan import inspect_for, plan_scene
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.sources import Choice, Named, Search, check_ids, parse_bands
from scenesweep.pipeline.sources import find_scenes as find
from tests.catalogs import make_item, serve_api
from tests.rasters import make_card, make_job, write_raster
from tests.servers import FileServer, files_served
from tests.sweeps import sweep


def find_scenes(words: Sequence[str], choice: Choice, **more: Any) -> list[SceneRef]:
    search = more.pop("search", None)
    return find(Named(tuple(words), choice, search), **more)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    (tmp_path / "www").mkdir()
    with files_served(tmp_path / "www") as server:
        yield server


def raster(path: Path, **profile: Any) -> str:
    return str(write_raster(path, np.ones((1, 40, 60), np.uint8), **profile))


def hrefs(scenes: list[SceneRef]) -> list[list[str]]:
    return [[Path(file.href).name for file in scene.files] for scene in scenes]


def dump(path: Path, tree: object) -> str:
    path.write_text(json.dumps(tree))
    return str(path)


def test_an_item_gives_id_time_and_hints(tmp_path: Path) -> None:
    raster(tmp_path / "s.tif", tags={"TIFFTAG_DATETIME": "2020:01:01 00:00:00"})
    item = make_item(
        "S2A 31TCJ",
        {"image": {"href": "./s.tif", "file:checksum": "1220ab"}, "thumbnail": {"href": "t.png"}},
        **{"eo:cloud_cover": 12.5, "gsd": 10},
    )
    item["assets"]["thumbnail"]["roles"] = ["thumbnail"]
    (ref,) = find_scenes([dump(tmp_path / "item.json", item)], Choice())
    scene = inspect_for(ref, make_job(tmp_path).settings.scenes)
    assert (scene.id, scene.acquired_at) == ("S2A_31TCJ", datetime(2026, 6, 21, 18, tzinfo=UTC))
    assert "the catalog says 10 m a pixel, the raster has 0.6 m" in scene.warnings[0]
    plan = plan_scene(ref, make_job(tmp_path))
    assert (plan.hints.item, plan.hints.cloud_cover, plan.hints.gsd_m) == ("S2A 31TCJ", 12.5, 10)
    item["assets"]["image"]["file:checksum"] = "1220ff"
    (changed,) = find_scenes([dump(tmp_path / "item.json", item)], Choice())
    assert plan_scene(changed, make_job(tmp_path)).fingerprint != plan.fingerprint


def test_what_a_catalog_says_is_in_the_published_table(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    raster(tmp_path / "s.tif")
    item = make_item("one", {"image": {"href": "s.tif"}}, **{"eo:cloud_cover": 3})
    scenes = find_scenes([dump(tmp_path / "item.json", item)], Choice())
    (result,) = sweep(scenes, make_job(tmp_path / "out"))
    assert Path(result.files["detections"]).parent.name == "date=2026-06-21"
    metadata = pq.read_schema(result.files["detections"]).metadata
    said = json.loads(metadata[b"scenesweep"])["source"]["catalog"]
    assert said == {
        "item": "one",
        "cloud_cover": 3,
        "acquired_at": "2026-06-21 18:00:00+00:00",
    }


def catalog_of(folder: Path, items: list[dict[str, Any]]) -> None:
    """Write items as a file each, a feature collection, a catalog, a collection and a table."""
    import stac_geoparquet.arrow as table

    dump(folder / "items.geojson", {"type": "FeatureCollection", "features": items})
    extent = pystac.Extent(
        pystac.SpatialExtent([[-180.0, -90.0, 180.0, 90.0]]),
        pystac.TemporalExtent([[datetime(2026, 1, 1, tzinfo=UTC), None]]),
    )
    for root in (pystac.Catalog("c", "d"), pystac.Collection("col", "d", extent)):
        inner = pystac.Catalog("inner", "d")
        root.add_child(inner)
        inner.add_items([pystac.Item.from_dict(item) for item in items])
        place = folder / root.id
        root.normalize_and_save(str(place), pystac.CatalogType.SELF_CONTAINED)
    absolute = [json.loads(json.dumps(item)) for item in items]
    batches = table.parse_stac_items_to_arrow(absolute)
    table.to_parquet(batches, folder / "items.parquet")


@pytest.mark.parametrize(
    "name", ["items.geojson", "c/catalog.json", "col/collection.json", "items.parquet"]
)
@pytest.mark.parametrize("remote", [False, True])
def test_every_form_of_stac_gives_its_items(server: FileServer, name: str, remote: bool) -> None:
    folder = server.root
    root = server.url if remote else str(folder)
    items = [
        make_item(f"i{n}", {"image": {"href": f"{root}/{n}.tif"}}, **{"eo:cloud_cover": 30.0 * n})
        for n in range(3)
    ]
    catalog_of(folder, items)
    found = find_scenes([f"{root}/{name}"], Choice())
    assert sorted((s.id, s.href, s.hints.cloud_cover) for s in found) == [
        (f"i{n}", f"{root}/{n}.tif", 30.0 * n) for n in range(3)
    ]
    fewer = find_scenes([f"{root}/{name}"], Choice(max_cloud=30))
    assert sorted(scene.id for scene in fewer) == ["i0", "i1"]


def test_an_api_is_searched_page_by_page(server: FileServer, tmp_path: Path) -> None:
    items = [
        {**make_item(f"i{n}", {"image": {"href": f"{server.url}/{n}.tif"}},
                     **{"eo:cloud_cover": n * 10}), "collection": "a" if n < 5 else "b"}
        for n in range(7)
    ]  # fmt: skip
    url = serve_api(server, items)
    search = Search(url=url, collections=("a",), bbox=(-118, 34, -117, 35), datetime="2026-06")
    server.failures = 1
    found = find_scenes([], Choice(), search=search)
    assert [scene.id for scene in found] == ["i0", "i1", "i2", "i3", "i4"]
    assert found[0].hints.collection == "a"
    search = Search(url=url, query=("eo:cloud_cover<30",))
    assert [s.id for s in find_scenes([], Choice(), search=search)] == ["i0", "i1", "i2"]
    with pytest.raises(UsageError, match=r"the search finds no item"):
        find_scenes([], Choice(), search=Search(url=url, collections=("none",)))
    with pytest.raises(UsageError, match=r"--stac-api http://127\.0\.0\.1:9"):
        find_scenes([], Choice(), search=Search(url="http://127.0.0.1:9/api?key=SECRET"))


BANDS = {
    "B04": {"href": "/data/B04.tif", "eo:bands": [{"name": "B04", "common_name": "red"}]},
    "B03": {"href": "/data/B03.tif", "eo:bands": [{"name": "B03", "common_name": "green"}]},
    "B08": {"href": "/data/B08.tif", "bands": [{"name": "B08", "eo:common_name": "nir"}]},
    "visual": {
        "href": "/data/TCI.tif",
        "roles": ["visual"],
        "eo:bands": [{"common_name": "red"}, {"common_name": "green"}, {"common_name": "blue"}],
    },
}


@pytest.mark.parametrize(
    ("choice", "card", "files", "names"),
    [
        (Choice(asset="visual"), (), ["TCI.tif"], [("red", "green", "blue")]),
        (Choice(bands_from="B08,B04"), (), ["B08.tif", "B04.tif"], [("B08",), ("B04",)]),
        (Choice(bands_from="nir=B08"), (), ["B08.tif"], [("nir",)]),
        (Choice(bands_from="x=red"), (), ["B04.tif"], [("x",)]),
        (Choice(), ("nir", "red"), ["B08.tif", "B04.tif"], [("nir",), ("red",)]),
    ],
)
def test_assets_are_chosen_by_key_role_band_or_card(
    tmp_path: Path,
    choice: Choice,
    card: tuple[str, ...],
    files: list[str],
    names: list[tuple[str, ...]],
) -> None:
    item = dump(tmp_path / "item.json", make_item("i", BANDS))
    (scene,) = find_scenes([item], choice, card_bands=card)
    assert hrefs([scene]) == [files]
    assert [file.names for file in scene.files] == names


@pytest.mark.parametrize(
    ("choice", "card", "said"),
    [
        (Choice(), (), "found 3, and no bands are chosen; choose with --asset or --bands-from"),
        (Choice(), ("red", "pan"), r"band pan alone, found 0.*among: B04, B03, B08"),
        (Choice(asset="data"), (), r"one asset of key or role 'data', found 3"),
        (Choice(bands_from="x=B99"), (), "band B99 alone, found 0"),
    ],
)
def test_an_item_without_a_usable_asset_fails_alone(
    tmp_path: Path, choice: Choice, card: tuple[str, ...], said: str
) -> None:
    good = make_item("good", {"image": {"href": raster(tmp_path / "s.tif")}})
    if choice != Choice():
        good["assets"] = {}
    tree = {"type": "FeatureCollection", "features": [make_item("bad", BANDS), good]}
    scenes = find_scenes([dump(tmp_path / "items.json", tree)], choice, card_bands=card)
    results = sweep(scenes, make_job(tmp_path / "out"))
    assert results[0].status == "failed"
    assert (results[0].scene_id, results[0].href) == ("bad", "bad")
    with pytest.raises(SceneError, match=said):
        plan_scene(scenes[0], make_job(tmp_path))


def test_a_remote_catalog_cannot_name_files_of_this_machine(server: FileServer) -> None:
    secret = raster(server.root / "secret.tif")
    named = [secret, f"file://{secret}", "/vsimem/x.tif", "/vsis3/bucket/x.tif"]
    items = [make_item(f"i{n}", {"a": {"href": href}}) for n, href in enumerate(named)]
    server.pages["/items.json"] = json.dumps(
        {"type": "FeatureCollection", "features": items}
    ).encode()
    found = find_scenes([f"{server.url}/items.json"], Choice())
    assert len(found) == 4
    assert "which a catalog may not name" in found[1].fault
    assert all(s.fault or s.files[0].href.startswith(server.url) for s in found)
    link = {"rel": "item", "href": f"file://{dump(server.root / 'i.json', items[0])}"}
    tree = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "d"}
    server.pages["/catalog.json"] = json.dumps(tree | {"links": [link]}).encode()
    with pytest.raises(UsageError, match=r"does not resolve|names a local file"):
        find_scenes([f"{server.url}/catalog.json"], Choice())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected STAC"),
        ("[]", "found JSON without a type"),
        ('{"type": "Polygon"}', "found a vector file, not imagery"),
        ('{"type": "Map"}', "found JSON of type Map"),
        ('{"type": "FeatureCollection", "features": []}', "expected STAC items, found none"),
        ('{"type": "FeatureCollection", "features": [{"type": "Feature"}]}', "expected STAC"),
    ],
)
def test_what_is_no_stac_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        find_scenes([str(tmp_path / "x.json")], Choice())


def test_files_of_one_band_are_grouped_into_scenes(tmp_path: Path) -> None:
    for name in (
        "IMG_DATA/R10m/T32TQM_20260101_B04_10m.jp2",
        "IMG_DATA/R20m/T32TQM_20260101_B04_20m.jp2",
        "IMG_DATA/R20m/T32TQM_20260101_B11_20m.jp2",
        "IMG_DATA/R10m/T32TQM_20260101_TCI_10m.jp2",
        "LC09_199026_B4.TIF",
        "LC09_199026_B5.TIF",
        "LC09_199026_QA_PIXEL.TIF",
        "LC09_199027_B4.TIF",
        "cog/B04.tif",
        "cog/B11.tif",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sentinel = find_scenes([str(tmp_path)], Choice(bands_from="red=B04,swir=B11"))
    assert [scene.scene_id for scene in sentinel] == ["T32TQM_20260101", "cog"]
    assert hrefs(sentinel)[0] == ["T32TQM_20260101_B04_10m.jp2", "T32TQM_20260101_B11_20m.jp2"]
    landsat = find_scenes([str(tmp_path)], Choice(bands_from="b4,b5"))
    assert [(s.scene_id, bool(s.fault)) for s in landsat] == [
        ("LC09_199026", False),
        ("LC09_199027", True),
    ]
    assert "no file of b5 beside" in landsat[1].fault
    with pytest.raises(UsageError, match="found none among"):
        find_scenes([str(tmp_path)], Choice(bands_from="B99"))


def test_a_list_names_scenes_of_several_files(tmp_path: Path) -> None:
    (tmp_path / "l.yaml").write_text(
        "- a.tif\n"
        "- {file: b.tif, id: B, acquired_at: 2026-06-21T20:00:00+02:00}\n"
        "- {mosaic: [w.tif, e.tif], id: port}\n"
        "- {bands: {red: r.tif, nir: n.tif}, id: both}\n"
    )
    one, named, mosaic, bands = find_scenes([f"@{tmp_path}/l.yaml"], Choice())
    assert (one.href, named.scene_id, mosaic.join, bands.href) == ("a.tif", "B", "mosaic", "both")
    assert named.hints.acquired_at == datetime(2026, 6, 21, 18, tzinfo=UTC)
    assert hrefs([mosaic, bands]) == [["w.tif", "e.tif"], ["r.tif", "n.tif"]]
    assert [file.names for file in bands.files] == [("red",), ("nir",)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: b", "expected a YAML list of scenes, found dict"),
        ("- {file: a.tif, mosaic: [b.tif]}", "expected one of file, bands and mosaic"),
        ("- {mosaic: [a.tif, b.tif]}", "needs an id"),
        ("- {fil: a.tif}", "fil"),
        ("- [", "expected a YAML list"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "l.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        find_scenes([f"@{tmp_path}/l.yaml"], Choice())


def test_all_files_can_be_one_scene(tmp_path: Path) -> None:
    names = [raster(tmp_path / f"{n}.tif") for n in "ab"]
    (scene,) = find_scenes(names, Choice(mosaic="both"))
    assert (scene.scene_id, scene.join, len(scene.files)) == ("both", "mosaic", 2)
    assert hrefs(find_scenes(names, Choice())) == [["a.tif"], ["b.tif"]]


def test_scenes_of_one_id_are_refused() -> None:
    for ids in (["a/x.tif", "b/x.tif"], ["https://h/1/x.tif?s=SECRET", "s3://b/x.tif"]):
        with pytest.raises(UsageError, match=r"would both be scene 'x'") as caught:
            check_ids(find_scenes(ids, Choice()))
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "a,,b", "a=", "=b", "a,a", "a=x,A=y"])
def test_wrong_bands_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--bands-from"):
        parse_bands(text)


def test_a_list_of_a_card_is_used_in_its_order(tmp_path: Path) -> None:
    item = make_item("i", {k: {**v, "href": raster(tmp_path / k)} for k, v in BANDS.items()})
    (scene,) = find_scenes([dump(tmp_path / "i.json", item)], Choice(), card_bands=("nir", "green"))
    plan = plan_scene(scene, make_job(tmp_path, card=make_card(bands=("nir", "green"))))
    assert plan.source.bands == (1, 2)
