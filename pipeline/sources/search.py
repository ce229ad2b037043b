"""Search a STAC API for scenes."""

from __future__ import annotations

import pystac
import requests
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.sources.choice import Search
from scenesweep.pipeline.sources.stac import made_absolute
from scenesweep.pipeline.storage.network import http_retries, http_timeouts, without_secrets


def search(wanted: Search) -> list[pystac.Item]:
    """Return all items that an API finds, page by page, in its order.

    Raises:
        UsageError: when the API does not answer, refuses the search, or finds nothing.
    """
    try:
        reach = StacApiIO(max_retries=http_retries(), timeout=http_timeouts())
        client = Client.open(wanted.url, stac_io=reach)
        found = client.search(
            collections=list(wanted.collections) or None,
            bbox=wanted.bbox,
            datetime=wanted.datetime,
            query=list(wanted.query) or None,
            max_items=wanted.max_items,
        )
        items = [made_absolute(item, wanted.url) for item in found.items()]
    except (APIError, NotImplementedError, ValueError, KeyError) as error:
        raise UsageError(_said(wanted, error)) from error
    except (requests.RequestException, pystac.STACError) as error:
        raise UsageError(_said(wanted, error)) from error
    if not items:
        raise UsageError(f"--stac-api {without_secrets(wanted.url)}: the search finds no item")
    return items


def _said(wanted: Search, error: Exception) -> str:
    text = without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__
    return f"--stac-api {without_secrets(wanted.url)}: {text}"
