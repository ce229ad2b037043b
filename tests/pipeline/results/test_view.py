"""Pages: what they hold is what was published, and nothing in them comes from elsewhere."""

from __future__ import annotations

import re
from base64 import b64decode
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from scenesweep.pipeline.errors import UnreadableScene
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.publish.publish import publish
from scenesweep.pipeline.results.view import (
    PageSettings,
    find_published,
    make_entry,
    source_of,
    write_index,
    write_page,
)
from scenesweep.pipeline.results.view.pack import DEGREE, read_detections
from scenesweep.pipeline.results.view.page import render
from scenesweep.pipeline.results.view.pyramid import TILE_PX, cut_pyramid
from tests.pages import EVIL, Parsed, found, published
from tests.rasters import make_job, ref_of, write_raster


def column(data: dict[str, Any], name: str) -> NDArray[Any]:
    said = data["columns"][name]
    return np.frombuffer(b64decode(said["data"]), np.dtype(said["type"]).newbyteorder("<"))


def page_of(out: Path, scene: Path | None = None, *, megabytes: float = 24) -> Parsed:
    (one,) = find_published(out).values()
    path = out / "view" / "page.html"
    assert write_page(
        one, source_of(one, str(scene) if scene else None), path, PageSettings(megabytes)
    )
    return Parsed(path.read_text(encoding="utf-8"))


def test_a_page_holds_every_row_of_the_table(tmp_path: Path) -> None:
    published(tmp_path / "out", count=200, classes=("square", "ring"))
    data = page_of(tmp_path / "out").data
    (path,) = (tmp_path / "out" / "detections").rglob("*.parquet")
    frame = gpd.read_parquet(path).sort_values("score", kind="stable")
    assert data["scene"]["total"] == len(frame) == 200
    np.testing.assert_array_equal(column(data, "score"), frame.score.astype(np.float32))
    xyxy = column(data, "xyxy").reshape(-1, 4)
    np.testing.assert_allclose(xyxy, frame[["x_min", "y_min", "x_max", "y_max"]], rtol=1e-6)
    ids = [row.tobytes().hex() for row in column(data, "identity").reshape(-1, 8)]
    assert ids == frame.detection_id.tolist()
    names = [data["classes"][label] for label in column(data, "label")]
    assert names == frame.class_name.tolist()
    lonlat = column(data, "lonlat").reshape(-1, 2) / DEGREE
    np.testing.assert_allclose(lonlat, frame[["center_lon", "center_lat"]], atol=5.1e-8, rtol=0)
    np.testing.assert_allclose(
        column(data, "size_m").reshape(-1, 2), frame[["width_m", "height_m"]], rtol=1e-6
    )
    assert column(data, "truncated").tolist() == frame.truncated.astype(int).tolist()
    assert (data["scene"]["width"], data["scene"]["height"]) == (300, 300)
    assert data["scene"]["gsd_m"] == pytest.approx(0.6, rel=5e-3)


def test_of_too_many_rows_the_lowest_scores_are_left_out(tmp_path: Path) -> None:
    published(tmp_path / "out", count=100)
    (path,) = (tmp_path / "out" / "detections").rglob("*.parquet")
    detections = read_detections(path, most=30)
    every = np.sort(gpd.read_parquet(path).score.to_numpy())
    assert (detections.total, len(detections)) == (100, 30)
    np.testing.assert_array_equal(detections.score, every[-30:])


def test_no_detections_and_no_georeference(tmp_path: Path) -> None:
    settings = ("scenes.pixel_coordinates=true",)
    published(tmp_path / "empty", name="e", count=0)
    published(tmp_path / "plain", name="p", count=5, settings=settings)
    assert column(page_of(tmp_path / "empty").data, "score").size == 0
    data = page_of(tmp_path / "plain").data
    assert column(data, "score").size == 5
    assert not {"lonlat", "size_m"} & data["columns"].keys()
    assert data["scene"]["gsd_m"] is None


def test_what_is_no_table_of_ours_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "a.parquet"
    text.write_text("not a table")
    with pytest.raises(UnreadableScene, match="expected a published table"):
        read_detections(text, most=10)
    published(tmp_path / "out")
    (path,) = (tmp_path / "out" / "detections").rglob("*.parquet")
    gpd.read_parquet(path).drop(columns="score").to_parquet(text)
    with pytest.raises(UnreadableScene, match="score"):
        read_detections(text, most=10)


def test_names_cannot_leave_their_place(tmp_path: Path) -> None:
    published(tmp_path / "out", classes=(EVIL, "b"), count=20)
    (one,) = find_published(tmp_path / "out").values()
    page = page_of(tmp_path / "out")
    assert page.data["classes"] == [EVIL, "b"]
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 2
    path = tmp_path / "index.html"
    write_index(path, [make_entry(one)], [(EVIL, EVIL)], pages={one.scene_id})
    index = Parsed(path.read_text())
    assert len([tag for tag, _ in index.tags if tag == "script"]) == 1
    assert index.words.count(EVIL) == 3


@given(st.text())
def test_any_title_and_data_come_back_as_they_were(text: str) -> None:
    values = {"key": "k", "title": text, "data": {"classes": [text]}}
    page = Parsed(render("scene.html", (), **values))
    assert page.data == {"classes": [text]}
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 2


