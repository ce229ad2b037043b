"""HTTP headers for some hosts, such as a token that a data provider asks for.

The environment variable SCENESWEEP_HTTP_HEADERS is a JSON object, or the path of a file with one,
YAML or JSON: host names with their headers.

    {"data.example.com": {"Authorization": "Bearer TOKEN"}}

They are sent to that host only, and no message, report or log shows them. They are no setting,
because reports and published files contain the settings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from scenesweep.pipeline.errors import UsageError

VARIABLE = "SCENESWEEP_HTTP_HEADERS"
_EXPECTED = (
    f'{VARIABLE}: expected {{"HOST": {{"NAME": "VALUE"}}}}, or the path of a file with it, '
    "where HOST is a name such as data.example.com"
)
_HOST = re.compile(r"[A-Za-z0-9.-]+(:\d+)?|\[[0-9A-Fa-f:]+\](:\d+)?")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x20-\x7e]+")


def headers_for(href: str) -> Mapping[str, str]:
    """Return the headers for requests to the host of an address; none if it has none.

    Raises:
        UsageError: when the variable is wrong. The message does not show its content.
    """
    text = os.environ.get(VARIABLE, "")
    if not text or not href.lower().startswith(("https://", "http://")):
        return {}
    return _read(text).get(urlsplit(href).netloc.lower(), {})


def gdal_headers_for(href: str) -> tuple[str, str] | None:
    """Return a prefix of GDAL's paths and the headers of its requests there; None if none."""
    headers = headers_for(href)
    if not headers:
        return None
    parts = urlsplit(href)
    prefix = f"/vsicurl/{parts.scheme}://{parts.netloc}/"
    # GDAL would split a single line at its commas.
    return prefix, "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def check_headers() -> None:
    """Check the variable before a run.

    Raises:
        UsageError: when it is wrong. The message does not show its content.
    """
    text = os.environ.get(VARIABLE, "")
    if text:
        _read(text)


@cache
def _read(text: str) -> dict[str, dict[str, str]]:
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        tree = yaml.safe_load(content)  # JSON is YAML
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "wrong path"
        raise UsageError(f"{VARIABLE}: the file cannot be read: {reason}") from None
    except (ValueError, RecursionError, yaml.YAMLError):
        raise UsageError(_EXPECTED) from None  # the error shows the content
    if not isinstance(tree, dict) or not all(map(_is_entry, tree.items())):
        raise UsageError(_EXPECTED)
    return {host.lower(): headers for host, headers in tree.items()}


def _is_entry(entry: tuple[object, object]) -> bool:
    host, headers = entry
    return (
        isinstance(host, str)
        and _HOST.fullmatch(host) is not None
        and isinstance(headers, dict)
        and all(_is_header(name, value) for name, value in headers.items())
    )


def _is_header(name: object, value: object) -> bool:
    """Say whether a header is one line: anything else could add headers of its own."""
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and _NAME.fullmatch(name) is not None
        and _VALUE.fullmatch(value) is not None
    )
