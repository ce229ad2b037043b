"""The STAC catalog over all published scenes, written at the end of a run.

It is made only from the items in OUT: the same items give the same bytes, whichever runs wrote
them. If a run is killed before it writes the catalog, the next run writes it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import stac_geoparquet.arrow as stac_geoparquet

from scenesweep.model.files.model_file import SUFFIX, ModelFile
from scenesweep.pipeline.publish.stac.item import (
    ALWAYS,
    COLLECTION_ID,
    add_file_fields,
    model_file_name,
)
from scenesweep.pipeline.publish.stac.items import find_items, keep_items
from scenesweep.pipeline.publish.stac.maps import with_maps
from scenesweep.pipeline.publish.stac.model_item import model_item
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import (
    CATALOG,
    COLLECTION,
    ITEM_TABLE,
    ITEMS,
    MODELS,
    Output,
)

log = logging.getLogger(__name__)

_TITLE = "Objects detected by scenesweep"
_WORLD = (-180.0, -90.0, 180.0, 90.0)


def write_catalog(out: Location, model: ModelFile) -> Location | None:
    """Write the model's item, and the collection and catalog of every scene published in OUT.

    Writes nothing when they are up to date, and reads only the items that changed. Returns the
    catalog's path, or None when there is no item.
    """
    output = Output(out)
    described = output.model(model_file_name(model.card, model.sha256))
    files = [described, output.item_table, output.collection, output.catalog]
    found = find_items(out, files)
    if found.unchanged:
        return output.catalog
    items = found.of_scenes()
    if not items:
        return None
    _write_model(model, described, output)
    collection = _collection(items)
    with atomic_write(output.item_table, output.aside) as path:
        _write_items(items, path)
        add_file_fields(collection.assets["items"], path)
    _write_json(with_maps(_as_dict(collection), out), output.collection, output)
    _write_json(_as_dict(_catalog(output)), output.catalog, output)
    keep_items(found, out, files)
    return output.catalog


def _write_model(model: ModelFile, path: Location, output: Output[Location]) -> None:
    described = model_item(model, href=f"{model.card.name}{SUFFIX}")
    described["links"] = [_up("root"), _up("parent")]
    _write_json(described, path, output)


def _collection(items: Sequence[dict[str, Any]]) -> pystac.Collection:
    collection = pystac.Collection(
        COLLECTION_ID,
        "One item for each scene that was swept, with the table of what was found in it",
        pystac.Extent(_space(items), _time(items)),
        title=_TITLE,
        license="other",
        summaries=_summaries(items),
    )
    mirror = pystac.Asset(
        f"./{ITEM_TABLE}",
        title="The items as one table",
        media_type=pystac.MediaType.VND_APACHE_PARQUET,
        roles=["collection-mirror"],
    )
    collection.add_asset("items", mirror)
    for rel in ("root", "parent"):
        collection.add_link(pystac.Link(rel, f"./{CATALOG}", pystac.MediaType.JSON))
    for item in items:
        href = f"./{ITEMS}/{item['id']}.json"
        collection.add_link(pystac.Link("item", href, pystac.MediaType.GEOJSON))
    return collection


def _catalog(output: Output[Location]) -> pystac.Catalog:
    catalog = pystac.Catalog("scenesweep", "Scenes, what was found in them, and by which models")
    catalog.title = _TITLE
    catalog.clear_links()
    catalog.add_link(pystac.Link("root", f"./{CATALOG}", pystac.MediaType.JSON))
    catalog.add_link(pystac.Link("child", f"./{COLLECTION}", pystac.MediaType.JSON))
    for path in output.models():
        catalog.add_link(pystac.Link("item", f"./{MODELS}/{path.name}", pystac.MediaType.GEOJSON))
    return catalog


def _as_dict(catalog: pystac.Catalog) -> dict[str, Any]:
    return catalog.to_dict(include_self_link=False, transform_hrefs=False)


def _space(items: Sequence[dict[str, Any]]) -> pystac.SpatialExtent:
    boxes = np.array([item["bbox"] for item in items if "bbox" in item] or [_WORLD])
    west, south = boxes[:, :2].min(axis=0).tolist()
    east, north = boxes[:, 2:].max(axis=0).tolist()
    if (boxes[:, 0] > boxes[:, 2]).any():  # one crosses the antimeridian
        west, east = _WORLD[0], _WORLD[2]
    return pystac.SpatialExtent([[west, south, east, north]])


def _time(items: Sequence[dict[str, Any]]) -> pystac.TemporalExtent:
    """Return the first and last time of acquisition among the scenes."""
    texts = [item["properties"]["datetime"] for item in items]
    times = [datetime.fromisoformat(text) for text in texts if text] or list(ALWAYS)
    return pystac.TemporalExtent([[min(times), max(times)]])


def _summaries(items: Sequence[dict[str, Any]]) -> pystac.Summaries:
    properties = [item["properties"] for item in items]
    ranges = {}
    for name in ("gsd", "table:row_count"):
        values = [of_scene[name] for of_scene in properties if name in of_scene]
        if values:
            ranges[name] = {"minimum": min(values), "maximum": max(values)}
    classes = {name for of_scene in properties for name in of_scene["scenesweep:counts"]}
    models = {of_scene["scenesweep:model"] for of_scene in properties}
    lists = {"scenesweep:classes": sorted(classes), "scenesweep:model": sorted(models)}
    return pystac.Summaries(ranges | lists, maxcount=len(classes | models) + 1)


def _write_items(items: Sequence[dict[str, Any]], path: Path) -> None:
    stac_geoparquet.to_parquet(
        stac_geoparquet.parse_stac_items_to_arrow(items), path, compression="zstd"
    )


def _write_json(content: Mapping[str, Any], path: Location, output: Output[Location]) -> None:
    with atomic_write(path, output.aside) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _up(rel: str) -> dict[str, str]:
    return {"rel": rel, "href": f"../{CATALOG}", "type": "application/json"}
