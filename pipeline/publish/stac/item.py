"""A swept scene as a STAC Item: its area, time, sources and published files.

It uses the extensions file, table and processing, and web map links for PMTiles. The link to the
model follows MLM's best practices (https://github.com/stac-extensions/mlm). Fields with
`scenesweep:` are our own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import pystac
import shapely
from pystac.extensions.file import FileExtension
from pystac.extensions.table import Column, TableExtension

from scenesweep.model.card import ModelCard
from scenesweep.pipeline.planning.area import looked_at
from scenesweep.pipeline.planning.coverage import Coverage, few_vertices
from scenesweep.pipeline.planning.footprint import bounding_box, footprint
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.formats.pmtiles import LAYERS
from scenesweep.pipeline.publish.stac.model_item import SHA256, mlm_name
from scenesweep.pipeline.publish.table import SCHEMA
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.settings import ResolvedSettings
from scenesweep.pipeline.sources.ids import folder_name, source_address
from scenesweep.pipeline.storage.location import Location, name_in
from scenesweep.pipeline.storage.network import is_remote, without_secrets
from scenesweep.pipeline.storage.paths import CATALOG, COLLECTION, MODELS

COLLECTION_ID = "detections"
PROCESSING = "https://stac-extensions.github.io/processing/v1.1.0/schema.json"
ALWAYS = (datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
"""The time range of a scene without a time: STAC requires a range in place of a time."""

PMTILES = "application/vnd.pmtiles"
WEB_MAP_LINKS = "https://stac-extensions.github.io/web-map-links/v1.2.0/schema.json"

PMTILES_KIND = "pmtiles"
"""The relation of the link, and the name of the format in `publish.formats`."""

_DECIMALS_KM2 = 6  # square metres
_LEVEL = "L4"  # "Model output or results from analyses of lower level data"
_MEDIA_TYPES = {
    ".fgb": pystac.MediaType.FLATGEOBUF,
    ".geojson": pystac.MediaType.GEOJSON,
    ".gpkg": pystac.MediaType.GEOPACKAGE,
    ".html": pystac.MediaType.HTML,
    ".json": pystac.MediaType.JSON,
    ".parquet": pystac.MediaType.VND_APACHE_PARQUET,
    ".pmtiles": PMTILES,
    ".png": pystac.MediaType.PNG,
    ".qml": pystac.MediaType.XML,
}
_ROLES = {".html": "overview", ".png": "overview", ".qml": "style"}


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A complete file of a scene: its path in OUT, its size in bytes and its SHA-256 in hex."""

    path: Location
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SceneFacts:
    """What a run learned of a scene: detections of each class, and the ground that was observed.

    `software` maps the libraries that made the files to their versions.
    """

    counts: Mapping[str, int]
    coverage: Coverage | None
    software: Mapping[str, str]


def scene_item(
    plan: Plan, job: Job, facts: SceneFacts, files: Mapping[str, PublishedFile]
) -> dict[str, Any]:
    """Describe a scene's published files, given by kind, as a STAC Item ready for JSON.

    Its geometry is the observed ground, with few vertices. If nothing was observed, it is the
    searched ground: the scene's outline within the area of interest.
    """
    scene, coverage = plan.scene, facts.coverage
    area = looked_at(scene, job.area, plan.area_px)
    outline = footprint(scene) if area is None else area.geometry
    if coverage is not None and not coverage.ground.is_empty:
        outline = few_vertices(coverage.ground)
    item = pystac.Item(
        id=scene.id,
        geometry=None if outline is None else shapely.geometry.mapping(outline),
        bbox=None if outline is None else bounding_box(outline),
        datetime=scene.acquired_at,
        start_datetime=None if scene.acquired_at else ALWAYS[0],
        end_datetime=None if scene.acquired_at else ALWAYS[1],
        properties=_properties(plan, job, facts),
        stac_extensions=[PROCESSING],
        collection=COLLECTION_ID,
    )
    if area is not None:
        item.properties["scenesweep:area_sha256"] = area.sha256
    _describe_table(item, rows=sum(facts.counts.values()))
    for kind, file in sorted(files.items()):
        _add_asset(item, kind, file, job.out)
    item.add_links(_links(scene, job))
    if PMTILES_KIND in files:
        item.stac_extensions.append(WEB_MAP_LINKS)
        item.add_link(map_link(f"../{name_in(job.out, files[PMTILES_KIND].path)}", scene.id))
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def map_link(href: str, title: str) -> pystac.Link:
    """Return the link to PMTiles by which STAC browsers show a map (extension Web Map Links)."""
    layers = {"pmtiles:layers": list(LAYERS)}
    return pystac.Link(PMTILES_KIND, href, PMTILES, title=title, extra_fields=layers)


