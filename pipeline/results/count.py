"""Count detections in polygons or H3 cells, by date and class, reading each row group once.

A detection counts where its centre lies. A detection in two polygons that overlap counts in both.
Each object of a date counts once, even if several overlapping scenes show it
(`pipeline.results.unique`). An object of several dates counts on each of them, so there is one
row for each zone and date, unless dates are added up on request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scenesweep.pipeline.geometry.areas import area_km2
from scenesweep.pipeline.results.cells import Cells
from scenesweep.pipeline.results.expected import Sums, interval, moments
from scenesweep.pipeline.results.observed import Observed, observed_ground, observed_km2
from scenesweep.pipeline.results.query import Query, table_files
from scenesweep.pipeline.results.unique import DateScenes, by_date, open_date, unique_rows
from scenesweep.pipeline.results.zones import Numbers, Polygons, Zones
from scenesweep.pipeline.storage.location import Location

SCHEMA = pa.schema(
    [
        ("date", pa.string()),
        ("class_name", pa.string()),
        ("detections", pa.int64()),
        ("expected", pa.float64()),
        ("expected_low", pa.float64()),
        ("expected_high", pa.float64()),
        ("area_km2", pa.float64()),
        ("observed_km2", pa.float64()),
        ("per_km2", pa.float64()),
    ]
)

COLUMNS = {
    "date": "Date of acquisition, or `FIRST/LAST` if dates were added up.",
    "class_name": "Class, with `--by-class`; otherwise null: all classes together.",
    "detections": "Number of detections with their centre in the polygon. These are detections "
    "above the score thresholds, not objects: wrong ones are in it, missed objects are not.",
    "expected": "Expected number of correct detections: the sum of `probability`. Null if a "
    "detection in the polygon has none, or all have none.",
    "expected_low": "Lower end of the 95 % interval of the number of correct detections.",
    "expected_high": "Upper end, included. The interval does not contain missed objects.",
    "area_km2": "Area of the polygon on the WGS 84 ellipsoid.",
    "observed_km2": "Part of it that was observed, from OUT/coverage. Null if a scene of the "
    "date has no such file.",
    "per_km2": "`detections` divided by `observed_km2`. Null if that is null or zero.",
}
"""What each column of `SCHEMA` holds; docs/reference/counts.md shows it."""

_COLUMNS_READ = ("class_name", "score", "center_lon", "center_lat", "probability")
_SUMS = 4
Floats = NDArray[np.float64]
N = TypeVar("N", np.int64, np.float64)


class Located(Protocol):
    """Zones that say which points lie in them."""

    def __len__(self) -> int: ...

    def locate(self, lon: Floats, lat: Floats) -> tuple[Numbers, Numbers]: ...


@dataclass(slots=True)
class Tally:
    """The detections of one date by class and zone: numbers, and sums for the expected number."""

    scenes: int = 0
    pixel_scenes: int = 0
    detections: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    sums: dict[str, Floats] = field(default_factory=dict)

    @property
    def without_probability(self) -> int:
        """The number of detections in zones that have no probability."""
        found = sum(int(numbers.sum()) for numbers in self.detections.values())
        return found - sum(int(sums[-1].sum()) for sums in self.sums.values())

    def add(self, name: str, zone: Numbers, p: Floats, zones: int) -> None:
        """Add detections of one class, with NaN as unknown probability."""
        found = np.bincount(zone, minlength=zones)
        self.detections[name] = _add(self.detections.get(name), found)
        known = ~np.isnan(p)
        terms = [np.bincount(zone[known], row, zones) for row in moments(p[known])]
        self.sums[name] = _add(self.sums.get(name), np.stack(terms).astype(np.float64))

    def merge(self, other: Tally) -> None:
        """Add the detections of another date."""
        self.scenes += other.scenes
        self.pixel_scenes += other.pixel_scenes
        for name, found in other.detections.items():
            self.detections[name] = _add(self.detections.get(name), found)
            self.sums[name] = _add(self.sums.get(name), other.sums[name])


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of all dates. `classes` are those of the models and those that were found."""

    tallies: dict[str, Tally]
    observed: dict[str, Observed]
    classes: tuple[str, ...]


def count(out: Location, query: Query, zones: Zones | Cells) -> Counts:
    """Count the detections that a query selects, in one pass over the tables of its dates.

    Of the query, dates, scenes, classes and the lowest score are used. A row group, the zones and
    one number for each date, class and zone are in memory.

    Raises:
        UnreadableOutput: when OUT has no tables, or one of them cannot be read.
    """
    tallies, observed, classes = {}, {}, set(query.classes)
    for date, paths in by_date(table_files(out, query)).items():
        chosen = [path for path in paths if not query.scenes or path.stem in query.scenes]
        night = open_date(date, chosen)
        if not query.classes:
            classes |= {name for scene in night.scenes for name in scene.classes}
        observed[date] = observed_ground(night, out, estimate=False)
        if isinstance(zones, Cells):
            zones.add_observed(observed[date].parts)
        tallies[date] = tally(night, out, query, zones)
    classes |= {name for one in tallies.values() for name in one.detections}
    return Counts(tallies, observed, tuple(sorted(classes)))


