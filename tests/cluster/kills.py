"""kill -9 of a node of a cluster of hosts, at a random moment of a run.

A round follows from its seed alone, except for the speed of the machine. To do some again:
`python -m tests.cluster.kills 7 8` (first seed, last seed and one).
"""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from scenesweep.pipeline.storage.objects import ObjectLocation
from tests.cluster.network import Host, network
from tests.cluster.nodes import Cluster, cluster
from tests.cluster.runs import SHARDS, Night, longest_pause_s, prepare
from tests.stores import bucket_served
from tests.waiting import wait_until

START_S = 6.0


@dataclass(frozen=True)
class Round:
    """What was done: which kill came where and when, and how long work stood still after it.

    `next_s` is the time until the next shard began, `pause_s` the longest time without a begin of
    a shard; None if the kill came when all had begun.
    """

    seed: int
    killed: str
    begun: int
    next_s: float | None
    pause_s: float | None
    repeated: int
    seconds: float


def do_round(there: Cluster, night: Night, seed: int, *, restarts: bool = True) -> Round:
    """Kill a node in the middle of a run, check the run, and start the node again."""
    chance = random.Random(f"cluster {seed}")
    out, node = night.out / f"kill{seed}", chance.choice(there.nodes)
    only = "raylet" if seed % 2 else ""
    began = time.monotonic()
    run = night.start(there, out)
    _wait_for_moment(night, out, run, chance)
    killed_at, begun = time.monotonic(), len(night.begun(out))
    node.kill(only=only)
    night.check(out, run)
    next_s, pause_s = longest_pause_s(night.begun(out), killed_at) or (None, None)
    seconds = round(time.monotonic() - began, 1)
    if restarts:
        restart(there, node)
    what = f"{only or 'all'} of {node.name}"
    return Round(seed, what, begun, next_s, pause_s, night.repeated(out), seconds)


def restart(there: Cluster, node: Host) -> None:
    """Start Ray again on a host that has lost it."""
    node.kill()
    wait_until(lambda: not node.processes())
    there.start_nodes(node)


def _wait_for_moment(
    night: Night, out: ObjectLocation, run: subprocess.Popen[bytes], chance: random.Random
) -> None:
    """Wait for a random moment: mostly when some shards have begun, sometimes before the first."""
    shards = chance.randrange(-SHARDS // 8, SHARDS)
    most = 0.3 if shards >= 0 else START_S  # a run on a cluster takes about 6 s to its first shard
    wait_until(lambda: run.poll() is not None or len(night.begun(out)) >= max(0, shards))
    time.sleep(chance.uniform(0, most))


@contextmanager
def hosts(*, nodes: int = 3, with_jobs: bool = False) -> Iterator[tuple[Cluster, Night]]:
    """Serve a bucket with scenes on a bridge, and start a cluster that reaches it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ss", dir="/tmp", ignore_cleanup_errors=True) as folder,
        network() as net,
        bucket_served(patch, address=net.address) as out,
    ):
        night = prepare(Path(folder), out)
        with cluster(net, Path(folder), nodes=nodes, with_jobs=with_jobs) as there:
            yield there, night


def main() -> None:
    """Do some rounds and print a line for each."""
    first, last = int(sys.argv[1]), int(sys.argv[2])
    with hosts() as (there, night):
        for seed in range(first, last):
            print(json.dumps(asdict(do_round(there, night, seed))), flush=True)


if __name__ == "__main__":
    main()
