"""The rows of one scene's table, all in memory or read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scenesweep.pipeline.publish.table import SCHEMA, bounds_of

SCORE_BINS = 20
"""Bins of equal width between 0 and 1 that scores are counted in."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a scene's table, in their order.

    `counts` has the number of rows of each class, `score_counts` of each of `SCORE_BINS` bins of
    scores. `bounds` is west, south, east and north of all rows, None without rows. `tables` yields
    the rows in tables of any length, each time anew.
    """

    counts: Mapping[str, int]
    score_counts: tuple[int, ...]
    bounds: list[float] | None
    tables: Callable[[], Iterable[pa.Table]]

    @classmethod
    def of(cls, table: pa.Table, classes: Sequence[str]) -> Rows:
        """Return the rows of a table in memory."""
        scores = count_scores(table["score"].to_numpy())
        return cls(counts_of(table, classes), scores, bounds_of(table), lambda: [table])

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def table(self) -> pa.Table:
        """Return all rows in one table, each column one array: GDAL's files show the lengths."""
        return pa.concat_tables([SCHEMA.empty_table(), *self.tables()]).combine_chunks()

    def in_groups(self, length: int) -> Iterator[pa.Table]:
        """Yield the rows in tables of one length, except the last; each column is one array.

        So a file has the same bytes for any lengths of `tables`. Without rows, one table is empty.
        """
        waiting = SCHEMA.empty_table()
        for table in self.tables():
            waiting = pa.concat_tables([waiting, table])
            while len(waiting) > length:
                yield waiting.slice(0, length).combine_chunks()
                waiting = waiting.slice(length)
        yield waiting.combine_chunks()


def counts_of(table: pa.Table, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of rows of each class."""
    counted = pc.value_counts(table["class_name"]).to_pylist()
    found = {each["values"]: each["counts"] for each in counted}
    return {name: found.get(name, 0) for name in classes}


def count_scores(scores: NDArray[np.float32]) -> tuple[int, ...]:
    """Count scores between 0 and 1 in `SCORE_BINS` bins."""
    counts, _ = np.histogram(scores, bins=SCORE_BINS, range=(0.0, 1.0))
    return tuple(counts.tolist())


def bounds_around(bounds: Iterable[list[float] | None]) -> list[float] | None:
    """Return west, south, east and north around several bounds; None if all are None."""
    known = [one for one in bounds if one is not None]
    if not known:
        return None
    west, south, east, north = zip(*known, strict=True)
    return [min(west), min(south), max(east), max(north)]