def tally(night: DateScenes, out: Location, query: Query, zones: Located) -> Tally:
    """Count the detections of one date."""
    result = Tally(len(night.scenes), night.pixel_scenes)
    for rows in unique_rows(night, out, _COLUMNS_READ):
        _add_rows(result, _selected(rows, query), zones)
    return result


def add_dates(counts: Counts) -> Counts:
    """Add up all dates. Ground that was observed on several dates counts on each of them."""
    days = sorted(counts.tallies)
    name = days[0] if len(days) == 1 else f"{days[0]}/{days[-1]}"
    total = Tally()
    for day in days:
        total.merge(counts.tallies[day])
    parts = [ground.parts for ground in counts.observed.values()]
    without = sum(ground.without for ground in counts.observed.values())
    return Counts({name: total}, {name: Observed(np.concatenate(parts), without)}, counts.classes)


def rows_of(
    counts: Counts, polygons: Polygons, *, by_class: bool
) -> Iterable[tuple[Numbers, pa.Table]]:
    """Yield for each date, and each class if `by_class`, a row of `SCHEMA` for each zone.

    Each table comes with the numbers of the zones of its rows.
    """
    zones, areas = Zones.of(polygons), area_km2(polygons)
    numbers = np.arange(len(polygons))
    for date, tally in counts.tallies.items():
        ground = counts.observed[date]
        known = tally.scenes > 0 and ground.without == 0
        seen = observed_km2(zones, ground.parts) if known else np.full(len(zones), np.nan)
        for name in counts.classes if by_class else (None,):
            members = tuple(tally.detections) if name is None else (name,)
            yield numbers, _table(date, name, _total(tally, members, len(zones)), areas, seen)


def _table(
    date: str,
    class_name: str | None,
    total: tuple[NDArray[np.int64], Floats],
    areas: Floats,
    observed: Floats,
) -> pa.Table:
    detections, sums = total
    expected = Sums(*sums)
    low, high = interval(expected)
    unknown = (expected.count != detections) | (not expected.count.any())
    density = np.divide(detections, observed, out=np.full(len(areas), np.nan), where=observed > 0)
    n = len(areas)
    columns = [
        pa.array([date] * n, pa.string()),
        pa.array([class_name] * n, pa.string()),
        pa.array(detections),
        *(pa.array(column, mask=unknown) for column in (expected.mean, low, high)),
        pa.array(areas),
        pa.array(observed, from_pandas=True),
        pa.array(density, from_pandas=True),
    ]
    return pa.table(columns, schema=SCHEMA)


def _total(tally: Tally, names: Iterable[str], zones: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the sums over some classes, for all zones."""
    detections, sums = np.zeros(zones, np.int64), np.zeros((_SUMS, zones))
    for name in names:
        if name in tally.detections:
            detections = _add(detections, tally.detections[name])
            sums = _add(sums, tally.sums[name])
    return detections, sums


def _selected(rows: pa.Table, query: Query) -> pa.Table:
    wanted = pc.field("score") >= pa.scalar(query.min_score, pa.float32())
    if query.classes:
        wanted &= pc.field("class_name").isin(list(query.classes))
    return rows.filter(wanted) if query.classes or query.min_score else rows


def _add_rows(result: Tally, rows: pa.Table, zones: Located) -> None:
    lon, lat = (rows[name].to_numpy() for name in ("center_lon", "center_lat"))
    row, zone = zones.locate(lon, lat)
    names = rows["class_name"].combine_chunks().dictionary_encode()
    code = names.indices.to_numpy()[row]
    p = rows["probability"].cast(pa.float64()).to_numpy()[row]
    for number, name in enumerate(names.dictionary.to_pylist()):
        here = code == number
        result.add(name, zone[here], p[here], len(zones))


def _add(before: NDArray[N] | None, more: NDArray[N]) -> NDArray[N]:
    """Add arrays whose last axis counts zones; the number of zones may have grown."""
    if before is None:
        return more
    length = max(before.shape[-1], more.shape[-1])
    total = np.zeros((*more.shape[:-1], length), more.dtype)
    total[..., : before.shape[-1]] += before
    total[..., : more.shape[-1]] += more
    return total
