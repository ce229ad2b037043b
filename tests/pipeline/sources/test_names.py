"""What may be named as a scene, and what is said where something else is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from shapely.geometry import Point

from scenesweep.pipeline.errors import SceneError, UnreadableScene, UsageError
from scenesweep.pipeline.planning.plan import inspect_for
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.kinds import kind_of
from scenesweep.pipeline.raster.opening import open_raster
from scenesweep.pipeline.settings import SceneSettings
from scenesweep.pipeline.sources import Choice, Named, find_scenes
from scenesweep.pipeline.sources import files as sources
from scenesweep.pipeline.storage import cloud_settings
from scenesweep.pipeline.storage.remote import version_of
from tests.catalogs import make_item
from tests.rasters import make_job, write_raster


def find(*words: str, choice: Choice | None = None) -> list[str]:
    return [ref.href for ref in find_scenes(Named(words, choice or Choice()))]


def test_a_prefix_of_a_bucket_is_searched_as_a_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landsat's names end in .TIF; what begins with a dot is left out."""
    names = ["LC09_B4.TIF", "b.tiff", ".hidden.tif", "notes.txt", "sub/c.Tif", "c//d.tif"]
    monkeypatch.setattr(sources, "list_objects", lambda _: [f"s3://bucket/{n}" for n in names])
    assert find("s3://bucket/night/") == [
        f"s3://bucket/{name}" for name in ("LC09_B4.TIF", "b.tiff", "sub/c.Tif", "c//d.tif")
    ]


@pytest.mark.parametrize("scheme", ["oss", "wasb", "abfss", "OSS", "ftp"])
@pytest.mark.parametrize("name", ["a.tif", "night/", "item.json", "items.parquet"])
def test_other_clouds_are_refused(scheme: str, name: str, tmp_path: Path) -> None:
    said = rf"{scheme}://bucket/{name}: {scheme.lower()}:// is not supported, see docs/inputs.md"
    href = f"{scheme}://bucket/{name}"
    (tmp_path / "a.txt").write_text(f"{href}\n")
    (tmp_path / "a.yaml").write_text(f"- {href}\n- {{id: b, bands: {{red: '{href}'}}}}\n")
    for word in (href, f"@{tmp_path / 'a.yaml'}"):
        with pytest.raises(UsageError, match=said):
            find(word)
    if name in ("a.tif", "night/"):
        with pytest.raises(UsageError, match=said):
            find(f"@{tmp_path / 'a.txt'}")


def test_an_item_in_another_cloud_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "item.json"
    path.write_text(json.dumps(make_item("a", {"image": {"href": "oss://bucket/a.tif"}})))
    (ref,) = find_scenes(Named((str(path),)))
    with pytest.raises(SceneError, match=r"oss:// is not supported, see docs/inputs\.md"):
        inspect_for(ref, make_job(tmp_path).settings.scenes)


def test_a_mosaic_of_items_that_are_all_under_cloud_is_no_scene(tmp_path: Path) -> None:
    path = tmp_path / "item.json"
    item = make_item("a", {"image": {"href": "a.tif"}}, **{"eo:cloud_cover": 90})
    path.write_text(json.dumps(item))
    assert find(str(path), choice=Choice(mosaic="port", max_cloud=20)) == []
    assert len(find(str(path), choice=Choice(mosaic="port"))) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {file: a.tif, acquired_at: 2026-06-31}", "expected a YAML list of scenes: day is out"),
        ("- " + "[" * 3000, "expected a YAML list of scenes"),
        ("- '@a.yaml'", "expected the file of a scene, found the list @a.yaml"),
        ("- {id: a, mosaic: ['@a.txt', b.tif]}", "found the list @a.txt"),
        ("- {file: a.tif, acquired_at: soon}", "acquired_at: expected a time such as .*'soon'"),
        ("- {file: a.tif, acquired: 2026-06-01}", "there is no such name"),
        ("- 3", "expected a group of settings, got 3"),
    ],
)
def test_a_wrong_list_of_scenes_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"^@a\.yaml: .*{said}") as error:
        find("@a.yaml")
    assert "pydantic" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_that_names_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("x.tif\n@a.txt\n")
    Path("b.txt").write_text("@c.txt\n")
    Path("c.txt").write_text("@./b.txt\n")
    for word in ("@a.txt", "@b.txt"):
        with pytest.raises(UsageError, match=r"^@.*: the list names itself$"):
            find(word)
    Path("d.txt").write_text("@e.txt\n@e.txt\n")
    Path("e.txt").write_text("x.tif\n")
    assert find("@d.txt") == ["x.tif"]
    Path("f.txt").write_text("@scenes.yaml\n")
    with pytest.raises(UsageError, match="a list in YAML cannot stand in another list"):
        find("@f.txt")


