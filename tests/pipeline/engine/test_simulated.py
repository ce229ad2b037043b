"""The loop on virtual time: S1, S2 and S6 of docs/performance.md, with few shards."""

from __future__ import annotations

import pytest

from benchmarks.engine import fairness
from benchmarks.simulated import RayCost, Speeds, simulate

R50_S = 1 / 87.5
"""Seconds of a shard of 16 windows at 1,400 chips/s."""


@pytest.mark.parametrize("detectors", [1, 8, 64])
def test_detectors_compute_nearly_all_the_time(detectors: int) -> None:
    """Reads take 17 times as long as detection, and Ray takes the driver 0.36 ms a call."""
    scenes = {f"s{number}": 100 for number in range(4 * detectors)}
    found = simulate(Speeds(detectors, 0.2, R50_S), scenes)
    assert found.share >= 0.95
    assert set(found.published_s) == set(scenes)


def test_what_is_in_progress_does_not_make_a_shard_dearer() -> None:
    """Process time of the loop, with 30 and with 3,000 reads in progress."""
    few, many = (simulate(Speeds(n, 0.2, R50_S), {"s": 300 * n}).python_s for n in (1, 64))
    assert many < 2 * few


def test_small_scenes_do_not_wait_for_a_giant_one() -> None:
    ratio = fairness(RayCost(), giant_shards=1000, small=40)[0]
    assert ratio.met, ratio


def test_lost_workers_cost_no_shard() -> None:
    speeds = Speeds(8, 0.02, R50_S, start_s=0.1, lost=0.002)
    scenes = {f"s{number}": 50 for number in range(20)}
    assert set(simulate(speeds, scenes).published_s) == set(scenes)
