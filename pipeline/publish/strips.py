"""The horizontal strips of a large scene: which shards each has, and its merged detections.

A strip has whole rows of shards. Its windows overlap those of the next strips by the margin, so
candidates near its ends may have partners there: `pipeline.detection.merge.settle`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scenesweep.pipeline.detection.detect import Candidates, ShardDetections
from scenesweep.pipeline.detection.merge import Settled
from scenesweep.pipeline.detection.parts import PART_SCHEMA, columns_of, from_columns
from scenesweep.pipeline.geometry.grid import Layout
from scenesweep.pipeline.publish.hilbert import BITS, hilbert_codes
from scenesweep.pipeline.storage.location import Location, parquet

_MOST_STRIPS = 32
_FORM: Any = {"use_dictionary": False, "write_page_checksum": True}
_OPEN = -1  # the chunk of candidates that are not merged yet


@dataclass(frozen=True, slots=True)
class Strip:
    """Some shards of a scene. The rows `top` to `bottom` of the grid hold all their windows."""

    numbers: tuple[int, ...]
    top: int
    bottom: int


@dataclass(frozen=True, slots=True)
class PartsSummary:
    """What the parts of a scene say besides their candidates, for the run report."""

    windows: int = 0
    capped_windows: int = 0
    on_nodata: int = 0
    ran_on: tuple[str, ...] = ()

    @classmethod
    def of(cls, parts: Iterable[ShardDetections]) -> PartsSummary:
        total = cls()
        for part in parts:
            ran_on = (part.ran_on,) if part.ran_on else ()
            total += cls(part.windows, part.capped_windows, part.on_nodata, ran_on)
        return total

    def __add__(self, other: PartsSummary) -> PartsSummary:
        return PartsSummary(
            self.windows + other.windows,
            self.capped_windows + other.capped_windows,
            self.on_nodata + other.on_nodata,
            tuple(sorted({*self.ran_on, *other.ran_on})),
        )


def strips_of(layout: Layout) -> list[Strip]:
    """Cut a scene into strips of about as many rows of shards each, those without shards left out.

    An island belongs to the strip whose rows of cores have its first row.
    """
    grid = layout.grid
    across, rows = -(-grid.shape[1] // grid.side), -(-grid.shape[0] // grid.side)
    of_row = np.arange(rows) * min(_MOST_STRIPS, rows) // rows
    numbers = np.array(layout.numbers, np.int64)
    row_of = np.minimum(numbers // across, rows - 1)
    if len(layout.islands):
        starts = grid.rows.core_starts[:: grid.side]
        is_island = numbers >= grid.shards
        tops = layout.islands[numbers[is_island] - grid.shards, 1]
        row_of[is_island] = np.searchsorted(starts, tops, side="right") - 1
    strip_of = of_row[row_of]
    return [_strip(layout, numbers[strip_of == strip]) for strip in np.unique(strip_of)]


def _strip(layout: Layout, numbers: NDArray[np.int64]) -> Strip:
    grid, first = layout.grid, layout.grid.shards
    of_grid = numbers[numbers < first] // -(-grid.shape[1] // grid.side) * grid.side
    last = np.minimum(of_grid + grid.side, grid.shape[0]) - 1
    tops = [*grid.rows.starts[of_grid], *layout.islands[numbers[numbers >= first] - first, 1]]
    bottoms = [*(grid.rows.starts[last] + grid.fitted(grid.height))]
    for _, top, _, height in layout.islands[numbers[numbers >= first] - first]:
        bottoms.append(top + grid.fitted(height))
    return Strip(tuple(numbers.tolist()), int(min(tops)), int(max(bottoms)))


def reach_of_others(strips: Sequence[Strip], number: int) -> tuple[float, float]:
    """Return the grid row where other strips above end, and where those below begin.

    One pixel is added, because boxes are rounded when they move to the scene.
    """
    above = max((strip.bottom for strip in strips[:number]), default=-np.inf)
    below = min((strip.top for strip in strips[number + 1 :]), default=np.inf)
    return above + 1, below - 1


def write_settled(
    settled: Settled, size: tuple[int, int], chunks: int, path: Path, summary: PartsSummary
) -> None:
    """Write a merged strip: a row group for each chunk of the curve, and one for open candidates.

    Chunks are equal lengths of the Hilbert curve over the scene, whose `size` is width and height.
    """
    codes = hilbert_codes(settled.detections.xyxy, size)
    order = np.argsort(codes, kind="stable")
    chunk_of = codes[order].astype(np.int64) * chunks >> (2 * BITS)
    present, starts = np.unique(chunk_of, return_index=True)
    pieces = np.split(order, starts[1:]) if len(present) else []
    groups = {
        int(c): settled.detections.take(rows) for c, rows in zip(present, pieces, strict=True)
    }
    if len(settled.open):
        groups[_OPEN] = settled.open
    notes = {"groups": json.dumps(list(groups)), "summary": json.dumps(asdict(summary))}
    schema = PART_SCHEMA.with_metadata(notes)
    with pq.ParquetWriter(path, schema, compression="zstd", **_FORM) as writer:
        for candidates in groups.values():
            table = pa.table(columns_of(candidates), schema=schema)
            writer.write_table(table, row_group_size=len(table))


def read_chunk(path: Location, chunk: int) -> Candidates:
    """Read the detections of one chunk from a merged strip."""
    with pq.ParquetFile(parquet(path), page_checksum_verification=True) as file:
        groups = json.loads(file.schema_arrow.metadata[b"groups"])
        if chunk not in groups:
            return Candidates.none()
        return from_columns(file.read_row_group(groups.index(chunk)))


def read_open(path: Location) -> Candidates:
    """Read the candidates of a merged strip that are not merged yet."""
    return read_chunk(path, _OPEN)


def read_summary(path: Location) -> PartsSummary:
    """Read what the parts of a merged strip say besides their candidates."""
    with pq.ParquetFile(parquet(path)) as file:
        summary = json.loads(file.schema_arrow.metadata[b"summary"])
    return PartsSummary(**(summary | {"ran_on": tuple(summary["ran_on"])}))
