"""What a folder of published scenes holds: tables, pictures, and what the reports remember."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scenesweep.pipeline.errors import SceneError
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.scene import Scene

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublishedScene:
    """One published scene: its table and, where there is one, its quicklook.

    `provenance` is the table's own record of what it was made from, `model` the properties of
    its model's item in OUT/models, empty where there is none.
    """

    scene_id: str
    table: Path
    quicklook: Path | None
    provenance: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the scene in its own pixels, where the table says so."""
        grid = self.provenance.get("grid")
        if not grid:
            return None
        (width, height), (sx, sy) = grid["size"], grid["scale"]
        return round(width * sx), round(height * sy)


def find_published(out: Path) -> dict[str, PublishedScene]:
    """Return the scenes published under `out` by id, in order; the last date of an id counts."""
    found = {}
    for table in sorted((out / "detections").glob("date=*/*.parquet")):
        picture = out / "quicklooks" / f"{table.stem}.png"
        provenance = _provenance(table)
        found[table.stem] = PublishedScene(
            table.stem,
            table,
            picture if picture.is_file() else None,
            provenance,
            _model(out, str(provenance.get("model", {}).get("sha256", ""))),
        )
    return dict(sorted(found.items()))


def last_results(out: Path) -> dict[str, dict[str, Any]]:
    """Return what the run reports last said of each scene, by id."""
    results: dict[str, dict[str, Any]] = {}
    for path in sorted((out / "runs").glob("*.json")):  # their names begin with the time
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            results |= {str(result["scene_id"]): result for result in report["results"]}
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: not a run report: %s", path, error)
    return results


def source_of(
    published: PublishedScene, href: str | None, *, drivers: tuple[str, ...] = DRIVERS
) -> Scene | None:
    """Return the scene at `href` if it is there and still what the table was made from."""
    if href is None:
        return None
    try:
        scene = inspect(href, drivers=drivers, pixel_coordinates=True)
    except SceneError as error:
        log.info("%s: its picture cannot be taken from the scene: %s", published.scene_id, error)
        return None
    made_from = published.provenance.get("source", {}).get("fingerprint")
    if scene.fingerprint == made_from:
        return scene
    log.info("%s: its scene has changed since it was swept", published.scene_id)
    return None


def _model(out: Path, sha256: str) -> Mapping[str, Any]:
    """Return the properties of a model's item, whose file name ends with part of its SHA-256."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return {}
    for path in sorted((out / "models").glob(f"*-{sha256[:8]}.json")):
        try:
            properties = json.loads(path.read_text(encoding="utf-8"))["properties"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: not the item of a model: %s", path, error)
        else:
            return properties if isinstance(properties, dict) else {}
    return {}


def _provenance(table: Path) -> Mapping[str, Any]:
    try:
        metadata = pq.read_schema(table).metadata or {}
        said = json.loads(metadata.get(b"scenesweep", b"{}"))
    except (pa.ArrowInvalid, ValueError, OSError):
        return {}
    return said if isinstance(said, dict) else {}
