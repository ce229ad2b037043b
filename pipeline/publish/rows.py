"""The rows of one scene's table, all in memory or read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from scenesweep.pipeline.publish.table import SCHEMA, bounds_of


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a scene's table, in their order.

    `counts` has the number of rows of each class, `bounds` west, south, east and north of all
    rows, None without rows. `tables` yields the rows in tables of any length, each time anew.
    """

    counts: Mapping[str, int]
    bounds: list[float] | None
    tables: Callable[[], Iterable[pa.Table]]

    @classmethod
    def of(cls, table: pa.Table, classes: Sequence[str]) -> Rows:
        """Return the rows of a table in memory."""
        return cls(counts_of(table, classes), bounds_of(table), lambda: [table])

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


def bounds_around(bounds: Iterable[list[float] | None]) -> list[float] | None:
    """Return west, south, east and north around several bounds; None if all are None."""
    known = [one for one in bounds if one is not None]
    if not known:
        return None
    west, south, east, north = zip(*known, strict=True)
    return [min(west), min(south), max(east), max(north)]
