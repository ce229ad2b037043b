"""The published scenes of a folder: tables, quicklooks, model items and run reports."""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenesweep.pipeline.errors import SceneError, UnreadableOutput
from scenesweep.pipeline.publish.provenance import Json, Provenance, read_provenance
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.storage.paths import Output

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublishedScene:
    """One published scene: its table and, where there is one, its quicklook.

    `provenance` is the table's record of what it was made from, None for a table of another
    program. `model` has the properties of the model's STAC item, and is empty without one.
    """

    scene_id: str
    table: Path
    quicklook: Path | None
    provenance: Provenance | None
    model: Json = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the scene in scene pixels, None without provenance."""
        if self.provenance is None:
            return None
        (width, height), (sx, sy) = self.provenance.grid_size, self.provenance.grid_scale
        return round(width * sx), round(height * sy)


def find_published(out: Path) -> dict[str, PublishedScene]:
    """Return the scenes published under `out` by id, sorted; of several dates the last counts."""
    scenes = {}
    for table in Output(out).tables():
        quicklook = Output(out).quicklook(table.stem)
        provenance = _provenance(table)
        sha256 = provenance.model.sha256 if provenance else ""
        scenes[table.stem] = PublishedScene(
            table.stem,
            table,
            quicklook if quicklook.is_file() else None,
            provenance,
            _model(out, sha256),
        )
    return dict(sorted(scenes.items()))


def last_results(out: Path) -> dict[str, dict[str, Any]]:
    """Return the latest result of each scene in the run reports, by id."""
    results: dict[str, dict[str, Any]] = {}
    for path in Output(out).run_reports():
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            results |= {str(result["scene_id"]): result for result in report["results"]}
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: expected a run report: %s", path, error)
    return results


def source_of(
    published: PublishedScene, href: str | None, *, drivers: tuple[str, ...] = DRIVERS
) -> Scene | None:
    """Return the scene at `href` if it exists and is unchanged since it was swept."""
    if href is None:
        return None
    try:
        scene = inspect(href, drivers=drivers, pixel_coordinates=True)
    except SceneError as error:
        log.info("%s: the page cannot show the scene itself: %s", published.scene_id, error)
        return None
    provenance = published.provenance
    if provenance is not None and scene.fingerprint == provenance.source.fingerprint:
        return scene
    log.info("%s: its scene has changed since it was swept", published.scene_id)
    return None


def _model(out: Path, sha256: str) -> Json:
    """Return the properties of a model's item; its file name ends with part of the SHA-256."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return {}
    for path in Output(out).models(f"*-{sha256[:8]}.json"):
        try:
            properties = json.loads(path.read_text(encoding="utf-8"))["properties"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: expected the STAC item of a model: %s", path, error)
        else:
            return properties if isinstance(properties, dict) else {}
    return {}


def _provenance(table: Path) -> Provenance | None:
    with suppress(UnreadableOutput):
        return read_provenance(table)
    return None