def test_pages_ask_for_nothing(tmp_path: Path) -> None:
    """Every address in a page is inside it, or a link that a person must click."""
    published(tmp_path / "out")
    (one,) = find_published(tmp_path / "out").values()
    index = tmp_path / "index.html"
    write_index(index, [make_entry(one)], [], pages={one.scene_id})
    for page in (page_of(tmp_path / "out"), Parsed(index.read_text())):
        for tag, attributes in page.tags:
            assert tag not in ("link", "iframe", "object", "embed", "base", "form")
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            for name in ("src", "srcset", "poster", "action"):
                assert (attributes.get(name) or "data:").startswith("data:")
        policy = next(a["content"] for t, a in page.tags if "http-equiv" in a)
        assert policy is not None
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
    style = re.findall(r"url\(|@import", index.read_text())
    assert style == []


def test_the_pyramid_is_the_picture_at_each_level() -> None:
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(40, 200, (13, 18, 1)), np.ones((100, 100, 3))).astype(np.uint8)
    picture = smooth[:1201, :1733]
    levels = cut_pyramid(picture, most_bytes=10**9)
    assert [(level.width, level.height) for level in levels] == [
        (434, 301),
        (867, 601),
        (1733, 1201),
    ]
    for level in levels:
        across = -(-level.width // TILE_PX)
        whole = np.zeros((level.height, level.width, 3), np.uint8)
        for number, tile in enumerate(level.tiles):
            row, col = (TILE_PX * place for place in divmod(number, across))
            pixels = np.asarray(Image.open(BytesIO(tile)).convert("RGB"))
            whole[row : row + pixels.shape[0], col : col + pixels.shape[1]] = pixels
        expected = Image.fromarray(picture).resize(
            (level.width, level.height), Image.Resampling.BOX
        )
        assert np.abs(whole.astype(int) - np.asarray(expected, int)).mean() < 3


def test_levels_that_do_not_fit_are_left_out() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8)
    every = cut_pyramid(noise, most_bytes=10**9)
    assert len(every) == 3
    budget = every[0].bytes + every[1].bytes
    assert cut_pyramid(noise, most_bytes=budget) == every[:2]
    assert cut_pyramid(noise, most_bytes=0) == every[:1]


def test_a_page_keeps_to_its_size_and_is_written_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1, 1100, 1100), np.uint8)
    scene = published(tmp_path / "out", size=300)
    write_raster(scene, noise)
    job = make_job(tmp_path / "out", "publish.quicklook=true")
    publish(found(20, 1100), plan_scene(ref_of(scene), job), job)
    (one,) = find_published(tmp_path / "out").values()
    raster = source_of(one, str(scene))
    path = tmp_path / "page.html"
    assert write_page(one, raster, path, PageSettings(24))
    whole = path.read_bytes()
    assert not write_page(one, raster, path, PageSettings(24))
    assert write_page(one, raster, path, PageSettings(0.5))
    assert path.stat().st_size < 0.5e6 < len(whole)
    assert write_page(one, None, path, PageSettings(24))
    assert write_page(one, raster, path, PageSettings(24))
    assert path.read_bytes() == whole


def test_the_picture_is_the_scene_itself_only_while_it_is_the_same(tmp_path: Path) -> None:
    scene = published(tmp_path / "out", settings=("publish.quicklook_px=64",))
    (one,) = find_published(tmp_path / "out").values()
    data = page_of(tmp_path / "out", scene).data
    assert (data["base"], data["scene"]["picture"]) == ("scene", [300, 300])
    assert source_of(one, str(tmp_path / "missing.tif")) is None
    write_raster(scene, np.ones((1, 300, 301), np.uint8))
    assert source_of(one, str(scene)) is None
    (tmp_path / "out" / "view" / "page.html").unlink()
    data = page_of(tmp_path / "out").data
    assert (data["base"], data["scene"]["picture"]) == ("quicklook", [64, 64])
    (tmp_path / "out" / "quicklooks" / "scene.png").write_bytes(b"broken")
    data = page_of(tmp_path / "out").data
    assert (data["base"], data["levels"]) == ("none", [])


def test_pixels_that_are_not_valid_are_transparent(tmp_path: Path) -> None:
    scene = published(tmp_path / "out", nodata=90)
    (level,) = page_of(tmp_path / "out", scene).data["levels"]
    tile = np.asarray(Image.open(BytesIO(b64decode(level["tiles"][0]))))
    assert set(np.unique(tile[..., 3])) == {0, 255}
    assert (tile[::7, :, 3] == 255).all()


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {'])
def test_text_stands_out_from_its_ground(theme: str) -> None:
    """At least 4.5 to 1, as WCAG 2.2 asks (1.4.3), and 3 to 1 for what is no text (1.4.11)."""
    style = files("scenesweep.pipeline.results.view").joinpath("page", "page.css").read_text()
    block = style.split(theme, 1)[1].split("}", 1)[0]
    shade = {name: luminance(value) for name, value in re.findall(r"--([\w-]+): (#\w{6});", block)}

    def contrast(a: str, b: str) -> float:
        dark, light = sorted([shade[a], shade[b]])
        return (light + 0.05) / (dark + 0.05)

    for text in ("ink", "quiet", "accent"):
        assert min(contrast(text, ground) for ground in ("surface", "raised", "ground")) >= 4.5
    assert contrast("note-ink", "note") >= 4.5
    assert contrast("bad", "surface") >= 4.5
    assert contrast("bar", "surface") >= 3


def test_the_two_ways_to_the_dark_theme_are_one() -> None:
    style = files("scenesweep.pipeline.results.view").joinpath("page", "page.css").read_text()
    blocks = re.findall(r"color-scheme: dark;(.*?)}", style, re.DOTALL)
    assert len(blocks) == 2
    assert blocks[0].split() == blocks[1].split()
