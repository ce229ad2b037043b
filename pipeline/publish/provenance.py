"""The record in a published table of what the table was made from: `Provenance`.

It is JSON under the key `scenesweep` of the Parquet file's metadata. It contains no clock, host
or run id, so equal inputs give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import shapely
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.planning.area import looked_at
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.stac.item import source_name
from scenesweep.pipeline.raster.inspect import crs_name
from scenesweep.pipeline.storage.location import Location, parquet
from scenesweep.pipeline.storage.network import without_secrets

Json = Mapping[str, Any]
Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """The scene that was swept.

    `size` is width and height in scene pixels. `transform` has the six numbers of the affine
    transform; it and `crs` are None without georeference. `files` and `join` are set for a scene
    of several files. `catalog` is what a catalog says about the scene.
    """

    name: str
    size: tuple[int, int]
    fingerprint: str
    transform: tuple[float, ...] | None = None
    crs: str | None = None
    files: tuple[str, ...] = ()
    join: str = ""
    catalog: Json = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return JSON-able values, without those that are not known."""
        record: dict[str, object] = {
            "name": self.name,
            "size": list(self.size),
            "fingerprint": self.fingerprint,
        }
        if self.transform is not None:
            record |= {"transform": list(self.transform), "crs": self.crs}
        if self.files:
            record |= {"files": list(self.files), "join": self.join}
        return record | ({"catalog": dict(self.catalog)} if self.catalog else {})

    @classmethod
    def from_json(cls, record: Json) -> SourceRecord:
        width, height = record["size"]
        transform = record.get("transform")
        return cls(
            record["name"],
            (width, height),
            record["fingerprint"],
            None if transform is None else tuple(transform),
            record.get("crs"),
            tuple(record.get("files", ())),
            record.get("join", ""),
            record.get("catalog", {}),
        )


@dataclass(frozen=True, slots=True)
class AreaRecord:
    """The part of the scene inside the area of interest.

    `geometry` is in OGC:CRS84, None where the scene's outline cannot be placed. `rings_px` are
    the rings of the same polygons in scene pixels. `sha256` is of the whole area of interest.
    """

    sha256: str
    geometry: BaseGeometry | None
    rings_px: list[list[list[float]]]

    def to_json(self) -> dict[str, object]:
        geometry = None if self.geometry is None else mapping(self.geometry)
        return {"sha256": self.sha256, "geometry": geometry, "rings_px": self.rings_px}

    def outline_px(self) -> BaseGeometry:
        """Return the polygons of `rings_px`. A ring inside another one is a hole."""
        return shapely.build_area(shapely.multilinestrings(self.rings_px))

    @classmethod
    def from_json(cls, record: Json) -> AreaRecord:
        geometry = record["geometry"]
        return cls(record["sha256"], shape(geometry) if geometry else None, record["rings_px"])


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The model that the scene was swept with."""

    id: str
    version: str
    sha256: str
    classes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"classes": list(self.classes)}

    @classmethod
    def from_json(cls, record: Json) -> ModelRecord:
        classes = tuple(record.get("classes", ()))
        return cls(record["id"], record["version"], record["sha256"], classes)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a published table was made from.

    `grid_scale` is scene pixels per pixel of the grid, `grid_size` the grid's width and height.
    `stretch` is one (low, high) per band, None where pixels were taken as they are. `area` is
    None when the whole scene was looked at. `settings` are those of the run, as in the run report.
    """

    fingerprint: str
    source: SourceRecord
    area: AreaRecord | None
    grid_scale: Pair
    grid_size: tuple[int, int]
    stretch: tuple[Pair, ...] | None
    model: ModelRecord
    settings: Json
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """Return the record as it is written into the table."""
        return {
            "fingerprint": self.fingerprint,
            "source": self.source.to_json(),
            "area": None if self.area is None else self.area.to_json(),
            "grid": {"scale": list(self.grid_scale), "size": list(self.grid_size)},
            "stretch": self.stretch,
            "model": self.model.to_json(),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, record: Json, where: Location) -> Provenance:
        """Read the record of the table at `where`.

        Raises:
            UnreadableOutput: when the record is not that of a swept scene.
        """
        try:
            grid, area, stretch = record["grid"], record["area"], record["stretch"]
            (scale_x, scale_y), (width, height) = grid["scale"], grid["size"]
            return cls(
                record["fingerprint"],
                SourceRecord.from_json(record["source"]),
                None if area is None else AreaRecord.from_json(area),
                (scale_x, scale_y),
                (width, height),
                None if stretch is None else tuple((low, high) for low, high in stretch),
                ModelRecord.from_json(record["model"]),
                dict(record["settings"]),
                dict(record["versions"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnreadableOutput(
                f"{where}: expected a table that scenesweep detect published, but its metadata "
                f"has no valid record of the scene ({error}); sweep the scene again"
            ) from error


@dataclass(frozen=True, slots=True)
class TableFooter:
    """The footer of a table: Parquet's metadata, the `geo` record and the `scenesweep` record."""

    parquet: pq.FileMetaData
    geo: Json
    record: Json


def read_footer(path: Location) -> TableFooter:
    """Read the footer of a table; no row is read.

    Raises:
        UnreadableOutput: when the file is not a Parquet file, or its metadata is not JSON.
    """
    try:
        footer = pq.read_metadata(parquet(path))
        metadata = footer.metadata or {}
        geo, record = (json.loads(metadata.get(key, b"{}")) for key in (b"geo", b"scenesweep"))
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise UnreadableOutput(
            f"{path}: expected a Parquet file that scenesweep wrote: {reason}"
        ) from error
    return TableFooter(footer, geo, record)


def read_provenance(path: Location) -> Provenance:
    """Read what a published table was made from.

    Raises:
        UnreadableOutput: when the file is not a table of a swept scene.
    """
    return Provenance.from_json(read_footer(path).record, path)


def provenance_of(plan: Plan, job: Job, software: Mapping[str, str]) -> Provenance:
    """Return the record of the table that this job publishes for a scene.

    `software` is the versions of what makes it.
    """
    area = looked_at(plan.scene, job.area, plan.area_px)
    scale_x, scale_y = plan.source.scale
    stretch = plan.source.stretch
    width, height = plan.layout.grid.size
    return Provenance(
        fingerprint=plan.fingerprint,
        source=_source_of(plan, job),
        area=None if area is None else AreaRecord.from_json(area.to_json()),
        grid_scale=(scale_x, scale_y),
        grid_size=(width, height),
        stretch=None if stretch is None else stretch.ranges,
        model=ModelRecord(job.card.name, job.card.version, job.model_sha256, job.card.classes),
        settings=job.settings.model_dump(mode="json", exclude={"engine"}),
        versions=software,
    )


def _source_of(plan: Plan, job: Job) -> SourceRecord:
    scene = plan.scene
    placed = scene.transform is not None and scene.crs is not None
    several = len(scene.parts) > 1
    names = [Path(without_secrets(part.href)).name for part in scene.parts]
    hints = {name: value for name, value in asdict(plan.hints).items() if value not in (None, "")}
    return SourceRecord(
        name=source_name(scene, job.settings),
        size=(scene.width, scene.height),
        fingerprint=scene.fingerprint,
        transform=tuple(scene.transform[:6]) if placed and scene.transform is not None else None,
        crs=crs_name(scene) if placed else None,
        files=tuple(names) if several else (),
        join=scene.join if several else "",
        catalog={k: str(v) if isinstance(v, datetime) else v for k, v in hints.items()},
    )
