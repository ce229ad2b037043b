"""The page of a review in a headless Chromium: keys, pointer, and the file of labels."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from scenesweep.pipeline.geometry.grid import Window
from scenesweep.pipeline.results.review import (
    ReviewChip,
    ReviewPage,
    SceneBoxes,
    write_review_page,
)
from tests.chromium import Tab, find_chromium, in_chromium
from tests.rasters import make_card

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")

BOXES = [(20, 30, 40, 50), (60, 60, 80, 90), (100, 20, 120, 44), (150, 40, 170, 60)]
BOXES += [(123, 60, 143, 80), (20, 90, 40, 110)]
"""The first two are uncertain; the third lies on both chips, the fourth only on the second, and of
the fifth only a quarter lies on the first, where it is no label. The last is probably no object."""
CHIPS = [Window(0, 0, 128, 128), Window(96, 0, 128, 128)]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    scene = SceneBoxes(
        "harbour",
        (300, 200),
        np.array(BOXES, np.float64),
        np.array([0.31, 0.32, 0.9, 0.8, 0.8, 0.3]),
        np.array([0.5, 0.52, 0.95, np.nan, np.nan, 0.04]),
        np.zeros(6, np.int64),
        np.full(6, 0.3),
        pa.array([f"{number:016x}" for number in range(6)]),
    )
    file = io.BytesIO()
    Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(file, format="WEBP")
    made = ReviewPage(
        make_card(classes=("ship", "buoy")),
        [scene],
        [ReviewChip("harbour", window) for window in CHIPS],
        {"harbour": np.array([True, True, False, False, False, False])},
        [file.getvalue()] * 2,
    )
    write_review_page(tmp_path / "review.html", made)
    return tmp_path / "review.html"


def act(path: Path, steps: Callable[[Tab], Coroutine[Any, Any, Any]]) -> Any:
    """Open the page, act, and see that it neither complained nor asked for anything else."""

    async def run(tab: Tab) -> Any:
        await tab.resize(1000, 700)
        await tab.open(path)
        await tab.evaluate("scenesweep.opened")
        said = await steps(tab)
        assert tab.complaints == []
        known = ("data:", "blob:", path.as_uri())
        assert [r for r in tab.requests if not r.startswith(known)] == []
        return said

    return in_chromium(run)


async def press(tab: Tab, *keys: str) -> None:
    for key in keys:
        await tab.press(key)
    await tab.evaluate("scenesweep.view.image && 1")


async def labels_of(tab: Tab) -> Any:
    return await tab.evaluate("scenesweep.review.labels()")


def boxes_in(labels: dict[str, Any], image: str) -> list[list[float]]:
    (number,) = [i["id"] for i in labels["images"] if i["file_name"] == image]
    return sorted(a["bbox"] for a in labels["annotations"] if a["image_id"] == number)


def test_accepted_and_rejected_boxes_become_labels(page: Path) -> None:
    async def steps(tab: Tab) -> Any:
        none = await labels_of(tab)
        await press(tab, "a")
        one = await labels_of(tab)
        await press(tab, "r")
        opened = await tab.evaluate("scenesweep.position()")
        return none, one, opened, await labels_of(tab)

    none, one, opened, both = act(page, steps)
    assert none["images"] == one["images"] == []
    assert opened == 1  # the next chip is shown when no box of this one is undecided
    assert [image["file_name"] for image in both["images"]] == [
        "harbour-0-0.tif",
        "harbour-96-0.tif",
    ]
    assert boxes_in(both, "harbour-0-0.tif") == [[20, 30, 20, 20], [100, 20, 20, 24]]
    assert boxes_in(both, "harbour-96-0.tif") == [
        [4, 20, 20, 24],
        [27, 60, 20, 20],
        [54, 40, 20, 20],
    ]
    assert both["categories"] == [{"id": 1, "name": "ship"}, {"id": 2, "name": "buoy"}]
    assert both["images"][0] | {"width": 128, "height": 128} == both["images"][0]


def test_boxes_are_moved_resized_added_and_classed_with_keys(page: Path) -> None:
    wider = (
        "document.dispatchEvent(new KeyboardEvent('keydown',"
        " {key: 'ArrowRight', shiftKey: true, bubbles: true}))"
    )

    async def steps(tab: Tab) -> Any:
        await tab.evaluate("document.getElementById('stage').focus()")
        await press(tab, "ArrowRight", "ArrowRight", "ArrowUp")
        await tab.evaluate(wider.replace("document.dispatch", "document.body.dispatch"))
        await press(tab, "c", "a", "r", "PageUp", "n")
        added = await labels_of(tab)
        await press(tab, "r")
        removed = await labels_of(tab)
        return added, removed

    added, removed = act(page, steps)
    moved = [22, 29, 21, 20]
    assert boxes_in(removed, "harbour-0-0.tif") == [moved, [100, 20, 20, 24]]
    (label,) = [a for a in removed["annotations"] if a["bbox"] == moved]
    assert label["category_id"] == 2
    assert boxes_in(added, "harbour-0-0.tif") == [moved, [54, 54, 20, 20], [100, 20, 20, 24]]


def test_a_pointer_selects_moves_and_resizes(page: Path) -> None:
    where = """((x, y) => {
      const { canvas, scale } = scenesweep.view, frame = canvas.getBoundingClientRect();
      return [frame.left + x * scale, frame.top + y * scale];
    })"""

    async def drag(tab: Tab, start: tuple[int, int], end: tuple[int, int]) -> None:
        for kind, point in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            x, y = await tab.evaluate(f"{where}({point[0]}, {point[1]})")
            button = {"button": "left", "buttons": 1, "clickCount": 1}
            await tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    async def steps(tab: Tab) -> Any:
        await drag(tab, (70, 75), (70, 75))
        picked = await tab.evaluate("scenesweep.picked().xyxy")
        await drag(tab, (70, 75), (75, 70))
        moved = await tab.evaluate("scenesweep.picked().xyxy")
        await drag(tab, (85, 70), (95, 70))
        return picked, moved, await tab.evaluate("scenesweep.picked().xyxy")

    picked, moved, wider = act(page, steps)
    assert picked == [60, 60, 80, 90]
    np.testing.assert_allclose(moved, [65, 55, 85, 85], atol=0.3)
    np.testing.assert_allclose(wider, [65, 55, 95, 85], atol=0.6)


def test_decisions_are_kept_when_the_page_is_opened_again(page: Path) -> None:
    async def steps(tab: Tab) -> Any:
        await press(tab, "a", "a")
        before = await labels_of(tab)
        await tab.open(page)
        await tab.evaluate("scenesweep.opened")
        return before, await labels_of(tab)

    before, after = act(page, steps)
    assert before == after
    assert len(after["annotations"]) == 6


def test_the_labels_are_downloaded_as_a_file(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"

    async def steps(tab: Tab) -> Any:
        await tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        await press(tab, "Enter", "PageDown", "s")
        until = time.monotonic() + 60
        while not (folder / "labels.json").is_file():
            assert time.monotonic() < until, "nothing is downloaded"
            await asyncio.sleep(0.05)
        return await labels_of(tab)

    labels = act(page, steps)
    assert json.loads((folder / "labels.json").read_text()) == labels
    assert len(labels["images"]) == 2


def test_an_improbable_box_is_a_label_only_if_a_person_accepts_it(page: Path) -> None:
    async def steps(tab: Tab) -> Any:
        await press(tab, "Enter", "PageUp")
        begun = await labels_of(tab)
        await press(tab, "[", "a")
        return begun, await tab.evaluate("scenesweep.picked().id"), await labels_of(tab)

    begun, picked, decided = act(page, steps)
    assert [20, 90, 20, 20] not in boxes_in(begun, "harbour-0-0.tif")
    assert [20, 90, 20, 20] in boxes_in(decided, "harbour-0-0.tif"), picked


def test_a_browser_that_keeps_nothing_is_told_and_asks_before_it_closes(page: Path) -> None:
    leave = """(() => {
      const event = new Event('beforeunload', { cancelable: true });
      dispatchEvent(event);
      return [event.defaultPrevented, document.getElementById('unkept').hidden];
    })()"""

    async def steps(tab: Tab) -> Any:
        await press(tab, "a")
        kept = await tab.evaluate(leave)
        await tab.evaluate("Storage.prototype.setItem = () => { throw new Error('full') }, 1")
        await press(tab, "a")
        refused = await tab.evaluate(leave)
        await press(tab, "s")
        return kept, refused, await tab.evaluate(leave)

    kept, refused, saved = act(page, steps)
    assert kept == [False, True]
    assert refused == [True, False]
    assert saved == [False, False]


def test_a_drag_is_stored_once_at_its_end(page: Path) -> None:
    count = """(() => {
      const real = Storage.prototype.setItem;
      window.stored = 0;
      Storage.prototype.setItem = function (...all) { window.stored += 1; real.apply(this, all); };
      const { canvas } = scenesweep.view, frame = canvas.getBoundingClientRect();
      return [frame.left, frame.top, scenesweep.view.scale];
    })()"""

    async def steps(tab: Tab) -> Any:
        left, top, scale = await tab.evaluate(count)
        for kind, px in [("Pressed", 30), *(("Moved", x) for x in range(31, 40)), ("Released", 40)]:
            at = {"x": left + px * scale, "y": top + 40 * scale}
            button = {"button": "left", "buttons": 1, "clickCount": 1}
            await tab.call("Input.dispatchMouseEvent", type=f"mouse{kind}", **at, **button)
        return await tab.evaluate("[scenesweep.picked().xyxy[0], window.stored]")

    left, stored = act(page, steps)
    assert left > 25
    assert stored == 1
