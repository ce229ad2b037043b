"""The map of the index: 1,000 scenes and a million detections in a headless Chromium.

Detections are simulated: harbours of very different size, so that some scenes are dense. The
browser has no graphics card, so the figures are of the processor alone.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from benchmarks.figures import Figure, at_most, tell
from benchmarks.tables import write_coverage, write_scene
from scenesweep.pipeline.results.view import find_published, make_entry, make_night, write_index
from tests.chromium import Tab, in_chromium

DAY = "2026-11-20"
SIDE_DEG = 0.2
SMOOTH_MS = 1000 / 60
WINDOW = (1280, 800)

PAN = """(async () => {
  const { map } = scenesweep, drawing = [], apart = [];
  map.fit();
  map.scale *= ZOOM;
  let last = 0;
  for (let i = 0; i < 60; i++) {
    map.pan(i < 30 ? 6 : -6, i % 2 ? 4 : -4);
    const now = await new Promise(requestAnimationFrame);
    if (last) apart.push(now - last);
    last = now;
    const began = performance.now();
    map.render();
    drawing.push(performance.now() - began);
  }
  const middle = (times) => times.sort((a, b) => a - b)[times.length >> 1];
  return [middle(drawing), Math.max(...drawing), middle(apart), map.drawn.kind, map.drawn.total];
})()"""
PARTS = """(() => {
  const { map, points, ground } = scenesweep, parts = {};
  const originals = [[points, "draw"], [ground, "draw"], [map, "drawGraticule"]];
  for (const [owner, name] of originals) {
    const draw = owner[name];
    owner[name] = (...given) => {
      const began = performance.now();
      const result = draw.apply(owner, given);
      const part = `${owner.constructor.name}.${name}`;
      (parts[part] ??= []).push(performance.now() - began);
      return result;
    };
  }
  map.fit();
  for (let i = 0; i < 20; i++) map.render();
  for (const [owner, name] of originals) delete owner[name];
  for (const name of Object.keys(parts)) parts[name] = parts[name].sort((a, b) => a - b)[10];
  return parts;
})()"""
FILTER = """(() => {
  const { panel, points } = scenesweep, times = [];
  for (const least of [40, 60, 80, 50, 0]) {
    points.least = least;
    const began = performance.now();
    panel.filter();
    times.push(performance.now() - began);
  }
  return times.sort((a, b) => a - b)[2];
})()"""


def night(out: Path, scenes: int, detections: int) -> None:
    """Write scenes on a grid with gaps; their numbers of detections are log-normal."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1.5, scenes)
    counts = rng.multinomial(detections, share / share.sum())
    columns = int(np.ceil(np.sqrt(scenes)))
    for number, count in enumerate(counts.tolist()):
        west = 0.9 * SIDE_DEG * (number % columns) + rng.uniform(0, 0.02)
        south = 30 + 0.9 * SIDE_DEG * (number // columns) + rng.uniform(0, 0.02)
        bounds = np.array([west, south, west + SIDE_DEG, south + SIDE_DEG])
        spot = rng.normal(0.5, 0.15, (2, count)).clip(0.01, 0.99) * SIDE_DEG
        score = rng.beta(2, 2, count) * 0.7 + 0.3
        name = f"scene{number:04d}"
        write_scene(out, name, DAY, west + spot[0], south + spot[1], score, bounds)
        clouds = shapely.Point(west + 0.15, south + 0.15).buffer(0.04, quad_segs=6)
        write_coverage(out, name, DAY, shapely.difference(shapely.box(*bounds), clouds))


def make_index(out: Path, index: Path) -> tuple[float, float]:
    """Write the index and return the CPU time of its entries and of its map."""
    published = list(find_published(out).values())
    started = time.process_time()
    entries = [make_entry(scene) for scene in published]
    listed = time.process_time()
    made = make_night(out, published, {})
    write_index(index, entries, [], pages=set(), night=made)
    return listed - started, time.process_time() - listed


async def look(tab: Tab, index: Path, zooms: tuple[float, ...]) -> dict[str, Any]:
    """Open the map and measure it."""
    await tab.resize(*WINDOW)
    started = time.perf_counter()
    await tab.open(index)
    while not await tab.evaluate("'scenesweep' in window"):
        await asyncio.sleep(0.05)
    opened = time.perf_counter() - started
    pans = {zoom: await tab.evaluate(PAN.replace("ZOOM", str(zoom))) for zoom in zooms}
    return {
        "opened": opened,
        "pans": pans,
        "filter": await tab.evaluate(FILTER),
        "parts": await tab.evaluate(PARTS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=1_000)
    parser.add_argument("--detections", type=int, default=1_000_000)
    parser.add_argument("--shots", type=Path, help="also write pictures to this folder")
    arguments = parser.parse_args()
    zooms = (1.0, 4.0, 16.0, 64.0, 400.0)
    with tempfile.TemporaryDirectory() as folder:
        out, index = Path(folder) / "out", Path(folder) / "index.html"
        night(out, arguments.scenes, arguments.detections)
        listed, mapped = make_index(out, index)

        async def act(tab: Tab) -> dict[str, Any]:
            seen = await look(tab, index, zooms)
            if arguments.shots:
                arguments.shots.mkdir(parents=True, exist_ok=True)
                for zoom in zooms:
                    await tab.evaluate(f"scenesweep.map.fit(); scenesweep.map.zoom({zoom})")
                    await tab.screenshot(arguments.shots / f"zoom{zoom:g}.png")
            return seen

        seen = in_chromium(act)
        megabytes = index.stat().st_size / 1e6
    figures = [
        at_most(f"frame at zoom {zoom:g}: {kind} of {total:,}", middle, "ms", SMOOTH_MS)
        for zoom, (middle, _, _, kind, total) in seen["pans"].items()
    ]
    figures += [
        Figure(f"slowest frame at zoom {zoom:g}", most, "ms")
        for zoom, (_, most, *_) in seen["pans"].items()
    ]
    figures += [
        *(Figure(f"of a frame of all scenes: {n}", ms, "ms") for n, ms in seen["parts"].items()),
        Figure("a change of the score", seen["filter"], "ms"),
        Figure("opening the page", seen["opened"], "s"),
        Figure("size of the page", megabytes, "MB"),
        Figure("CPU time of the list", listed, "s"),
        Figure("CPU time of the map", mapped, "s"),
    ]
    tell("view", figures, scenes=arguments.scenes, detections=arguments.detections)


if __name__ == "__main__":
    main()
