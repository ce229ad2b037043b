"""STAC items made for tests, and an API that pages through them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.servers import FileServer

_CORE = "https://api.stacspec.org/v1.0.0/"
CONFORMANCE = [
    f"{_CORE}core",
    f"{_CORE}item-search",
    f"{_CORE}item-search#query",
    f"{_CORE}collections",
]


def make_item(name: str, assets: dict[str, dict[str, Any]], **properties: Any) -> dict[str, Any]:
    """Return a STAC 1.0 item whose assets are GeoTIFFs of role data unless they say otherwise."""
    filled = {
        key: {"type": "image/tiff; application=geotiff", "roles": ["data"], **asset}
        for key, asset in assets.items()
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": {"type": "Point", "coordinates": [-117.7, 34.1]},
        "bbox": [-117.7, 34.1, -117.7, 34.1],
        "properties": {"datetime": "2026-06-21T18:00:00Z", **properties},
        "links": [],
        "assets": filled,
    }


def serve_api(server: FileServer, items: Sequence[dict[str, Any]], *, page: int = 2) -> str:
    """Serve a STAC API under `/api`: a landing page and a search with pages."""
    url = f"{server.url}/api"
    links = [
        {"rel": "root", "href": url, "type": "application/json"},
        {"rel": "search", "href": f"{url}/search", "type": "application/geo+json", "method": "GET"},
        {
            "rel": "search",
            "href": f"{url}/search",
            "type": "application/geo+json",
            "method": "POST",
        },
        {"rel": "data", "href": f"{url}/collections", "type": "application/json"},
    ]
    landing = {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "api",
        "description": "an API for tests",
        "conformsTo": CONFORMANCE,
        "links": links,
    }

    def search(_command: str, _query: str, sent: bytes) -> bytes:
        asked = json.loads(sent)
        start = int(asked.get("token", 0))
        limit = float((asked.get("query") or {}).get("eo:cloud_cover", {}).get("lt", 101))
        found = [
            item
            for item in items
            if item.get("collection") in (asked.get("collections") or [item.get("collection")])
            and item["properties"].get("eo:cloud_cover", 0) < limit
        ]
        more = []
        if start + page < len(found):
            body = {**asked, "token": start + page}
            more = [{"rel": "next", "href": f"{url}/search", "method": "POST", "body": body}]
        features = found[start : start + page]
        reply = {"type": "FeatureCollection", "features": features, "links": more}
        return json.dumps(reply).encode()

    server.pages["/api"] = server.pages["/api/"] = json.dumps(landing).encode()
    server.pages["/api/search"] = search
    return url
