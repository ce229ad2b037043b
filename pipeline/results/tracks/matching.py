"""Match known objects with the sightings of a date, one to one.

Pairs of one class within `within_m` are candidates. The assignment maximizes the sum of
`within_m^2 - distance^2` over its pairs: among assignments with the same number of pairs, the
sum of squared distances is smallest, as for normally distributed errors of position.

Candidates form groups that share no object and no sighting, and each group is solved alone: by
the Jonker-Volgenant algorithm (Crouse 2016, "On implementing 2D rectangular assignment
algorithms", `scipy.optimize.linear_sum_assignment`). A group of more than `LARGEST_GROUP` objects
and sightings is solved in steps: first the pairs within half the distance, then the rest. This
happens where objects stand closer to each other than the error of position. Its result is one to
one, but may not be the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_GROUP = 600
Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]

_SEMI_MAJOR_M, _FLATTENING = 6_378_137.0, 1 / 298.257223563  # WGS 84
_FINEST_STEPS = 6


@dataclass(frozen=True, slots=True)
class Places:
    """Positions (N, 3) in metres from the centre of the Earth, and class numbers (N,)."""

    xyz: Floats
    kind: Numbers

    @classmethod
    def of(cls, lon: Floats, lat: Floats, kind: Numbers) -> Places:
        """Convert positions in degrees. The length of a chord is the distance on the ground."""
        squared = _FLATTENING * (2 - _FLATTENING)
        x, y = np.radians(lon), np.radians(lat)
        normal = _SEMI_MAJOR_M / np.sqrt(1 - squared * np.sin(y) ** 2)
        across = normal * np.cos(y)
        up = normal * (1 - squared) * np.sin(y)
        return cls(np.stack([across * np.cos(x), across * np.sin(x), up], axis=1), kind)

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of an object and a sighting, by number, and their distance in metres."""

    known: Numbers
    seen: Numbers
    distance_m: Floats

    def take(self, which: NDArray[np.bool_] | Numbers) -> Pairs:
        return Pairs(self.known[which], self.seen[which], self.distance_m[which])


def match(known: Places, seen: Places, within_m: float) -> Pairs:
    """Return the pairs that are one object, ordered by sighting: no object and no sighting twice.

    The result depends on the order of objects and sightings only where pairs are equally good.
    """
    candidates = _candidates(known, seen, within_m)
    pairs = _assign(candidates, within_m, _FINEST_STEPS)
    return pairs.take(np.argsort(pairs.seen))


def _candidates(known: Places, seen: Places, within_m: float) -> Pairs:
    """Return all pairs of one class within a distance."""
    from scipy.spatial import cKDTree  # slow to import

    found = [_join([])]
    for kind in np.unique(seen.kind):
        rows, columns = np.flatnonzero(known.kind == kind), np.flatnonzero(seen.kind == kind)
        if not len(rows):
            continue
        near = cKDTree(known.xyz[rows]).sparse_distance_matrix(
            cKDTree(seen.xyz[columns]), within_m, output_type="ndarray"
        )
        found.append(Pairs(rows[near["i"]], columns[near["j"]], near["v"]))
    return _join(found)


def _join(many: list[Pairs]) -> Pairs:
    none = np.zeros(0, np.int64)
    return Pairs(
        np.concatenate([none, *(pairs.known for pairs in many)]),
        np.concatenate([none, *(pairs.seen for pairs in many)]),
        np.concatenate([np.zeros(0), *(pairs.distance_m for pairs in many)]),
    )


def _assign(pairs: Pairs, within_m: float, steps: int) -> Pairs:
    """Return the best one-to-one pairs among candidates."""
    if not len(pairs.known):
        return pairs
    group, rows, columns = _groups(pairs)
    order = np.lexsort((pairs.seen, pairs.known, pairs.distance_m, group))  # see `_greedy`
    pairs, group = pairs.take(order), group[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    star = (rows <= 1) | (columns <= 1)  # one object or one sighting: the nearest pair is best
    result = [pairs.take(starts[star])]
    for number in np.flatnonzero(~star).tolist():
        end = starts[number + 1] if number + 1 < len(starts) else len(group)
        members = pairs.take(np.arange(starts[number], end))
        if rows[number] + columns[number] <= LARGEST_GROUP:
            result.append(_solve(members, within_m))
        else:
            result.append(_in_steps(members, within_m, steps) if steps else _greedy(members))
    return _join(result)


def _groups(pairs: Pairs) -> tuple[Numbers, Numbers, Numbers]:
    """Return the group of each pair, and for each group its numbers of objects and sightings."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    known, row = np.unique(pairs.known, return_inverse=True)
    seen, column = np.unique(pairs.seen, return_inverse=True)
    n = len(known) + len(seen)
    edges = coo_array((np.ones(len(row), np.int8), (row, column + len(known))), shape=(n, n))
    count, label = connected_components(edges, directed=False)
    objects, sightings = np.split(label, [len(known)])
    return label[row], *(np.bincount(part, minlength=count) for part in (objects, sightings))


def _solve(pairs: Pairs, within_m: float) -> Pairs:
    from scipy.optimize import linear_sum_assignment

    known, row = np.unique(pairs.known, return_inverse=True)
    seen, column = np.unique(pairs.seen, return_inverse=True)
    gain = np.zeros((len(known), len(seen)))
    number = np.full(gain.shape, -1)
    gain[row, column] = within_m**2 - pairs.distance_m**2
    number[row, column] = np.arange(len(row))
    chosen = number[linear_sum_assignment(gain, maximize=True)]
    return pairs.take(chosen[chosen >= 0])


def _in_steps(pairs: Pairs, within_m: float, steps: int) -> Pairs:
    """Match the pairs within half the distance first, then what is left."""
    near = _assign(pairs.take(pairs.distance_m <= within_m / 2), within_m / 2, steps - 1)
    left = ~np.isin(pairs.known, near.known) & ~np.isin(pairs.seen, near.seen)
    return _join([near, _assign(pairs.take(left), within_m, steps - 1)])


def _greedy(pairs: Pairs) -> Pairs:
    """Take the nearest pair again and again; `pairs` are ordered by distance."""
    known: set[int] = set()
    seen: set[int] = set()
    chosen = []
    for number, (row, column) in enumerate(zip(pairs.known, pairs.seen, strict=True)):
        if row not in known and column not in seen:
            known.add(row)
            seen.add(column)
            chosen.append(number)
    return pairs.take(np.array(chosen, np.int64))
