"""The items of all published scenes, of which a run reads only those that changed.

    OUT/.work/catalog.parquet

This file holds the text of each item with its version (`pipeline.storage.location.version_in`),
and the versions of the catalog's files when they were written. The file may be deleted at any time:
then the next run reads all items.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from posixpath import join, normpath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import (
    Location,
    map_at_once,
    name_in,
    version_in,
    versions_under,
)
from scenesweep.pipeline.storage.paths import ITEMS, Output

log = logging.getLogger(__name__)

_SCHEMA = pa.schema([("name", pa.string()), ("version", pa.string()), ("text", pa.binary())])
_KEY = "catalog"


@dataclass(frozen=True, slots=True)
class Item:
    """The file of an item as it lies in OUT: its version and its content."""

    version: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Items:
    """The items in OUT by their path under it, sorted, and the names of all tables.

    `unchanged` says that the catalog's files were written from exactly these.
    """

    items: Mapping[str, Item]
    tables: frozenset[str]
    unchanged: bool

    def of_scenes(self) -> list[dict[str, Any]]:
        """Return the items of scenes that have a table; other files are skipped."""
        read = {name: _parsed(name, item.text) for name, item in self.items.items()}
        return [found[0] for found in read.values() if found and found[1] in self.tables]


def find_items(out: Location, catalog: list[Location]) -> Items:
    """List the items in OUT, and read those that changed since `keep_items`.

    `catalog` are the files that are made from them.
    """
    output = Output(out)
    known, state = _read(output.known_items)
    versions = {
        name_in(out, path): version
        for path, version in sorted(versions_under(output.item_folder).items())
        if path.suffix == ".json"
    }
    items = {n: known[n] for n, v in versions.items() if n in known and known[n].version == v}
    missing = [name for name in versions if name not in items]
    texts = map_at_once(lambda name: _text(out / name), missing, where=out)
    items |= {n: Item(versions[n], t) for n, t in zip(missing, texts, strict=True) if t is not None}
    tables = frozenset(name_in(out, table) for table in output.tables())
    same = not missing and known.keys() == items.keys() and state == _state(out, tables, catalog)
    return Items({name: items[name] for name in versions if name in items}, tables, same)


def _text(path: Location) -> bytes | None:
    """Read an item; None if another run removed it since it was listed."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def keep_items(items: Items, out: Location, catalog: list[Location]) -> None:
    """Keep the items for the next run, after the files of the catalog were written from them.

    Raises:
        OutputError: when the file cannot be written.
    """
    output = Output(out)
    kept = items.items.values()
    columns = [list(items.items), [item.version for item in kept], [item.text for item in kept]]
    state = json.dumps(_state(out, items.tables, catalog))
    arrays = [pa.array(c, field.type) for c, field in zip(columns, _SCHEMA, strict=True)]
    table = pa.table(arrays, schema=_SCHEMA.with_metadata({_KEY: state}))
    with atomic_write(output.known_items, output.aside, lasting=False) as path:
        pq.write_table(table, path, compression="zstd")


def _state(out: Location, tables: frozenset[str], catalog: list[Location]) -> dict[str, Any]:
    """Return what must be equal, besides the items, for the catalog to be up to date."""
    versions = {name_in(out, path): version_in(path) for path in catalog}
    return {"tables": sorted(tables), "catalog": versions}


def _read(path: Location) -> tuple[dict[str, Item], dict[str, Any]]:
    """Return the items and the state of the last run; none when they cannot be read."""
    with suppress(OSError, ValueError, KeyError, pa.ArrowException):
        table = pq.read_table(BytesIO(path.read_bytes()))
        state = json.loads(table.schema.metadata[_KEY.encode()])
        rows = zip(*(table[name].to_pylist() for name in _SCHEMA.names), strict=True)
        return {name: Item(version, text) for name, version, text in rows}, state
    return {}, {}


def _parsed(name: str, text: bytes) -> tuple[dict[str, Any], str] | None:
    """Return an item and the name of its table, or None for another file."""
    try:
        item = json.loads(text)
        return item, normpath(join(ITEMS, item["assets"]["detections"]["href"]))
    except (ValueError, KeyError, TypeError):
        log.warning("%s: expected the item of a swept scene; the catalog does not include it", name)
    return None