def model_file_name(card: ModelCard, sha256: str) -> str:
    """Return the name of the file in OUT/models that describes a model."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{card.name}-{card.version}")
    return f"{name}-{sha256[:8]}.json"


def source_name(scene: Scene, settings: ResolvedSettings) -> str:
    """Return the name of a scene's file, without its path and the query of its address.

    With `scenes.ids: path` many scenes may have one file name, so the folder's name is added.
    """
    folder = folder_name(scene.href) if settings.scenes.ids == "path" else ""
    name = PurePath(without_secrets(scene.href)).name
    return f"{folder}/{name}" if folder else name


def add_file_fields(asset: pystac.Asset, path: Path) -> None:
    """Add size and checksum (a SHA-256 as multihash) to an asset that has an owner."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _describe_file(asset, size=path.stat().st_size, sha256=digest)


def _describe_file(asset: pystac.Asset, *, size: int, sha256: str) -> None:
    described = FileExtension.ext(asset, add_if_missing=True)
    described.size, described.checksum = size, SHA256 + sha256


def _properties(plan: Plan, job: Job, facts: SceneFacts) -> dict[str, Any]:
    scene, card = plan.scene, job.card
    properties: dict[str, Any] = {
        "processing:level": _LEVEL,
        "processing:lineage": f"{card.name}@{card.version} over {source_name(scene, job.settings)}",
        "processing:software": dict(facts.software),
        "scenesweep:counts": {name: facts.counts.get(name, 0) for name in card.classes},
        "scenesweep:fingerprint": plan.fingerprint,
        "scenesweep:model": f"{card.name}@{card.version}",
    }
    if facts.coverage is not None:
        properties["scenesweep:observed_km2"] = round(facts.coverage.observed_km2, _DECIMALS_KM2)
        if facts.coverage.masked_km2 is not None:
            properties["scenesweep:masked_km2"] = round(facts.coverage.masked_km2, _DECIMALS_KM2)
    if scene.gsd_m is not None:
        properties["gsd"] = round(max(scene.gsd_m), 4)
    return properties


def _describe_table(item: pystac.Item, *, rows: int) -> None:
    described = TableExtension.ext(item, add_if_missing=True)
    described.columns = [Column({"name": f.name, "type": str(f.type)}) for f in SCHEMA]
    described.primary_geometry = "geometry"
    described.row_count = rows


def _add_asset(item: pystac.Item, kind: str, file: PublishedFile, out: Location) -> None:
    suffix = file.path.suffix
    asset = pystac.Asset(
        href=f"../{name_in(out, file.path)}",
        media_type=_MEDIA_TYPES.get(suffix),
        roles=[_ROLES.get(suffix, "data")],
    )
    item.add_asset(kind, asset)
    _describe_file(asset, size=file.size, sha256=file.sha256)


def _links(scene: Scene, job: Job) -> list[pystac.Link]:
    up, name = f"../{COLLECTION}", mlm_name(job.card.name)
    return [
        pystac.Link("root", f"../{CATALOG}", pystac.MediaType.JSON),
        pystac.Link("parent", up, pystac.MediaType.JSON),
        pystac.Link("collection", up, pystac.MediaType.JSON),
        *(pystac.Link("derived_from", href, title="the scene") for href in _addresses(scene)),
        pystac.Link(
            "derived_from",
            f"../{MODELS}/{model_file_name(job.card, job.model_sha256)}",
            pystac.MediaType.GEOJSON,
            title="the model",
            extra_fields={"mlm:name": name, "processing:level": _LEVEL},
        ),
    ]


def _addresses(scene: Scene) -> list[str]:
    """Return the addresses of a scene's files that others can open and that hold no secret.

    A path of this machine is useless elsewhere, and the query of an address may be secret.
    """
    hrefs = [part.href for part in scene.parts if is_remote(part.href)]
    return [
        without_secrets(href) for href in hrefs if source_address(href) == without_secrets(href)
    ]
