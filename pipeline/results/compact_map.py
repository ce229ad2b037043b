"""The map of a compacted date: OUT/compact/date=YYYY-MM-DD/detections.pmtiles.

It has the rows of the compacted file without duplicates. The compacted file is the result; the
map is a copy for web maps, and says in its metadata which file it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.formats.pmtiles import COLUMNS, read_metadata, write_tiles
from scenesweep.pipeline.publish.provenance import read_footer
from scenesweep.pipeline.settings import fingerprint
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location, local_copies
from scenesweep.pipeline.storage.paths import Output

MAP_VERSION = 1
"""Increase it when the same compacted file gives other bytes than before."""
_KEY = "scenesweep:fingerprint"


def write_map(out: Location, date: str) -> bool:
    """Write the map of a compacted date; return False if it is up to date.

    Raises:
        UnreadableOutput: when the compacted file cannot be read.
        OutputError: when the disk is full, or writing is not permitted.
    """
    table, target = Output(out).compacted(date), Output(out).compacted_map(date)
    made_from = _fingerprint(table)
    if target.is_file() and read_metadata(target).get(_KEY) == made_from:
        return False
    with (
        local_copies([table], out) as (copy,),
        atomic_write(target, Output(out).aside) as path,
    ):
        write_tiles(lambda: _unique_rows(copy, table), path, name=date, facts={_KEY: made_from})
    return True


def _fingerprint(table: Location) -> str:
    record: Any = read_footer(table).record
    try:
        return fingerprint(MAP_VERSION, record["fingerprint"])
    except (KeyError, TypeError) as error:
        reason = json.dumps(record)[:80]
        raise UnreadableOutput(f"{table}: expected a compacted file, got {reason}") from error


def _unique_rows(copy: Path, table: Location) -> Iterator[pa.Table]:
    """Yield the rows that are no duplicates, one row group at a time.

    Raises:
        UnreadableOutput: names `table`, of which `copy` is a copy on this machine.
    """
    try:
        with pq.ParquetFile(copy) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=[*COLUMNS, "duplicate_of"])
                yield rows.filter(pc.is_null(rows["duplicate_of"])).select(COLUMNS)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UnreadableOutput(f"{table}: expected a compacted file: {error}") from error
