"""S1, S2, S6: the engine's loop with simulated workers, on virtual time.

Everything here is simulated, except two figures: the process time of the loop itself, and with
`--measure-ray` what Ray takes of the driver for a call on this machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.figures import Figure, at_least, at_most, tell
from benchmarks.simulated import RayCost, Speeds, simulate

DETECTORS = (1, 8, 64, 256)
RATES = (7.0, 87.5, 700.0)
"""Shards of 16 windows a second of one detector. 87.5 are 1,400 chips/s."""
READS_S = (0.02, 0.2, 2.0)
SCENE_SHARDS = 400
GIANT, SMALL = "giant", 4
GIANT_SHARDS = 2_800
"""A scene of 10 gigapixels: 100,000 x 100,000 px in windows of 512 px, 16 to a shard."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much to simulate: `seconds` of each detector's time, but at most so many shards."""

    seconds: float = 6.0
    most_shards: int = 60_000

    def scenes(self, detectors: int, rate: float) -> dict[str, int]:
        """Return scenes with enough shards for so many detectors."""
        wanted = int(detectors * max(60.0, rate * self.seconds))
        full, rest = divmod(min(wanted, max(self.most_shards, 60 * detectors)), SCENE_SHARDS)
        sizes = [SCENE_SHARDS] * full + [rest] * bool(rest)
        return {f"s{number}": size for number, size in enumerate(sizes)}


def grid(ray: RayCost, extent: Extent, *, only_s1: bool) -> Iterator[Figure]:
    """Yield the share of time used and the Python of each shard, for all sizes and rates."""
    for rate in (87.5,) if only_s1 else RATES:
        for read_s in (0.2,) if only_s1 else READS_S:
            for detectors in DETECTORS:
                speeds = Speeds(detectors, read_s, 1 / rate, ray=ray)
                found = simulate(speeds, extent.scenes(detectors, rate), count_python=True)
                what = f"{detectors} detectors, {rate:g} shards/s each, reads of {read_s:g} s"
                share, python_us = found.share, found.python_s * 1e6
                is_s1 = rate == 87.5 and read_s == 0.2 and detectors <= 64
                yield (
                    at_least(f"S1: {what}", share, "of time", 0.95)
                    if is_s1
                    else Figure(what, share, "of time")
                )
                yield at_most("  S2: Python of the loop per shard", python_us, "us", 100)
                yield Figure("  calls per shard", found.calls / found.shards, "")
                yield Figure("  first scene published after", found.first_published_s, "s")


def small_scenes(count: int) -> dict[str, int]:
    return {f"small{number}": SMALL for number in range(count)}


def fairness(ray: RayCost, *, giant_shards: int = GIANT_SHARDS, small: int = 100) -> list[Figure]:
    """Return how much longer small scenes take if a giant scene comes first (S6)."""
    speeds = Speeds(8, 0.2, 1 / 87.5, ray=ray)
    alone = simulate(speeds, small_scenes(small)).published_s
    behind = simulate(speeds, {GIANT: giant_shards} | small_scenes(small)).published_s
    last = max(at for source, at in behind.items() if source != GIANT)
    ratio = last / max(alone.values())
    what = f"S6: {small} small scenes behind one of {giant_shards:,} shards, compared with alone"
    return [
        at_most(what, ratio, "x", 2.0),
        Figure("  alone", max(alone.values()), "s"),
        Figure("  behind the giant", last, "s"),
        Figure("  the giant", behind[GIANT], "s"),
    ]


def giant_among(
    ray: RayCost, *, giant_shards: int = GIANT_SHARDS, small: int = 1000
) -> list[Figure]:
    """Return how one giant among small scenes goes: the giant comes in the middle."""
    scenes = small_scenes(small)
    names = list(scenes)
    half = names[: small // 2], names[small // 2 :]
    order = {**dict.fromkeys(half[0], SMALL), GIANT: giant_shards, **dict.fromkeys(half[1], SMALL)}
    speeds = Speeds(64, 0.2, 1 / 87.5, ray=ray)
    found = simulate(speeds, order)
    ideal = found.shards / 87.5 / 64
    return [
        Figure(
            f"one giant among {small} small scenes: all published",
            max(found.published_s.values()),
            "s",
        ),
        Figure("  detectors' time alone", ideal, "s"),
        Figure("  first scene published after", found.first_published_s, "s"),
    ]


def losses(ray: RayCost, extent: Extent) -> list[Figure]:
    """Return what it costs if one call in a hundred loses its worker."""
    speeds = replace(Speeds(64, 0.2, 1 / 87.5, ray=ray), lost=0.01)
    scenes = extent.scenes(64, 87.5)
    found = simulate(speeds, scenes)
    return [
        Figure("64 detectors, 1 % of calls lose their worker", found.share, "of time"),
        Figure("  failed scenes", found.failed, f"of {len(scenes)}"),
    ]


def measured_ray_cost() -> RayCost:
    """Measure what Ray takes of the driver for a call with small arguments and results."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        return _measured(ray)
    finally:
        ray.shutdown()


def _measured(ray: Any, calls: int = 2000) -> RayCost:
    @ray.remote(num_cpus=0.5, max_retries=0)  # type: ignore[untyped-decorator]
    def task(_: object, __: object) -> float:
        return 0.1

    shared, ready = ray.put(b"x" * 5000), task.options(num_cpus=0.5, max_retries=0)
    ray.get([ready.remote(shared, 1) for _ in range(200)])
    began = time.process_time()
    refs = [ready.remote(shared, (number,)) for number in range(calls)]
    while ray.wait(refs, num_returns=len(refs), timeout=60)[1]:
        pass
    began_wait = time.process_time()
    for _ in range(50):
        ray.wait(refs, num_returns=1, timeout=0, fetch_local=False)
    waited = time.process_time()
    for ref in refs:
        ray.get(ref)
    fetched = time.process_time()
    # Threads of Ray in this process work while the calls run: that time counts as starting.
    return RayCost(
        (began_wait - began) / calls,
        (fetched - waited) / calls,
        (waited - began_wait) / 50 / calls,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="few shards, to try this script")
    parser.add_argument("--only-s1", action="store_true", help="not all rates and read times")
    parser.add_argument("--measure-ray", action="store_true", help="measure Ray's cost of a call")
    parser.add_argument("--ray-call-us", type=float, help="Ray's cost of a call, in us")
    options = parser.parse_args(arguments)
    ray = measured_ray_cost() if options.measure_ray else RayCost()
    if options.ray_call_us is not None:
        ray = replace(ray, start_s=options.ray_call_us * 1e-6, fetch_s=0.0)
    extent = Extent(1.0, 2_000) if options.small else Extent()
    sizes: dict[str, int] = {"giant_shards": 300, "small": 20} if options.small else {}
    source = "measured here" if options.measure_ray else "default"
    figures = [
        Figure(f"Ray: start a call ({source})", ray.start_s * 1e6, "us"),
        Figure(f"Ray: fetch a result ({source})", ray.fetch_s * 1e6, "us"),
        Figure(f"Ray: each reference that waits ({source})", ray.waiting_s * 1e6, "us"),
        *grid(ray, extent, only_s1=options.only_s1 or options.small),
        *fairness(ray, **sizes),
        *giant_among(ray, **sizes),
        *losses(ray, extent),
    ]
    tell("engine", figures)


if __name__ == "__main__":
    main()
