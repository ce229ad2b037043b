"""Links from the collection to the maps that `scenesweep compact --pmtiles` wrote."""

from __future__ import annotations

import json
import logging
from typing import Any

from scenesweep.pipeline.publish.stac.item import PMTILES_KIND, WEB_MAP_LINKS, map_link
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location, name_in
from scenesweep.pipeline.storage.paths import Output, date_of

log = logging.getLogger(__name__)


def with_maps(collection: dict[str, Any], out: Location) -> dict[str, Any]:
    """Return a collection as JSON-able values with links to the maps in OUT, and to no others."""
    maps = [
        map_link(f"./{name_in(out, path)}", f"Detections, {date_of(path)}").to_dict()
        for path in Output(out).compacted_maps()
    ]
    links = [link for link in collection["links"] if link["rel"] != PMTILES_KIND]
    others = [uri for uri in collection.get("stac_extensions", []) if uri != WEB_MAP_LINKS]
    extensions = [*others, WEB_MAP_LINKS] if maps else others
    return collection | {"stac_extensions": extensions, "links": links + maps}


def link_maps(out: Location) -> None:
    """Bring the links of OUT's collection up to date; without a collection, do nothing.

    Raises:
        OutputError: when the disk is full, or writing is not permitted.
    """
    path = Output(out).collection
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        after = with_maps(before, out)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s: expected a STAC collection; the next run writes it: %s", path, error)
        return
    if after != before:
        with atomic_write(path, Output(out).aside) as aside:
            aside.write_text(json.dumps(after, indent=2) + "\n", encoding="utf-8")