NOT_IMAGERY = "a vector file, not imagery; for areas use --aoi"


@pytest.mark.parametrize("name", ["a.gpkg", "a.fgb", "a.shp"])
def test_a_vector_file_is_no_scene(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    gpd.GeoDataFrame({"a": [1]}, geometry=[Point(1, 2)], crs="EPSG:4326").to_file(path)
    with pytest.raises(UsageError, match=rf"{name}: expected imagery, found {NOT_IMAGERY}"):
        find(str(path))
    with pytest.raises(UnreadableScene, match=f"found a .*{NOT_IMAGERY}"):  # as of a glob
        inspect(str(path))


@pytest.mark.parametrize("name", ["a.geojson", "a.json", "a.parquet"])
def test_a_vector_file_is_no_stac(tmp_path: Path, name: str) -> None:
    frame = gpd.GeoDataFrame({"a": [1]}, geometry=[Point(1, 2)], crs="EPSG:4326")
    path = tmp_path / name
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_file(path, driver="GeoJSON")
    with pytest.raises(UsageError, match=rf"expected STAC or imagery, found {NOT_IMAGERY}"):
        find(str(path))


def test_a_missing_item_is_said_in_our_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"item\.json: expected STAC, found no such file$"):
        find(str(tmp_path / "item.json"))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.vrt", "<VRTDataset rasterXSize='9'>", "a VRT: add --driver VRT if you trust it"),
        ("a.tif", "<?xml version='1.0'?>\n<VRTDataset>", "a VRT"),
        ("a.mrf", "<MRF_META>", "an MRF: add --driver MRF if you trust it"),
        ("a.tif", "<!DOCTYPE html><title>404</title>", "an HTML page"),
        ("a.xml", "<metadata/>", "an XML file"),
        ("a.kml", "<?xml version='1.0'?><kml>", NOT_IMAGERY),
        ("a.csv", "a,b\n1,2\n", "a CSV file: a table, not imagery"),
        ("notes.txt", "hello", "a text file"),
        ("a.tif", '{"a": {"type": "Polygon"}}', NOT_IMAGERY),
        ("a.tif", '{"a": 1}', "a JSON file"),
        ("a.tif", "version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.tif", "", "an empty file"),
        ("a.tif", "\x89HDF\r\n\x1a\n", ""),
        ("a.tif", "\0\0\0\0", ""),
    ],
)
def test_what_a_file_is_in_place_of_a_raster(
    tmp_path: Path, name: str, content: str, kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8"))
    assert kind in kind_of(path)
    with pytest.raises(
        UnreadableScene, match=r"expected one of the formats GTiff.*, found "
    ) as said:
        inspect(str(path))
    assert kind in str(said.value)
    assert "something else" in str(said.value) or kind


def test_a_text_longer_than_what_is_looked_at_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ä" * 5000)  # the last character that is read is cut in half
    assert kind_of(path) == "a text file"
    path.write_bytes(b"a" + "ä".encode() * 5000)
    assert kind_of(path) == "a text file"
    path.write_bytes(b"\xff\xfe" + bytes(range(256)))
    assert kind_of(path) == ""


def test_missing_credentials_are_said_in_our_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By GDAL and by us, before any request."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "NO")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CPL_AWS_AUTODETECT_EC2", "NO")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    says = re.escape(f"s3://bucket/a.tif: {cloud_settings.NO_CREDENTIALS['s3']}")
    with pytest.raises(UnreadableScene, match=f"^{says}$"), open_raster("s3://bucket/a.tif"):
        pass
    monkeypatch.setattr(cloud_settings, "_on_a_machine_of_a_cloud", lambda: False)
    with pytest.raises(UnreadableScene, match=f"^{says}$"):
        version_of("s3://bucket/a.tif")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UnreadableScene, match=r"profile \(nobody\) of AWS could not be"):
        version_of("s3://bucket/a.tif")


def test_a_raster_driver_makes_its_files_scenes(tmp_path: Path) -> None:
    """A GeoPackage may hold a raster: whoever names the driver gets it."""
    named = Named((str(write_raster(tmp_path / "a.gpkg", np.ones((1, 9, 9), np.uint8))),))
    (ref,) = find_scenes(named, SceneSettings(drivers=("GTiff", "GPKG")))
    assert ref.href.endswith("a.gpkg")
