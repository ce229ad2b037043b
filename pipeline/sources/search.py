"""Search a STAC API for scenes."""

from __future__ import annotations

import pystac
import requests
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from scenesweep.pipeline.errors import UsageError, shortened
from scenesweep.pipeline.sources.choice import Search
from scenesweep.pipeline.sources.stac import made_absolute
from scenesweep.pipeline.storage.host_headers import headers_for
from scenesweep.pipeline.storage.network import http_retries, http_timeouts, without_secrets


def search_items(search: Search) -> list[pystac.Item]:
    """Return all items that an API finds, page by page, in its order.

    Raises:
        UsageError: when the API does not answer, refuses the search, or finds nothing.
    """
    try:
        headers = dict(headers_for(search.url))
        stac_io = StacApiIO(headers, max_retries=http_retries(), timeout=http_timeouts())
        client = Client.open(search.url, stac_io=stac_io)
        results = client.search(
            collections=list(search.collections) or None,
            bbox=search.bbox,
            datetime=search.datetime,
            query=list(search.query) or None,
            max_items=search.max_items,
        )
        items = [made_absolute(item, search.url) for item in results.items()]
    except (APIError, NotImplementedError, ValueError, KeyError) as error:
        raise UsageError(_message(search, error)) from error
    except (requests.RequestException, pystac.STACError) as error:
        raise UsageError(_message(search, error)) from error
    if not items:
        raise UsageError(f"--stac-api {without_secrets(search.url)}: the search finds no item")
    return items


def _message(search: Search, error: Exception) -> str:
    text = shortened(without_secrets(str(error))) or type(error).__name__
    return f"--stac-api {without_secrets(search.url)}: {text}"
