"""The objects that are known after some dates, and what one more date changes.

A sighting is a detection that links to an object. Two thresholds keep scores near the threshold
from looking like changes: any sighting continues an object, however low its score, but an object
is `confirmed` only by a sighting with a clearly higher score. A low sighting that no object
explains starts an object that is not confirmed. If a high sighting follows, the object was there
before, and is not new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scenesweep.pipeline.results.tracks.matching import Floats, Numbers, Pairs, Places, match
from scenesweep.pipeline.results.zones import Zones

T = TypeVar("T", np.int64, np.bool_)

STATES = ("new", "again", "gone", "unobserved")
NEW, AGAIN, GONE, UNOBSERVED = range(4)
_MEMORY = 8
"""A position is the mean of so many sightings at first; later ones count as one of so many."""


@dataclass(frozen=True, slots=True)
class Linking:
    """How detections are linked.

    `within_m` is the largest distance between an object and its next sighting. An object is gone
    after `gone_after` observations in a row without a sighting; a later sighting at its place is
    a new object. Detections below `min_score` are ignored. A sighting confirms an object from
    `confirm_above` over the score threshold of its scene.
    """

    within_m: float = 10.0
    gone_after: int = 4
    min_score: float = 0.0
    confirm_above: float = 0.1

    def to_json(self) -> dict[str, float]:
        return {
            "within_m": self.within_m,
            "gone_after": self.gone_after,
            "min_score": self.min_score,
            "confirm_above": self.confirm_above,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, float]) -> Linking:
        return cls(
            float(record["within_m"]),
            int(record["gone_after"]),
            float(record["min_score"]),
            float(record["confirm_above"]),
        )


@dataclass(frozen=True, slots=True)
class Sightings:
    """The detections of one date, (N,) each. `kind` is the number of the class.

    `confirms` says whether the score is high enough to confirm an object.
    """

    detection_id: pa.StringArray
    kind: Numbers
    lon: Floats
    lat: Floats
    confirms: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, slots=True)
class Objects:
    """All objects, (N,) each, in the order in which they were first seen.

    `object_id` is the id of the first detection. `lon` and `lat` are the mean position in
    degrees. Dates are days since 1970. `observed_before` counts the dates before the first
    sighting on which the place was observed, `times_observed` the dates from then on, and
    `missed` the last of these without a sighting. `state` is a number in `STATES`.
    """

    object_id: pa.StringArray
    kind: Numbers
    lon: Floats
    lat: Floats
    first_seen: Numbers
    last_seen: Numbers
    times_seen: Numbers
    times_observed: Numbers
    observed_before: Numbers
    missed: Numbers
    state: Numbers
    confirmed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def none(cls) -> Objects:
        n, x, no = np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_)
        return cls(pa.array([], pa.string()), n, x, x, n, n, n, n, n, n, n, no)


@dataclass(frozen=True, slots=True)
class Step:
    """The objects after a date, and for each sighting its object and the distance to it.

    `distance_m` is NaN where the sighting is the object's first.
    """

    objects: Objects
    object_of: Numbers
    distance_m: Floats


def step(objects: Objects, sightings: Sightings, ground: Zones, day: int, linking: Linking) -> Step:
    """Link the sightings of the next date, whose observed ground is given.

    New objects have `observed_before` 0: see `with_history`.
    """
    active = np.flatnonzero(objects.state != GONE)
    known = Places.of(objects.lon[active], objects.lat[active], objects.kind[active])
    seen = Places.of(sightings.lon, sightings.lat, sightings.kind)
    pairs = match(known, seen, linking.within_m)
    pairs = Pairs(active[pairs.known], pairs.seen, pairs.distance_m)
    object_of = np.full(len(sightings), -1)
    object_of[pairs.seen] = pairs.known
    distance = np.full(len(sightings), np.nan)
    distance[pairs.seen] = pairs.distance_m
    first = np.flatnonzero(object_of < 0)
    object_of[first] = len(objects) + np.arange(len(first))
    objects = _observe(objects, active, ground, pairs, linking)
    objects = _seen_again(objects, pairs, sightings, day)
    return Step(_join(objects, _started(sightings, first, day)), object_of, distance)


def with_history(objects: Objects, day: int, earlier: Zones, date_of: Numbers) -> Objects:
    """Count for the objects that are new on `day` the earlier dates that observed their places.

    `earlier` are the grounds of all earlier dates, `date_of` is the number of the date of each.
    """
    new = np.flatnonzero(objects.first_seen == day)
    if not len(new) or not len(earlier):
        return objects
    point, part = earlier.locate(objects.lon[new], objects.lat[new])
    both = np.unique(np.stack([point, date_of[part]]), axis=1)
    before = objects.observed_before.copy()
    before[new] = np.bincount(both[0], minlength=len(new))
    return replace(objects, observed_before=before)


def _observe(
    objects: Objects, active: Numbers, ground: Zones, pairs: Pairs, linking: Linking
) -> Objects:
    """Count the date for the objects whose place was observed, and find those that are gone."""
    observed = np.zeros(len(objects), np.bool_)
    observed[active] = ground.contain(objects.lon[active], objects.lat[active])
    observed[pairs.known] = True
    missed = objects.missed + observed
    state = objects.state.copy()
    state[active] = np.where(observed[active], AGAIN, UNOBSERVED)
    state[observed & (missed >= linking.gone_after)] = GONE
    return replace(
        objects, times_observed=objects.times_observed + observed, missed=missed, state=state
    )


def _seen_again(objects: Objects, pairs: Pairs, sightings: Sightings, day: int) -> Objects:
    known, seen = pairs.known, pairs.seen
    share = 1 / np.minimum(objects.times_seen[known] + 1, _MEMORY)
    lon, lat = objects.lon.copy(), objects.lat.copy()
    east = sightings.lon[seen] - lon[known]
    lon[known] += share * (east - 360 * np.round(east / 360))
    lon[known] -= 360 * np.round(lon[known] / 360)
    lat[known] += share * (sightings.lat[seen] - lat[known])
    return replace(
        objects,
        lon=lon,
        lat=lat,
        last_seen=_put(objects.last_seen, known, day),
        times_seen=_put(objects.times_seen, known, objects.times_seen[known] + 1),
        missed=_put(objects.missed, known, 0),
        state=_put(objects.state, known, AGAIN),
        confirmed=_put(
            objects.confirmed, known, objects.confirmed[known] | sightings.confirms[seen]
        ),
    )


def _started(sightings: Sightings, first: Numbers, day: int) -> Objects:
    n = len(first)
    days, one, zero = np.full(n, day), np.ones(n, np.int64), np.zeros(n, np.int64)
    return Objects(
        object_id=sightings.detection_id.take(pa.array(first)),
        kind=sightings.kind[first],
        lon=sightings.lon[first],
        lat=sightings.lat[first],
        first_seen=days,
        last_seen=days,
        times_seen=one,
        times_observed=one,
        observed_before=zero,
        missed=zero,
        state=np.full(n, NEW),
        confirmed=sightings.confirms[first],
    )


def _join(known: Objects, more: Objects) -> Objects:
    columns = {
        name: np.concatenate([getattr(known, name), getattr(more, name)])
        for name in Objects.__slots__
        if name != "object_id"
    }
    return Objects(pa.concat_arrays([known.object_id, more.object_id]), **columns)


def _put(values: NDArray[T], where: Numbers, new: NDArray[T] | int) -> NDArray[T]:
    changed = values.copy()
    changed[where] = new
    return changed
