"""Publish a painted scene and take its HTML page apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.publish.publish import publish
from tests.rasters import make_card as model_card
from tests.rasters import make_job, ref_of, write_raster

EVIL = '</script><script>alert("1")</script><!-- \u2028 & "quoted" \'single\''


def found(count: int, size: int, *, classes: int = 1, seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    corner = rng.random((count, 2)) * (size - 12)
    return Candidates(
        np.hstack([corner, corner + rng.uniform(2, 12, (count, 2))]),
        rng.random(count).astype(np.float32),
        rng.integers(0, classes, count).astype(np.int16),
        rng.random(count) < 0.1,
    )


def published(
    out: Path,
    *,
    name: str = "scene",
    count: int = 50,
    size: int = 300,
    classes: tuple[str, ...] = ("square",),
    settings: tuple[str, ...] = (),
    **raster: Any,
) -> Path:
    """Publish made-up detections of a small scene; return the raster."""
    pixels = np.full((1, size, size), 90, np.uint8)
    pixels[0, ::7] = 120
    scene = write_raster(out.parent / f"{name}.tif", pixels, **raster)
    job = make_job(out, "publish.quicklook=true", *settings, card=model_card(classes=classes))
    publish(found(count, size, classes=len(classes)), plan_scene(ref_of(scene), job), job)
    return scene


def describe(out: Path, **properties: Any) -> None:
    """Write the item of the model that `published` swept with."""
    (out / "models").mkdir(exist_ok=True)
    text = json.dumps({"type": "Feature", "properties": properties})
    (out / "models" / f"squares-1-{'0' * 8}.json").write_text(text)


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.get_starttag_text():
            self.scripts.append((self.tags[-1][1], data))
        self.words += data

    @property
    def data(self) -> dict[str, Any]:
        (text,) = [t for attrs, t in self.scripts if attrs.get("id") == "data" and t.strip()]
        value: dict[str, Any] = json.loads(text)
        return value
