"""What a folder of published scenes holds: tables, pictures, and what the reports remember."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SceneError
from pipeline.raster.gdal import DRIVERS
from pipeline.scene import Scene, inspect

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """One published scene: its table and, where there is one, its quicklook.

    `provenance` is the table's own record of what it was made from.
    """

    scene_id: str
    table: Path
    quicklook: Path | None
    provenance: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the scene in its own pixels, where the table says so."""
        grid = self.provenance.get("grid")
        if not grid:
            return None
        (width, height), (sx, sy) = grid["size"], grid["scale"]
        return round(width * sx), round(height * sy)


def find_published(out: Path) -> dict[str, Published]:
    """Return the scenes published under `out` by id, in order; the last date of an id counts."""
    found = {}
    for table in sorted((out / "detections").glob("date=*/*.parquet")):
        picture = out / "quicklooks" / f"{table.stem}.png"
        found[table.stem] = Published(
            table.stem, table, picture if picture.is_file() else None, _provenance(table)
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
    published: Published, href: str | None, *, drivers: tuple[str, ...] = DRIVERS
) -> Scene | None:
    """Return the scene at `href` if it is there and still what the table was made from."""
    if href is None:
        return None
    try:
        scene = inspect(href, drivers=drivers, pixel_coordinates=True)
    except SceneError:
        return None
    made_from = published.provenance.get("source", {}).get("fingerprint")
    return scene if scene.fingerprint == made_from else None


def _provenance(table: Path) -> Mapping[str, Any]:
    try:
        metadata = pq.read_schema(table).metadata or {}
        said = json.loads(metadata.get(b"scenesweep", b"{}"))
    except (pa.ArrowInvalid, ValueError, OSError):
        return {}
    return said if isinstance(said, dict) else {}
