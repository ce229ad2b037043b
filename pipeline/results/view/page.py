"""Write the page of one scene: its picture, its detections and the script that shows them."""

from __future__ import annotations

import json
import logging
import math
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from scenesweep import __version__
from scenesweep.pipeline.publish.formats.layer import PALETTE
from scenesweep.pipeline.publish.quicklook import scene_picture, shrunk
from scenesweep.pipeline.publish.stac.model_item import SIZES_MEANINGFUL
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.results.view.about import (
    coarse_picture,
    finer_picture,
    lattice,
    model_facts,
    thresholds,
)
from scenesweep.pipeline.results.view.pack import Detections, packed, read_detections
from scenesweep.pipeline.results.view.published import PublishedScene
from scenesweep.pipeline.results.view.pyramid import Level, cut_pyramid
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.settings import fingerprint
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.paths import date_of

log = logging.getLogger(__name__)

SCENE_SCRIPTS = ("theme", "text", "columns", "boxes", "picture", "map", "panel", "scene")
INDEX_SCRIPTS = ("theme", "text", "index")
_MAP_SCRIPTS = ("columns", "boxes", "map", "points", "ground", "nightmap", "nightpanel", "night")
NIGHT_SCRIPTS = (*INDEX_SCRIPTS, *_MAP_SCRIPTS)
_MOST_PX = 50_000_000
_DETECTIONS_AT_MOST = 250_000
_HEAD_BYTES = 2048


@dataclass(frozen=True, slots=True)
class PageSettings:
    """The size limit of a page, and how scenes are opened.

    With `read_scenes` false, the picture is always the quicklook.
    """

    megabytes: float = 24.0
    drivers: tuple[str, ...] = DRIVERS
    read_scenes: bool = True


