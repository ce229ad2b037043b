"""Pages in a headless Chromium, from a folder and without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from PIL import Image

from scenesweep.pipeline.publish.stac.model_item import SIZES_MEANINGFUL
from scenesweep.pipeline.results.view import (
    PageSettings,
    find_published,
    make_entry,
    write_index,
    write_page,
)
from tests.chromium import Tab, find_chromium, in_chromium
from tests.pages import EVIL, describe, published
from tests.pipeline.planning.test_area import LEFT
from tests.rasters import make_job, write_raster
from tests.sweeps import sweep

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")

SLOW_FILTER = """(() => {
  const { boxes, data } = scenesweep, { columns } = boxes;
  const shown = [...boxes.enabled.keys()].map(() => 0);
  for (let i = 0; i < boxes.length; i++)
    if (columns.score[i] >= Math.fround(LEAST)) shown[columns.label[i]]++;
  return shown;
})()"""
FRAMES = """(async () => {
  const { map } = scenesweep, times = [];
  for (let i = 0; i < 60; i++) {
    map.scale = map.fitScale() * 1.1 ** (i % 30);
    map.x += 5;
    await new Promise(requestAnimationFrame);
    const began = performance.now();
    map.render();
    times.push(performance.now() - began);
  }
  return times.sort((a, b) => a - b)[30];
})()"""


def page(out: Path, **what: Any) -> Path:
    published(out, **what)
    for one in find_published(out).values():
        write_page(one, None, out / "view" / f"{one.scene_id}.html", PageSettings())
    (path,) = (out / "view").glob("*.html")
    return path


def look(path: Path, act: Callable[[Tab], Coroutine[Any, Any, Any]]) -> Any:
    """Open a page, act, and see that it neither complained nor asked for anything else."""

    async def run(tab: Tab) -> Any:
        await tab.resize(1000, 700)
        await tab.open(path)
        said = await act(tab)
        assert tab.complaints == []
        assert [r for r in tab.requests if not r.startswith(("data:", path.as_uri()))] == []
        return said

    return in_chromium(run)


OUTLINE = """(() => {
  const { map } = scenesweep;
  map.render();
  const scale = map.scale * map.density, { width, height } = map.base.canvas;
  const { data } = map.overlay.getImageData(0, Math.round(height / 2), width, 1);
  return [60, 150, 240].map((column) => {
    const x = Math.round((column - map.x) * scale + width / 2);
    const [r, g, b, a] = data.slice(4 * x, 4 * x + 4);
    return r > 200 && g > 150 && b < 150 && a > 200;
  });
})()"""


def test_the_outline_of_an_area_is_drawn(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "s.tif", np.ones((1, 300, 300), np.uint8))
    sweep([scene], make_job(tmp_path / "out", area=LEFT))  # up to column 150
    (one,) = find_published(tmp_path / "out").values()
    write_page(one, None, tmp_path / "s.html", PageSettings())

    async def act(tab: Tab) -> None:
        assert await tab.evaluate(OUTLINE) == [False, True, False]
        assert "only inside the outline" in await tab.evaluate("about.textContent")

    look(tmp_path / "s.html", act)


def test_filters_hits_and_steps_agree_with_the_table(tmp_path: Path) -> None:
    path = page(tmp_path / "out", count=400, classes=("square", EVIL))
    (table,) = (tmp_path / "out" / "detections").rglob("*.parquet")
    frame = gpd.read_parquet(table).sort_values("score", kind="stable").reset_index(drop=True)
    corners = frame[["x_min", "y_min", "x_max", "y_max"]].to_numpy()

    async def act(tab: Tab) -> None:
        for least in (0.25, 0.7, 1.0):
            await tab.evaluate(
                f"(() => {{ const s = document.getElementById('score'); s.value = {least}; "
                "s.dispatchEvent(new Event('input')); })()"
            )
            counts = await tab.evaluate("[...scenesweep.boxes.counts()]")
            assert counts == await tab.evaluate(SLOW_FILTER.replace("LEAST", str(least)))
            kept = frame[frame.score >= np.float32(least)]
            assert counts == [(kept.class_name == name).sum() for name in ("square", EVIL)]
            assert await tab.evaluate("shown.textContent") == f"{len(kept):,}"
        await tab.evaluate("scenesweep.boxes.setLeast(0.5)")
        for x, y in np.random.default_rng(1).uniform(0, 300, (20, 2)).tolist():
            hits = await tab.evaluate(f"scenesweep.boxes.at({x}, {y}, 0)")
            inside = (corners[:, :2] <= [x, y]).all(1) & (corners[:, 2:] >= [x, y]).all(1)
            assert set(hits) == set(frame.index[inside & (frame.score >= np.float32(0.5))])
            areas = np.prod(corners[hits, 2:] - corners[hits, :2], axis=1)
            assert (np.diff(areas) >= -1e-3).all()
        await tab.press("]")
        assert await tab.evaluate("scenesweep.map.picked") == 399
        await tab.press("]")
        await tab.press("]")
        await tab.press("[")
        picked = frame.iloc[398]
        assert await tab.evaluate("location.hash.slice(1)") == picked.detection_id
        assert await tab.evaluate("document.getElementById('osm').href") == (
            f"https://www.openstreetmap.org/?mlat={picked.center_lat:.6f}"
            f"&mlon={picked.center_lon:.6f}#map=18/{picked.center_lat:.6f}/"
            f"{picked.center_lon:.6f}"
        )
        assert picked.class_name in await tab.evaluate("picked.textContent")

    look(path, act)


def test_a_click_picks_the_box_under_it_and_escape_lets_go(tmp_path: Path) -> None:
    path = page(tmp_path / "out", count=30)

    async def act(tab: Tab) -> None:
        await tab.evaluate("scenesweep.map.scale = 4, scenesweep.map.move()")
        box = await tab.evaluate("scenesweep.boxes.centre(29)")
        await tab.evaluate(f"scenesweep.map.x = {box[0]}, scenesweep.map.y = {box[1]}")
        width, height = await tab.evaluate("[scenesweep.map.width, scenesweep.map.height]")
        hits = await tab.evaluate(f"scenesweep.boxes.at({box[0]}, {box[1]}, 1)")
        for expected in [*hits, hits[0]]:
            await tab.click(width / 2, height / 2)
            assert await tab.evaluate("scenesweep.map.picked") == expected
        await tab.press("Escape")
        assert await tab.evaluate("scenesweep.map.picked") == -1
        assert await tab.evaluate("location.hash") == ""

    look(path, act)


def test_the_slider_begins_at_the_threshold_and_places_are_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    inference = {"mlm:hyperparameters": {"inference": {"score_threshold": 0.5}}}
    path = page(out, count=200, settings=("detect.score_threshold=0.12",))
    describe(out, description="Squares of one town", **inference)
    (one,) = find_published(out).values()
    write_page(one, None, path, PageSettings())

    async def act(tab: Tab) -> None:
        slider = "[Number(score.min), Number(score.value), least.textContent]"
        slider = slider.replace("score.", "document.getElementById('score').")
        assert await tab.evaluate(slider) == [0.12, 0.12, "≥ 0.12"]
        assert await tab.evaluate("mark.textContent") == "0.50 is the model's threshold"
        told = await tab.evaluate("about.textContent")
        for text in ("Squares of one town", "Acquiredunknown", "Centre34.", "Extentlat 34."):
            assert text in told
        width, height = await tab.evaluate("[scenesweep.map.width, scenesweep.map.height]")
        await tab.move(width / 2, height / 2)
        table = gpd.read_parquet(one.table)
        x, y = await tab.evaluate("[scenesweep.map.x, scenesweep.map.y]")
        far = (table.x_min + table.x_max - 2 * x) ** 2 + (table.y_min + table.y_max - 2 * y) ** 2
        near = table.loc[far.idxmin()]
        lat, lon = await tab.evaluate("cursor.textContent.match(/-?\\d+\\.\\d+/g).map(Number)")
        assert (lat, lon) == pytest.approx((near.center_lat, near.center_lon), abs=3e-4)

    look(path, act)


def test_an_unknown_id_in_the_address_is_told(tmp_path: Path) -> None:
    path = page(tmp_path / "out", count=5)

    async def act(tab: Tab) -> None:
        assert await tab.evaluate("note.hidden")
        for id_ in ("0123456789abcdef", "<b>"):
            await tab.evaluate(f"location.hash = '#{id_}'")
            await asyncio.sleep(0.1)
            assert "This page has no detection" in await tab.evaluate("note.textContent")
        assert await tab.evaluate("note.querySelector('b') === null")
        await tab.press("]")
        assert await tab.evaluate("note.hidden")

    look(path, act)


def test_the_picked_box_keeps_its_name_and_is_zoomed_to(tmp_path: Path) -> None:
    """Of boxes one in another the tooltip names the picked one, not the smallest."""
    path = page(tmp_path / "out", count=60)

    async def act(tab: Tab) -> None:
        await tab.evaluate("scenesweep.map.fit()")
        await tab.press("]")
        side = await tab.evaluate(
            "(({ boxes, map }) => { const b = boxes.columns.xyxy.subarray(4 * map.picked);"
            " return Math.max(b[2] - b[0], b[3] - b[1]) * map.scale; })(scenesweep)"
        )
        assert side >= 48
        await tab.evaluate(
            "(({ boxes, map }) => { const { xyxy } = boxes.columns, at = 4 * map.picked;"
            " const [x, y] = boxes.centre(map.picked);"
            " xyxy.set([x - 1, y - 1, x + 1, y + 1], map.picked ? 0 : 4); })(scenesweep)"
        )
        width, height = await tab.evaluate("[scenesweep.map.width, scenesweep.map.height]")
        await tab.move(width / 2, height / 2)
        hits, picked, best = await tab.evaluate(
            "(({ boxes, map }) => [boxes.at(map.x, map.y, 0), map.picked,"
            " boxes.columns.score[map.picked].toFixed(2)])(scenesweep)"
        )
        assert hits[0] != picked
        assert picked in hits
        assert best in await tab.evaluate("tip.textContent")

    look(path, act)


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    """Outlines on screen, for a map whose one scene pixel is four of the screen's."""
    path = page(tmp_path / "out", count=12)

    async def act(tab: Tab) -> None:
        await tab.evaluate("scenesweep.map.scale = 4, scenesweep.map.move()")
        wrong = await tab.evaluate("""(() => {
          const { map, boxes } = scenesweep, { xyxy } = boxes.columns;
          map.render();
          const yellow = boxes.colours[0], wrong = [];
          const at = (x, y) => map.pixels[Math.round(y) * map.image.width + Math.round(x)];
          for (let i = 0; i < boxes.length; i++) {
            const [x0, y0, x1, y1] = xyxy.subarray(4 * i, 4 * i + 4);
            const sx = x => (x - map.x) * 4 + map.width / 2;
            const sy = y => (y - map.y) * 4 + map.height / 2;
            const middle = [(sx(x0) + sx(x1)) / 2, (sy(y0) + sy(y1)) / 2];
            if (sx(x0) < 5 || sy(y0) < 5) continue;
            if (sx(x1) > map.width - 5 || sy(y1) > map.height - 5) continue;
            if (at(sx(x0), middle[1]) !== yellow || at(middle[0], sy(y0)) !== yellow) wrong.push(i);
            if (at(sx(x1) - 1, middle[1]) !== yellow) wrong.push(i);
          }
          return wrong;
        })()""")
        assert wrong == []
        await tab.press("b")
        assert (
            await tab.evaluate("(scenesweep.map.render(), scenesweep.map.pixels.some(Boolean))")
            is False
        )

    look(path, act)


