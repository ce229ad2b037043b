"""Write the index page: the map, an entry for each published scene, and the last runs' failures."""

from __future__ import annotations

import io
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageColor

from scenesweep.pipeline.publish.formats.layer import PALETTE
from scenesweep.pipeline.results.view.night import NightMap
from scenesweep.pipeline.results.view.pack import Detections, read_detections
from scenesweep.pipeline.results.view.page import (
    INDEX_SCRIPTS,
    NIGHT_SCRIPTS,
    PageSettings,
    base_picture,
    classes_of,
    render,
)
from scenesweep.pipeline.results.view.published import PublishedScene
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.paths import date_of

_THUMB_PX = 320
_TOP_CLASSES = 4
_POINTS = 50_000


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One scene on the index. `tops` are its most frequent classes: name, colour, count."""

    scene_id: str
    date: str
    detections: int
    tops: tuple[tuple[str, str, int], ...]
    others: int
    thumbnail: str | None


def make_entry(published: PublishedScene) -> IndexEntry:
    """Return the entry of a scene; the thumbnail is the quicklook with one dot per detection.

    Raises:
        UnreadableScene: when the table cannot be read.
    """
    detections = read_detections(published.table, classes=classes_of(published), most=_POINTS)
    names = pq.read_table(published.table, columns=["class_name"])["class_name"]
    most = Counter(names.to_pylist()).most_common()
    colours = dict(zip(detections.classes, cycle(PALETTE), strict=False))
    return IndexEntry(
        published.scene_id,
        date_of(published.table),
        detections.total,
        tuple((name, colours.get(name, PALETTE[0]), n) for name, n in most[:_TOP_CLASSES]),
        len(most[_TOP_CLASSES:]),
        _thumbnail(published, detections),
    )


def write_index(
    path: Path,
    entries: Sequence[IndexEntry],
    failed: Sequence[tuple[str, str]],
    *,
    pages: set[str],
    night: NightMap | None = None,
) -> None:
    """Write the index; `failed` are sources with reasons, `pages` the scenes that have a page.

    Without a map it is a list of the scenes.
    """
    text = render(
        "index.html",
        NIGHT_SCRIPTS if night else INDEX_SCRIPTS,
        title="Detections",
        night=night.packed(pages) if night else None,
        entries=entries,
        failed=failed,
        pages=pages,
        total=sum(entry.detections for entry in entries),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, path.parent) as aside:
        aside.write_text(text, encoding="utf-8")


def _thumbnail(published: PublishedScene, detections: Detections) -> str | None:
    """Return a small WebP as a data URL."""
    picture = base_picture(published, None, PageSettings())
    size = published.size
    if picture is None or size is None:
        return None
    image = Image.fromarray(picture)
    image.thumbnail((_THUMB_PX, _THUMB_PX), Image.Resampling.BOX)
    dotted = _with_dots(np.array(image), detections, size)
    file = io.BytesIO()
    Image.fromarray(dotted).save(file, format="WEBP", quality=75)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"


def _with_dots(
    image: NDArray[np.uint8], detections: Detections, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Colour the pixels of an image (H, W, 3 or 4) of the scene at the centres of detections."""
    height, width = image.shape[:2]
    centres = (detections.xyxy[:, :2] + detections.xyxy[:, 2:]) / 2
    columns, rows = np.floor(centres * [width / size[0], height / size[1]]).astype(np.intp).T
    colours = np.array([ImageColor.getrgb(colour) for colour in PALETTE], np.uint8)
    at = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    image[(*at, slice(0, 3))] = colours[detections.label % len(PALETTE)]
    image[(*at, slice(3, None))] = 255
    return image