def write_page(
    published: PublishedScene, scene: Scene | None, path: Path, settings: PageSettings
) -> bool:
    """Write the page of a scene unless it is up to date; return whether it was written.

    The picture is read from `scene`, as fine as the page's size allows. When `scene` is None, the
    picture is the quicklook.

    Raises:
        SceneError: when its table or picture cannot be read.
    """
    key = _key(published, scene, settings)
    if _head(path).find(f'content="{key}"') >= 0:
        return False
    detections = read_detections(
        published.table, classes=classes_of(published), most=_DETECTIONS_AT_MOST
    )
    columns = detections.packed()
    used = sum(len(column["data"]) for column in columns.values()) + sum(map(len, _code()))
    picture = base_picture(published, scene, settings)
    budget = max(0, int(settings.megabytes * 1e6) - used) * 3 // 4  # base64 adds a third
    levels = () if picture is None else cut_pyramid(picture, most_bytes=budget)
    text = render(
        "scene.html",
        SCENE_SCRIPTS,
        key=key,
        title=published.scene_id,
        data={
            "scene": scene_facts(published, detections, levels)
            | _more_facts(published, detections, levels, scene),
            "base": "scene" if scene else "quicklook" if levels else "none",
            "classes": list(detections.classes),
            "palette": list(PALETTE),
            "columns": columns,
            "levels": [level.packed() for level in levels],
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, path.parent) as aside:
        aside.write_text(text, encoding="utf-8")
    return True


def classes_of(published: PublishedScene) -> tuple[str, ...]:
    """Return the classes of the model that a scene was swept with."""
    return () if published.provenance is None else published.provenance.model.classes


def base_picture(
    published: PublishedScene, scene: Scene | None, settings: PageSettings
) -> NDArray[np.uint8] | None:
    """Return the scene as (H, W, 3 or 4) uint8; without a scene the quicklook, or None."""
    if scene is not None:
        return scene_picture(scene, _finest(scene))
    if published.quicklook is None:
        return None
    try:
        with Image.open(published.quicklook, formats=("PNG",)) as image:
            return np.asarray(image.convert("RGBA" if image.mode == "RGBA" else "RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        log.warning("%s: the quicklook cannot be read: %s", published.quicklook, error)
        return None


def scene_facts(
    published: PublishedScene, detections: Detections, levels: tuple[Level, ...]
) -> dict[str, Any]:
    """Return what the page shows about its scene, as JSON-able values."""
    made, size = published.provenance, published.size
    if size is None:  # a table of another program: the extent of its boxes
        reach = detections.xyxy[:, 2:].max(axis=0) if len(detections) else np.ones(2)
        size = int(np.ceil(reach[0])), int(np.ceil(reach[1]))
    return {
        "id": published.scene_id,
        "width": size[0],
        "height": size[1],
        "total": detections.total,
        "date": date_of(published.table),
        "gsd_m": _gsd(detections),
        "model": f"{made.model.id} {made.model.version}" if made else "",
        "model_sha256": made.model.sha256 if made else None,
        "source": made.source.name if made else None,
        "crs": _crs(published.table),
        "area": made.area.rings_px if made and made.area else [],
        "fingerprint": made.fingerprint if made else None,
        "picture": [levels[-1].width, levels[-1].height] if levels else None,
    }


def _more_facts(
    published: PublishedScene,
    detections: Detections,
    levels: tuple[Level, ...],
    scene: Scene | None,
) -> dict[str, Any]:
    """Return the location of the scene, the model's description, and hints on the picture."""
    kept_from, threshold = thresholds(published)
    points = lattice(published)
    picture = (levels[-1].width, levels[-1].height) if levels else None
    coarse = coarse_picture(published, detections, picture, limit=_finest(scene) if scene else None)
    return {
        "kept_from": kept_from,
        "threshold": threshold,
        "about_model": model_facts(published),
        "sizes_meaningful": published.model.get(SIZES_MEANINGFUL, True) is not False,
        "lattice": None if points is None else packed(points),
        "coarse": coarse,
        "finer": finer_picture(published),
    }


def render(template: str, scripts: tuple[str, ...], **values: Any) -> str:
    """Fill a template with our style and scripts; the page's security policy allows only these."""
    style, script = _text("page.css"), "\n".join(_text(f"{name}.js") for name in scripts)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    return (
        _environment()
        .get_template(template)
        .render(
            version=__version__,
            style=Markup(style),  # noqa: S704  our own file
            script=Markup(script),  # noqa: S704  our own files
            policy=f"default-src 'none'; img-src data: blob:; style-src '{_hash(style)}'; "
            f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'",
            **values,
        )
    )


def _key(published: PublishedScene, scene: Scene | None, settings: PageSettings) -> str:
    """Return a fingerprint of all that the page is made from."""
    picture = published.quicklook and sha256(published.quicklook.read_bytes()).hexdigest()
    base = scene.fingerprint if scene else picture
    provenance = published.provenance
    model = json.dumps(published.model, sort_keys=True)
    made = provenance.fingerprint if provenance else published.table.stat().st_mtime_ns
    return fingerprint(__version__, _code(), _makers(), model, made, base, settings.megabytes)


def _finest(scene: Scene) -> tuple[int, int]:
    """Return the size of the finest level: the scene's size, halved until it fits in memory."""
    halvings = max(0, math.ceil(math.log(scene.width * scene.height / _MOST_PX, 4)))
    return shrunk(scene, -(-max(scene.width, scene.height) // 2**halvings))


def _head(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_HEAD_BYTES)
    except (OSError, UnicodeDecodeError):
        return ""


def _gsd(detections: Detections) -> float | None:
    """Return metres per pixel, computed from the boxes: the table does not record it."""
    if detections.size_m is None or not len(detections):
        return None
    sides = detections.xyxy[:, 2:] - detections.xyxy[:, :2]
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = detections.size_m / sides
    finite = lengths[np.isfinite(lengths)]
    return float(f"{np.median(finite):.4g}") if len(finite) else None


def _crs(table: Path) -> str | None:
    """Return the scene's CRS if it has a short name."""
    first = next(pq.ParquetFile(table).iter_batches(1, columns=["crs"]), None)
    name = first.column(0)[0].as_py() if first is not None and first.num_rows else None
    return name if name and len(name) < 40 else None


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("scenesweep.pipeline.results.view", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _text(name: str) -> str:
    return (
        files("scenesweep.pipeline.results.view").joinpath("page", name).read_text(encoding="utf-8")
    )


def _code() -> list[str]:
    """Return the template, style and scripts of every page of a scene."""
    return [_text(name) for name in ("scene.html", "page.css", *(f"{n}.js" for n in SCENE_SCRIPTS))]


@cache
def _makers() -> list[str]:
    """Return the Python code that decides the content of a page."""
    folder = files("scenesweep.pipeline")
    names = ("about", "pack", "page", "published", "pyramid")
    paths = [
        folder / "publish" / "quicklook.py",
        *(folder / "results" / "view" / f"{name}.py" for name in names),
    ]
    return [path.read_text(encoding="utf-8") for path in paths]


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
