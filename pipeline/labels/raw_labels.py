"""Collect the labels of a file one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.labels.objects import Count, LabelRows

NO_BOX = (float("nan"),) * 4
"""The box of a label without usable coordinates."""
EXAMPLES = 5
CLASS_COLUMNS = ("class_name", "class", "label", "category")


@dataclass(slots=True)
class LabelRowBuilder:
    """Collects the rows of `LabelRows`, each in the order of its fields."""

    rows: list[tuple[int, int, tuple[float, ...], str, str, str]] = field(default_factory=list)

    def add(
        self, number: int, scene: int, xyxy: tuple[float, ...], *, name: str, where: str, fault: str
    ) -> None:
        """Add a label, or its part in one raster."""
        self.rows.append((number, scene, xyxy, name, where, fault))

    def build(self) -> LabelRows:
        """Return the added rows as arrays."""
        columns: Any = zip(*self.rows, strict=True) if self.rows else ((),) * 6
        number, scene, xyxy, name, where, fault = columns
        return LabelRows(
            np.array(number, np.int64),
            np.array(scene, np.int64),
            np.array(xyxy, np.float64).reshape(-1, 4),
            np.array(name, np.str_),
            np.array(where, np.str_),
            np.array(fault, np.str_),
        )


def measure(box: list[float]) -> str:
    """Describe the size and position of a box, in pixels of its raster."""
    left, top, right, bottom = box
    return f"{right - left:.4g} x {bottom - top:.4g} px at {left:.6g}, {top:.6g}"


@dataclass(slots=True)
class Tally:
    """Counts by reason, with the first few examples of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str = "") -> None:
        """Count one case, with a description as example."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if example and len(examples) < EXAMPLES:
            examples.append(example)

    def result(self) -> tuple[Count, ...]:
        """Return the counts, most frequent first."""
        return tuple(
            Count(reason, number, tuple(self.examples[reason]))
            for reason, number in self.counts.most_common()
        )


def choose_class_column(
    columns: list[str], classes: tuple[str, ...], *, chosen: str | None, origin: str
) -> str | None:
    """Return the column with the class, or None when there is no such column and one class.

    `chosen` is the column that the user named.

    Raises:
        LabelError: when `chosen` is missing, or there are several classes and no column.
    """
    existing = ", ".join(columns) or "none"
    if chosen is not None:
        if chosen not in columns:
            raise LabelError(f"{origin}: expected the column {chosen!r}, found {existing}")
        return chosen
    column = next((name for name in CLASS_COLUMNS if name in columns), None)
    if column is None and len(classes) > 1:
        raise LabelError(
            f"{origin}: the card has {len(classes)} classes; expected a column with the class "
            f"({', '.join(CLASS_COLUMNS)}, or --class-column), found {existing}"
        )
    return column