def test_it_fits_a_narrow_window_follows_it_and_has_two_themes(tmp_path: Path) -> None:
    path = page(tmp_path / "out", count=5)

    async def act(tab: Tab) -> None:
        for width, height in ((390, 700), (1600, 900), (700, 390)):
            await tab.resize(width, height)
            await asyncio.sleep(0.2)
            assert await tab.evaluate("document.documentElement.scrollWidth") == width
            fits = "Math.abs(scenesweep.map.scale / scenesweep.map.fitScale() - 1) < 0.01"
            assert await tab.evaluate(fits)
            assert await tab.evaluate("scenesweep.map.height") > 100
        shades = []
        for scheme in ("light", "dark"):
            await tab.prefer(scheme)
            await tab.screenshot(tmp_path / "shot.png")
            shades.append(float(np.asarray(Image.open(tmp_path / "shot.png").convert("L")).mean()))
        await tab.press("t")
        await tab.screenshot(tmp_path / "shot.png")
        shades.append(float(np.asarray(Image.open(tmp_path / "shot.png").convert("L")).mean()))
        assert shades[1] < shades[0] - 50
        assert shades[2] == pytest.approx(shades[0], abs=10)

    look(path, act)


@pytest.mark.parametrize("meaningful", [True, False])
def test_sizes_are_shown_only_if_they_mean_something(tmp_path: Path, meaningful: bool) -> None:
    out = tmp_path / "out"
    published(out, count=3)
    describe(out, **({} if meaningful else {SIZES_MEANINGFUL: False}))
    (one,) = find_published(out).values()
    write_page(one, None, tmp_path / "s.html", PageSettings())

    async def act(tab: Tab) -> None:
        await tab.press("]")
        text = await tab.evaluate("document.getElementById('facts').textContent")
        assert ("On the ground" in text, "Area" in text) == (meaningful, meaningful)
        about = await tab.evaluate("document.getElementById('about').textContent")
        assert ("use their centres" in about) is not meaningful

    look(tmp_path / "s.html", act)


