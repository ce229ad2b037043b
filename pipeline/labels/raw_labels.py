"""Gather the labels of a file one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.labels.objects import Count, Marks

NOWHERE = (float("nan"),) * 4
"""The box of a label whose place cannot be told."""
EXAMPLES = 5
CLASS_COLUMNS = ("class_name", "class", "label", "category")


@dataclass(slots=True)
class Gathered:
    """Rows of `Marks` under way; `add` takes them in the order of the fields."""

    rows: list[tuple[int, int, tuple[float, ...], str, str, str]] = field(default_factory=list)

    def add(
        self, number: int, scene: int, xyxy: tuple[float, ...], *, name: str, where: str, fault: str
    ) -> None:
        """Add one label, or its part in one raster."""
        self.rows.append((number, scene, xyxy, name, where, fault))

    def marks(self) -> Marks:
        """Return what was added, as columns."""
        columns: Any = zip(*self.rows, strict=True) if self.rows else ((),) * 6
        number, scene, xyxy, name, where, fault = columns
        return Marks(
            np.array(number, np.int64),
            np.array(scene, np.int64),
            np.array(xyxy, np.float64).reshape(-1, 4),
            np.array(name, np.str_),
            np.array(where, np.str_),
            np.array(fault, np.str_),
        )


def measure(box: list[float]) -> str:
    """Say where a box lies and how large it is, in pixels of its raster."""
    left, top, right, bottom = box
    return f"{right - left:.4g} x {bottom - top:.4g} px at {left:.6g}, {top:.6g}"


@dataclass(slots=True)
class Tally:
    """Counts by reason, with the first few examples of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str = "") -> None:
        """Count one case, for example the one given."""
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
    columns: list[str], classes: tuple[str, ...], *, wanted: str | None, origin: str
) -> str | None:
    """Return the column that holds the class, or None where there is but one class.

    Raises:
        LabelError: when the column asked for is missing, or one is needed and there is none.
    """
    there = ", ".join(columns) or "none"
    if wanted is not None:
        if wanted not in columns:
            raise LabelError(f"{origin}: expected the column {wanted!r}, found {there}")
        return wanted
    found = next((name for name in CLASS_COLUMNS if name in columns), None)
    if found is None and len(classes) > 1:
        raise LabelError(
            f"{origin}: the card has {len(classes)} classes, so a column must tell them "
            f"({', '.join(CLASS_COLUMNS)}, or --class-column); found {there}"
        )
    return found
