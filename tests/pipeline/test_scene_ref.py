"""Ids of scenes: decided once, from a scene's own addresses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenesweep.jobs import cli
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.scene import (
    Hints,
    RasterFile,
    SceneRef,
)
from scenesweep.pipeline.settings import load_settings
from scenesweep.pipeline.sources import Choice, Named, check_ids, find_scenes
from scenesweep.pipeline.sources.ids import identified, source_address
from scenesweep.pipeline.sweep import carry_out, take_order
from tests.rasters import paint_squares, write_raster
from tests.small_models import a_model

HEX = "-[0-9a-f]{8}"


def path_id(*hrefs: str, scene_id: str = "") -> str:
    return identified(SceneRef(tuple(map(RasterFile, hrefs)), scene_id), "path").scene_id


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("kampala_buildings/scene.tif", "kampala_buildings-scene"),
        ("./kampala_buildings//scene.tif", "kampala_buildings-scene"),
        ("scene.tif", "scene"),
        ("a-b/c.tif", f"a-b-c{HEX}"),  # would be the id of a/b-c.tif too
        ("a/b-c.tif", f"a-b-c{HEX}"),
        ("a-b.tif", f"a-b{HEX}"),
        ("a/scene.jp2", f"a-scene{HEX}"),
        ("/data/kampala/scene.tif", f"kampala-scene{HEX}"),
        ("../kampala/scene.tif", f"kampala-scene{HEX}"),
        ("scenes/IMG_DATA/R10m/scene.tif", f"IMG_DATA-scene{HEX}"),
        ("w\u00f6rld/scene.tif", f"w_rld-scene{HEX}"),
        ("https://host/scene.tif", f"scene{HEX}"),
        ("https://host/night/scene.tif?file=a", f"night-scene{HEX}"),
        ("s3://bucket/night/scene.tif", f"night-scene{HEX}"),
        ("f" * 300 + "/" + "n" * 300 + ".tif", f"{'f' * 50}-{'n' * 50}{HEX}"),
    ],
)
def test_an_id_of_a_path_is_readable(href: str, expected: str) -> None:
    assert re.fullmatch(expected, path_id(href))
    assert len(path_id(href)) <= 120
    assert identified(SceneRef.of_file(href), "stem").scene_id == SceneRef.of_file(href).scene_id


NAMES = st.text("ab-_.", min_size=1, max_size=3).filter(lambda name: set(name) != {"."})
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "/".join(names) + ".tif")


@given(one=PATHS, other=PATHS)
def test_other_paths_have_other_ids(one: str, other: str) -> None:
    assert (path_id(one) == path_id(other)) == (one == other)


def test_scenes_of_several_files_have_ids_of_their_own(tmp_path: Path) -> None:
    for folder in "ab":
        for band in ("B04", "B03"):
            path = tmp_path / folder / f"T32_{band}.tif"
            write_raster(path, np.ones((1, 64, 64), np.uint8))
    found = find_scenes(Named((str(tmp_path),), Choice(bands_from="B04,B03")))
    with pytest.raises(UsageError, match=r"scenes\.ids=path, or list them in @scenes\.yaml"):
        check_ids(found)
    named = [identified(scene, "path") for scene in found]
    check_ids(named)
    assert all(re.fullmatch(f"[ab]-T32{HEX}", scene.scene_id) for scene in named)


def test_addresses_that_differ_in_their_query_differ_in_their_id() -> None:
    one, other = "https://h/get?file=a.tif", "https://h/get?file=b.tif"
    assert path_id(one) != path_id(other)
    assert path_id(one) == path_id(one)


@pytest.mark.parametrize(
    ("href", "address"),
    [
        ("https://h/a.tif?X-Amz-Signature=1&X-Amz-Date=2", "https://h/a.tif"),
        ("https://h/a.tif?f=3&sv=1&st=2&se=3&sig=4", "https://h/a.tif?f=3"),
        ("https://h/a.tif?st=2", "https://h/a.tif?st=2"),  # no signature: it may name the file
        ("https://me:secret@h/a.tif?f=1#x", "https://h/a.tif?f=1"),
        ("s3://b/a.tif", "s3://b/a.tif"),
        ("a?b.tif", "a?b.tif"),
    ],
)
def test_a_signature_is_no_part_of_an_address(href: str, address: str) -> None:
    assert source_address(href) == address


def test_an_id_that_the_user_gave_stays(tmp_path: Path) -> None:
    listing = tmp_path / "scenes.yaml"
    listing.write_text(
        "- {file: x/a.tif, id: noon}\n- x/a.tif\n- {mosaic: [a.tif, b.tif], id: m}\n"
    )
    found = find_scenes(Named((f"@{listing}",)))
    assert [identified(scene, "path").scene_id for scene in found] == ["noon", "x-a", "m"]
    (mosaic,) = find_scenes(Named(("a.tif", "b.tif"), Choice(mosaic="port")))
    assert identified(mosaic, "path").scene_id == "port"


def test_items_that_cannot_be_swept_do_not_share_an_id() -> None:
    faults = [
        SceneRef((), "i0", hints=Hints(item="i0", collection=name), fault="no asset")
        for name in ("c", "d")
    ]
    check_ids([identified(scene, "path") for scene in faults])


def test_a_scene_has_one_id_whatever_becomes_of_it(tmp_path: Path) -> None:
    """Failed or done, in the report, in the order of the scenes, named twice with two ids."""
    pixels, _ = paint_squares(64, 64, largest=10, seed=1)
    good = write_raster(tmp_path / "a" / "scene.tif", pixels)
    bad = tmp_path / "b" / "scene.tif"
    bad.parent.mkdir()
    bad.write_text("no raster")
    listing = tmp_path / "scenes.yaml"
    listing.write_text(
        f"- {{file: {good}, id: late}}\n- {bad}\n- {good}\n- {{file: {good}, id: b}}\n"
    )
    out, model = tmp_path / "out", a_model(tmp_path)
    settings = load_settings(None, ["scenes.ids=path", "publish.quicklook=false"])
    order = take_order([f"@{listing}"], model, str(out), None, settings)
    run = carry_out(order, address="none")
    ids = ["late", path_id(str(bad)), path_id(str(good)), "b"]
    assert [result.scene_id for result in run.results] == ids
    assert [result.status for result in run.results] == ["done", "failed", "done", "done"]
    assert {path.stem for path in (out / "items").iterdir()} == {ids[0], ids[2], ids[3]}
    write_raster(bad, pixels)
    again = carry_out(order, address="none")
    assert [result.scene_id for result in again.results] == ids
    assert again.results[1].status == "done"


def test_two_scenes_of_one_id_are_refused_whatever_makes_ids(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(tmp_path / "a" / "s.tif", np.ones((1, 64, 64), np.uint8))
    a_model(tmp_path)
    asked = ["detect", "a/s.tif", "./a/s.tif", "--model", "m.safetensors", "--out", "out"]
    assert cli.main([*asked, "--address", "none", "--set", "scenes.ids=path"]) == 2
    assert "a/s.tif and ./a/s.tif would both be scene 'a-s'" in capfd.readouterr().err
