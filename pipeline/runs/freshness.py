"""Freshness: the time from the acquisition of a scene to its publication."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from statistics import median

UP_TO_HOURS = (1, 3, 6, 12, 24, 48, 96, 168, 720)
"""Upper ends of the bins of the histogram; the last bin has no upper end."""


def age_hours(acquired_at: datetime | None, now: datetime | None = None) -> float | None:
    """Return the hours since a scene was acquired; None without a date."""
    if acquired_at is None:
        return None
    if acquired_at.tzinfo is None:
        acquired_at = acquired_at.replace(tzinfo=UTC)
    return ((now or datetime.now(UTC)) - acquired_at).total_seconds() / 3600


@dataclass(frozen=True, slots=True)
class Freshness:
    """The scenes that a run published, by the hours since their acquisition.

    `counts` has one number for each of `up_to_hours`, and one for the scenes that are older.
    """

    scenes: int
    median_hours: float
    mean_hours: float
    up_to_hours: tuple[int, ...]
    counts: tuple[int, ...]

    def cumulative(self) -> list[tuple[str, int]]:
        """Return each bin's upper end as text, and how many scenes are up to it."""
        ends = [*map(str, self.up_to_hours), "+Inf"]
        return list(zip(ends, accumulate(self.counts), strict=True))


def freshness_of(ages: Iterable[float | None]) -> Freshness | None:
    """Return the freshness of scenes, given the age of each in hours; None if none is known."""
    hours = [age for age in ages if age is not None]
    if not hours:
        return None
    below = [sum(age <= end for age in hours) for end in UP_TO_HOURS]
    ends = [0, *below, len(hours)]
    counts = tuple(after - before for before, after in pairwise(ends))
    return Freshness(
        len(hours),
        round(median(hours), 3),
        round(sum(hours) / len(hours), 3),
        UP_TO_HOURS,
        counts,
    )