def test_a_hundred_thousand_boxes_stay_smooth(tmp_path: Path) -> None:
    """The middle frame of a zoom through all scales: 60 frames a second leave 16 ms."""
    path = page(tmp_path / "out", count=100_000, size=2048, settings=("publish.formats=[]",))

    async def act(tab: Tab) -> float:
        return float(await tab.evaluate(FRAMES))

    frame_ms = look(path, act)
    print(f"{frame_ms:.1f} ms")
    assert frame_ms < 50  # three times what it takes, for machines that do other things


def test_the_index_finds_and_orders_scenes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    dates = {"alpha": "2026-06-04", "beta": "", "gamma": "2026-06-01"}
    for (name, date), count in zip(dates.items(), (3, 20, 0), strict=True):
        settings = (f"scenes.acquired_at={date}",) if date else ()
        published(out, name=name, count=count, settings=settings)
    cards = [make_entry(one) for one in find_published(out).values()]
    path = out / "view" / "index.html"
    write_index(path, cards, [("bad.tif", EVIL)], pages={"alpha"})

    async def act(tab: Tab) -> None:
        async def enter(id_: str, value: str) -> list[str]:
            await tab.evaluate(
                f"(() => {{ const e = document.getElementById('{id_}'); e.value = '{value}'; "
                "e.dispatchEvent(new Event(e.type === 'search' ? 'input' : 'change')); })()"
            )
            seen = "document.querySelectorAll('.cards li:not([hidden]) h2')"
            names: list[str] = await tab.evaluate(f"[...{seen}].map(h => h.textContent)")
            return names

        assert await enter("order", "name") == ["alpha", "beta", "gamma"]
        assert await enter("order", "count") == ["beta", "alpha", "gamma"]
        assert await enter("order", "date") == ["alpha", "gamma", "beta"]
        assert await enter("find", "GAM") == ["gamma"]
        assert await enter("find", "nothing such") == []
        assert await tab.evaluate("document.querySelectorAll('.cards a').length") == 1

    look(path, act)
