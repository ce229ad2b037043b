"""The map of all scenes in a headless Chromium, from a folder and without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from benchmarks.tables import write_coverage, write_scene
from scenesweep.jobs import cli
from scenesweep.pipeline.results.view import find_published, make_entry, make_night, write_index
from scenesweep.pipeline.results.view.night.map import MOST_POINTS
from tests.chromium import Tab, find_chromium, in_chromium
from tests.nights import publish_night
from tests.pages import EVIL, published

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")

DAY, NEXT = "2026-11-20", "2026-11-21"
CELLS = """(() => {
  const { map, points } = scenesweep, { x, y } = points.columns;
  const { width, height } = map.base.canvas;
  const { columns, rows, bits } = points.grid(width, height, {
    left: map.left + map.x - map.width / 2 / map.scale,
    top: map.top + map.y - map.height / 2 / map.scale,
    scale: map.scale,
    density: 1,
  });
  const slow = new Map();
  for (let i = 0; i < points.length; i++) {
    const key = `${x[i] >> bits}/${y[i] >> bits}`;
    slow.set(key, (slow.get(key) ?? 0) + 1);
  }
  const mine = [...points.cells.subarray(0, columns * rows)].filter((count) => count);
  const sorted = (counts) => counts.sort((a, b) => a - b);
  return [sorted(mine), sorted([...slow.values()]), points.cellsOf(bits).most];
})()"""
SHOWN = "document.querySelectorAll('.cards li:not([hidden])').length"


def index_of(
    out: Path, results: dict[str, dict[str, Any]] | None = None, *, most: int = MOST_POINTS
) -> Path:
    """Write only the index."""
    scenes = list(find_published(out).values())
    path = out / "view" / "index.html"
    night = make_night(out, scenes, results or {}, most=most)
    entries = [make_entry(scene) for scene in scenes]
    write_index(path, entries, [], pages={scene.scene_id for scene in scenes}, night=night)
    return path


async def ready(tab: Tab) -> None:
    while not await tab.evaluate("'scenesweep' in window"):
        await asyncio.sleep(0.02)


async def choose(tab: Tab, name: str, value: str) -> None:
    await tab.evaluate(
        f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}'; "
        "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })()"
    )


def look(path: Path, act: Callable[[Tab], Coroutine[Any, Any, Any]]) -> Any:
    """Open a map, act, and see that it neither complained nor asked for anything else."""

    async def run(tab: Tab) -> Any:
        await tab.resize(1200, 700)
        await tab.open(path)
        await ready(tab)
        said = await act(tab)
        assert tab.complaints == []
        local = ("data:", "blob:", path.parent.as_uri())
        assert [r for r in tab.requests if not r.startswith(local)] == []
        return said

    return in_chromium(run)


def scenes(out: Path, *, each: int = 300) -> None:
    """Write three scenes of two dates side by side; one has a cloud."""
    rng = np.random.default_rng(0)
    for number, day in enumerate((DAY, DAY, NEXT)):
        bounds = np.array([10 + 0.2 * number, 50.0, 10.1 + 0.2 * number, 50.1])
        spots = rng.uniform(0.002, 0.098, (2, each))
        write_scene(
            *(out, f"scene{number}", day, bounds[0] + spots[0], bounds[1] + spots[1]),
            *(rng.uniform(0.3, 1, each), bounds),
        )
    write_coverage(out, "scene1", DAY, shapely.box(10.2, 50.0, 10.25, 50.1))


def test_filters_agree_with_the_tables(tmp_path: Path) -> None:
    out = publish_night(tmp_path)
    frame = gpd.read_parquet(out / "detections")

    async def act(tab: Tab) -> None:
        for hundredths in (30, 55, 80):
            await choose(tab, "score", str(hundredths / 100))
            kept = frame[frame.score >= np.float32(hundredths / 100)]
            counts = await tab.evaluate("[...scenesweep.points.byClass]")
            assert counts == [(kept.class_name == name).sum() for name in ("ship", "car")]
            by_scene = await tab.evaluate("[...scenesweep.points.byScene]")
            names = await tab.evaluate("scenesweep.night.scenes.map(s => s.id)")
            assert by_scene == [(kept.scene_id == name).sum() for name in names]
            assert f"{len(kept):,} of {len(frame):,}" in await tab.evaluate("shown.textContent")
        await tab.evaluate("document.querySelector('#classes input').click()")
        cars = frame[(frame.score >= np.float32(0.8)) & (frame.class_name == "car")]
        assert await tab.evaluate("scenesweep.points.total") == len(cars)
        await choose(tab, "date", "2026-11-21")
        assert await tab.evaluate(SHOWN) == 1
        assert await tab.evaluate("scenesweep.points.total") == (cars.scene_id == "later").sum()
        await choose(tab, "date", "")
        await choose(tab, "find", "east")
        assert await tab.evaluate(SHOWN) == 1
        assert await tab.evaluate("scenesweep.points.total") == (cars.scene_id == "east").sum()

    look(index_of(out), act)


def test_crowds_are_density_and_few_are_boxes(tmp_path: Path) -> None:
    scenes(tmp_path, each=3000)

    async def act(tab: Tab) -> None:
        drawn = await tab.evaluate("(scenesweep.map.render(), scenesweep.map.drawn)")
        assert (drawn["kind"], drawn["total"]) == ("density", 9000)
        assert "9,000 in view" in await tab.evaluate("key.textContent")
        cells = await tab.evaluate(CELLS)
        assert cells[0] == cells[1]
        assert cells[2] == max(cells[1])
        await tab.evaluate("scenesweep.map.showScene(0); scenesweep.map.zoom(12)")
        drawn = await tab.evaluate("(scenesweep.map.render(), scenesweep.map.drawn)")
        assert drawn["kind"] == "boxes"
        assert 0 < drawn["total"] < 200
        assert await tab.evaluate("key.hidden")

    look(index_of(tmp_path), act)


COLOURED = """((colour) => {
  const { map } = scenesweep;
  map.render();
  const { canvas } = map.overlay;
  const { data } = map.overlay.getImageData(0, 0, canvas.width, canvas.height);
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const at = [];
  for (let i = 0; i < data.length; i += 4)
    if (data[i] === r && data[i + 1] === g && data[i + 2] === b) at.push(i / 4);
  const columns = at.map((pixel) => pixel % canvas.width);
  const rows = at.map((pixel) => Math.floor(pixel / canvas.width));
  return [Math.min(...columns), Math.min(...rows), Math.max(...columns), Math.max(...rows)];
})(scenesweep.points.colours[0])"""


def test_a_box_is_drawn_where_it_is_and_links_to_its_scene(tmp_path: Path) -> None:
    out = tmp_path / "out"
    published(out, name="one", count=1)
    (row,) = gpd.read_parquet(out / "detections").itertuples()
    assert cli.main(["view", str(out), "--quicklooks"]) == 0
    path = out / "view" / "index.html"

    async def act(tab: Tab) -> None:
        await tab.evaluate(
            "(() => { const { map, points: { columns: { x, y } } } = scenesweep;"
            " map.x = x[0] + 0.5 - map.left; map.y = y[0] + 0.5 - map.top;"
            " map.scale = 0.5; map.move(); map.render(); })()"
        )
        left, top, right, bottom = await tab.evaluate(COLOURED)
        metres = await tab.evaluate("scenesweep.map.metresPerPixel()")
        middle = await tab.evaluate("[scenesweep.map.width / 2, scenesweep.map.height / 2]")
        assert abs((left + right) / 2 - middle[0]) < 2
        assert abs((top + bottom) / 2 - middle[1]) < 2
        # The side of a turned box is a little shorter than what its corners span.
        assert (right - left + 1) * metres == pytest.approx(row.width_m, rel=0.1)
        assert (bottom - top + 1) * metres == pytest.approx(row.height_m, rel=0.1)
        await tab.click(*middle)
        assert await tab.evaluate("scenesweep.map.picked") == 0
        assert await tab.evaluate("document.getElementById('picked-title').textContent") == "square"
        href = await tab.evaluate("document.getElementById('open').href")
        assert href.startswith((out / "view" / "one.html").as_uri() + "#at=")
        await tab.evaluate("delete window.scenesweep")
        await tab.open(out / "view" / "one.html", fragment="#" + href.partition("#")[2])
        assert await tab.evaluate("scenesweep.map.picked") == 0
        assert await tab.evaluate("location.hash") == f"#{row.detection_id}"
        await tab.evaluate("location.hash = '#at=1.5,2.5'")
        await asyncio.sleep(0.1)
        assert "has no detection at=1.5,2.5" in await tab.evaluate("note.textContent")

    look(path, act)


def test_scenes_are_found_on_the_map_and_in_the_list(tmp_path: Path) -> None:
    scenes(tmp_path)
    results: dict[str, dict[str, Any]] = {
        "scene0": {"status": "done", "warnings": []},
        "scene1": {"status": "done", "warnings": ["w"]},
        "scene2": {"status": "failed", "reason": EVIL},
    }

    async def act(tab: Tab) -> None:
        area = await tab.evaluate("scenesweep.map.element.getBoundingClientRect().toJSON()")
        y = area["height"] / 2
        await tab.evaluate("document.getElementById('hide').click()")
        for share, name in ((0.1, "scene0"), (0.5, "scene1"), (0.9, "scene2")):
            await tab.click(area["width"] * (0.02 + 0.96 * share), y)
            assert await tab.evaluate("document.getElementById('picked-title').textContent") == name
            assert await tab.evaluate("location.hash") == f"#{name}"
        facts = await tab.evaluate("document.getElementById('facts').textContent")
        assert EVIL in facts
        assert "failed" in facts
        await tab.click(area["width"] * 0.3, y)  # between two scenes
        assert await tab.evaluate("picked.hidden")
        await tab.evaluate("document.querySelectorAll('.locate')[1].click()")
        assert await tab.evaluate("scenesweep.map.pickedScene") == 1
        assert "Observed" in await tab.evaluate("document.getElementById('facts').textContent")
        await choose(tab, "colour", "state")
        colours = await tab.evaluate("scenesweep.ground.scenes.map(s => s.colour)")
        assert colours == ["#4fd1c5", "#ffd166", "#ff6161"]
        assert "with warnings: 1" in await tab.evaluate("ramp.textContent")
        await tab.press("Escape")
        assert await tab.evaluate("location.hash") == ""

    look(index_of(tmp_path, results), act)


def test_only_the_observed_part_is_filled(tmp_path: Path) -> None:
    scenes(tmp_path, each=0)
    filled = """(() => {
      const { map, ground } = scenesweep;
      map.showScene(1);
      map.render();
      const [left, top, right, bottom] = ground.scenes[1].bounds;
      const row = Math.round(map.height / 2) + 3;
      const { data } = map.base.getImageData(0, row, map.base.canvas.width, 1);
      return [0.25, 0.75].map((share) => {
        const x = (left + share * (right - left) - map.left - map.x) * map.scale + map.width / 2;
        const at = 4 * Math.round(x);
        return data[at] + data[at + 1] + data[at + 2];
      });
    })()"""

    async def act(tab: Tab) -> None:
        observed, clouded = await tab.evaluate(filled)
        assert observed > clouded + 60

    look(index_of(tmp_path), act)


def test_many_scenes_and_detections_stay_smooth(tmp_path: Path) -> None:
    """A middle frame; the figures for a million detections are those of `benchmarks.view`."""
    scenes(tmp_path, each=60_000)
    frames = """(async () => {
      const { map } = scenesweep, times = [];
      for (let i = 0; i < 30; i++) {
        map.zoom(i % 2 ? 1.3 : 1.25);
        const began = performance.now();
        map.render();
        times.push(performance.now() - began);
      }
      return times.sort((a, b) => a - b)[15];
    })()"""

    async def act(tab: Tab) -> float:
        return float(await tab.evaluate(frames))

    frame_ms = look(index_of(tmp_path), act)
    print(f"{frame_ms:.1f} ms")
    assert frame_ms < 60  # several times what it takes, for machines that do other things


def test_a_scene_whose_detections_are_left_out_keeps_its_number(tmp_path: Path) -> None:
    """Of too many, those with the lowest scores are left out: here all of `scene1`."""
    for number, (score, each) in enumerate(((0.9, 30), (0.4, 20))):
        bounds = np.array([10 + 0.2 * number, 50.0, 10.1 + 0.2 * number, 50.1])
        spots = np.random.default_rng(number).uniform(0.002, 0.098, (2, each))
        write_scene(
            *(tmp_path, f"scene{number}", DAY, bounds[0] + spots[0], bounds[1] + spots[1]),
            *(np.full(each, score), bounds),
        )

    async def act(tab: Tab) -> None:
        picked = "(scenesweep.map.pickScene(1), document.getElementById('facts').textContent)"
        assert "lowest scores" in await tab.evaluate("note.textContent")
        assert "the 20 detections" in await tab.evaluate("note.textContent")
        assert await tab.evaluate("[0, 1].map((n) => scenesweep.points.countOf(n))") == [30, 20]
        assert "Detections20Ground" in await tab.evaluate(picked)
        await choose(tab, "colour", "count")
        assert await tab.evaluate("ramp.textContent") == "2030"
        tip = (
            "(scenesweep.map.onHover(-1, 9, 9, { lonlat: [10, 50], scene: 1 }),"
            " document.getElementById('tip').textContent)"
        )
        assert "20 detections · " in await tab.evaluate(tip)
        await tab.evaluate("document.querySelector('#classes input').click()")
        assert "0 detections on this map" in await tab.evaluate(tip)
        assert "none on this map" in await tab.evaluate("ramp.textContent")
        assert "Detections0 on this mapGround" in await tab.evaluate(picked)

    look(index_of(tmp_path, most=30), act)


@pytest.mark.parametrize(("fragment", "picked"), [("#100%", -1), ("#scene1", 1), ("#none", -1)])
def test_a_link_may_name_what_is_no_scene(tmp_path: Path, fragment: str, picked: int) -> None:
    scenes(tmp_path, each=5)
    path = index_of(tmp_path)

    async def run(tab: Tab) -> None:
        await tab.open(path, fragment=fragment)
        await ready(tab)
        assert await tab.evaluate("scenesweep.map.pickedScene") == picked
        assert tab.complaints == []

    in_chromium(run)
