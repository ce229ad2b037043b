"""The assignment is the best one, by a slow search over all of them."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenesweep.pipeline.results.tracks import matching
from scenesweep.pipeline.results.tracks.matching import Places, match

WITHIN_M = 10.0
DEG = 1 / 111_320


def places(metres: np.ndarray, kind: list[int], lat: float = 0.0) -> Places:
    lon = 20 + metres[:, 0] * DEG / np.cos(np.radians(lat))
    return Places.of(lon, lat + metres[:, 1] * DEG, np.array(kind, np.int64))


def gain(known: Places, seen: Places, pairs: list[tuple[int, int]]) -> float:
    total = 0.0
    for i, j in pairs:
        distance = float(np.linalg.norm(known.xyz[i] - seen.xyz[j]))
        alike = known.kind[i] == seen.kind[j]
        total += WITHIN_M**2 - distance**2 if alike and distance <= WITHIN_M else 0.0
    return total


coordinates = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 1)), min_size=1, max_size=5
)


@settings(max_examples=150, deadline=None)
@given(a=coordinates, b=coordinates)
def test_no_other_assignment_is_better(
    a: list[tuple[int, int, int]], b: list[tuple[int, int, int]]
) -> None:
    known, seen = (
        places(np.array([point[:2] for point in some], float), [point[2] for point in some])
        for some in (a, b)
    )
    pairs = match(known, seen, WITHIN_M)
    chosen = list(zip(pairs.known.tolist(), pairs.seen.tolist(), strict=True))
    assert len({i for i, _ in chosen}) == len({j for _, j in chosen}) == len(chosen)
    assert (pairs.distance_m <= WITHIN_M).all()
    assert (known.kind[pairs.known] == seen.kind[pairs.seen]).all()
    size = max(len(a), len(b))
    best = max(
        gain(known, seen, [(i, j) for i, j in enumerate(order) if i < len(a) and j < len(b)])
        for order in permutations(range(size))
    )
    assert gain(known, seen, chosen) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("lat", [0.0, 60.0, -89.9])
def test_distances_are_metres_everywhere(lat: float) -> None:
    known = places(np.zeros((1, 2)), [0], lat)
    for metres, near in ((9.9, 1), (10.1, 0)):
        seen = places(np.array([[metres, 0.0]]), [0], lat)
        assert len(match(known, seen, WITHIN_M).known) == near


def test_the_antimeridian_is_no_border() -> None:
    kind = np.zeros(1, np.int64)
    west, east = (Places.of(np.array([x]), np.zeros(1), kind) for x in (179.99999, -179.99999))
    assert match(west, east, WITHIN_M).distance_m == pytest.approx([2.23], abs=0.01)


@pytest.mark.parametrize("steps", [0, 6])
def test_a_crowd_is_matched_one_to_one(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is larger than the largest that is solved at once."""
    monkeypatch.setattr(matching, "LARGEST_GROUP", 40)
    monkeypatch.setattr(matching, "_FINEST_STEPS", steps)
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(15) * 6.0, np.arange(15) * 6.0)
    metres = np.stack([x.ravel(), y.ravel()], axis=1)
    order = rng.permutation(len(metres))
    moved = (metres + rng.normal(0, 0.5, metres.shape))[order]
    kind = [0] * len(metres)
    pairs = match(places(metres, kind), places(moved, kind), WITHIN_M)
    assert pairs.known.tolist() == order.tolist()
    assert pairs.seen.tolist() == list(range(len(metres)))


def test_nothing_matches_nothing() -> None:
    none, one = places(np.zeros((0, 2)), []), places(np.zeros((1, 2)), [0])
    for known, seen in ((none, one), (one, none), (none, none)):
        assert len(match(known, seen, WITHIN_M).known) == 0
