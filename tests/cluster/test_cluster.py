"""A cluster of several hosts: nodes die, are cut off, join and leave, and the bytes are equal."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import requests

from scenesweep.pipeline.engine.pace import CALLS_EACH
from scenesweep.pipeline.storage.objects import ObjectLocation
from tests.cluster.kills import do_round, hosts, restart
from tests.cluster.network import Host, missing
from tests.cluster.nodes import BIN, ROOT, Cluster
from tests.cluster.runs import SHARDS, Night, longest_pause_s
from tests.waiting import wait_until

pytest.importorskip("ray")
reason = missing()
pytestmark = pytest.mark.skipif(bool(reason), reason=f"needs Linux network namespaces: {reason}")

ROUNDS = 20
GO_ON_S = 10.0  # until work goes on after a killed node
NOTICED_S = 20.0  # after which Ray takes a host that is cut off for lost, with our settings


def test_a_run_that_loses_a_host_publishes_the_bytes_of_the_plain_loop() -> None:
    """One round of the long test."""
    with hosts(nodes=2) as (there, night):
        done = do_round(there, night, 2, restarts=False)
    assert done.next_s is not None
    assert done.next_s < GO_ON_S


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Cluster, Night]]:
    with hosts(with_jobs=True) as those:
        yield those


@pytest.fixture
def there(cluster: tuple[Cluster, Night]) -> Cluster:
    return cluster[0]


@pytest.fixture
def night(cluster: tuple[Cluster, Night]) -> Night:
    return cluster[1]


@pytest.mark.cluster
def test_detectors_of_each_node_take_part(there: Cluster, night: Night) -> None:
    out = night.out / "each"
    night.run(there, out)
    assert {begun.host for begun in night.begun(out)} == {node.name for node in there.nodes}
    assert night.repeated(out) == 0
    read_on = {begun.shard: begun.host for begun in night.read(out)}
    near = sum(begun.host == read_on[begun.shard] for begun in night.begun(out))
    print(f"read on the node of their detector: {near} of {SHARDS} shards")
    assert near > SHARDS / 2  # of random nodes it would be a third


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_runs_that_lose_a_node_at_random_moments(there: Cluster, night: Night) -> None:
    rounds = [do_round(there, night, seed) for seed in range(ROUNDS)]
    for done in rounds:
        print(json.dumps(asdict(done)))
    next_s = [done.next_s for done in rounds if done.next_s is not None]
    assert len(next_s) >= ROUNDS / 2
    assert max(next_s) < GO_ON_S
    assert max(done.pause_s or 0 for done in rounds) < GO_ON_S


@pytest.mark.cluster
@pytest.mark.parametrize("seconds", [4.0, 40.0])
def test_a_host_is_cut_off_for_some_time(there: Cluster, night: Night, seconds: float) -> None:
    """Ray does not notice the first time; the second time it gives the host up."""
    out, node = night.out / f"cut{seconds:.0f}", there.nodes[0]
    run = night.start(there, out)
    _wait_for_shards(night, out, SHARDS // 4)
    cut_at = time.monotonic()
    with node.cable_pulled():
        time.sleep(seconds)
    night.check(out, run)
    pauses = longest_pause_s(night.begun(out), cut_at)
    print(f"cut off for {seconds} s: next shard and longest pause {pauses}")
    assert pauses is not None
    assert max(pauses) < NOTICED_S + GO_ON_S
    if seconds > NOTICED_S:
        restart(there, node)


@pytest.mark.cluster
def test_a_node_that_joins_gets_a_detector(there: Cluster, night: Night) -> None:
    out, node = night.out / "joins", there.nodes[2]
    node.kill()
    wait_until(lambda: _alive(there) == 2)
    run = night.start(there, out, NAP_S="1")  # long enough for Ray and a detector to start
    _wait_for_shards(night, out, SHARDS // 8)
    there.start_nodes(node)
    joined_at = time.monotonic()
    night.check(out, run)
    first_s = [begun.at - joined_at for begun in night.begun(out) if begun.host == node.name]
    print(f"first shard on the new node {min(first_s):.1f} s after Ray had started there")
    assert night.repeated(out) == 0


@pytest.mark.cluster
def test_a_node_that_is_told_to_go_ends_its_work(there: Cluster, night: Night) -> None:
    """As before a spot node is taken away: no shard is detected twice."""
    out, node = night.out / "drained", there.nodes[1]
    run = night.start(there, out)
    _wait_for_shards(night, out, SHARDS // 4)
    drain = ["drain-node", "--node-id", _node_id(there, node), "--deadline-remaining-seconds=60"]
    drain += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
    told = _ray(there, there.head, *drain, "--address", there.address)
    assert told.returncode == 0, told.stderr
    left_at = time.monotonic()
    report = night.check(out, run)
    last = max(begun.at for begun in night.begun(out) if begun.host == node.name)
    print(f"last shard on the node {last - left_at:.1f} s after it was told to go")
    assert night.repeated(out) == 0
    assert report["run_warnings"] == []
    wait_until(lambda: _alive(there) == 2)
    restart(there, node)


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["NO_START", "DIES"])
def test_a_sick_node_costs_its_share(there: Cluster, night: Night, how: str) -> None:
    """It is avoided after one error at the start, or after three lost detectors."""
    out, node = night.out / how.lower(), there.nodes[0]
    report = night.run(there, out, **{how: node.name})
    assert node.name not in {begun.host for begun in night.begun(out)}
    assert night.repeated(out) == 0
    print(f"{how}: {len(report['run_warnings'])} warnings")
    assert 1 <= len(report["run_warnings"]) <= 8


@pytest.mark.cluster
def test_a_job_is_submitted_from_outside(there: Cluster, night: Night) -> None:
    """From a host that does not belong to the cluster, with its token."""
    desk, out = there.network.add_host("desk"), night.out / "job"
    submit = ["job", "submit", "--address", there.jobs, "--submission-id=night", "--"]
    done = _ray(there, desk, *submit, *night.command(out, "auto"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scenes: 3 done" in done.stdout
    wrong = night.command(out, "auto", "tiling.shard=none")
    submit[4] = "--submission-id=wrong"
    failed = _ray(there, desk, *submit, *wrong)
    assert failed.returncode == 1
    assert "tiling.shard" in failed.stdout
    assert "exit code 2" in failed.stdout + failed.stderr


@pytest.mark.cluster
def test_the_node_of_the_driver_is_lost_and_the_job_resumes(there: Cluster, night: Night) -> None:
    """The head is lost with the cluster. On a new one, the same command goes on."""
    out = night.out / "head"
    run = night.start(there, out)
    _wait_for_shards(night, out, SHARDS // 2)
    begun = len(night.begun(out))
    for host in (there.head, *there.nodes):
        host.kill()
    assert run.wait(20) != 0
    there.start_head(with_jobs=True)
    there.start_nodes(*there.nodes)
    report = night.run(there, out)
    repeated = night.repeated(out)
    print(f"lost after {begun} shards, {repeated} were detected again")
    assert repeated <= len(there.nodes) * CALLS_EACH
    resumed = sum(result["resumed_shards"] for result in report["results"])
    assert resumed >= begun - len(there.nodes) * CALLS_EACH - SHARDS // 3  # of scenes not done yet


def _wait_for_shards(night: Night, out: ObjectLocation, count: int) -> None:
    wait_until(lambda: len(night.begun(out)) >= count, most_s=120)


def _ray(there: Cluster, host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        host.command([str(BIN / "ray"), *words], ROOT),
        env=there.environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def _nodes(there: Cluster) -> list[dict[str, Any]]:
    """Return the nodes of the cluster that are alive."""
    bearer = {"Authorization": f"Bearer {there.environment['RAY_AUTH_TOKEN']}"}
    answer = requests.get(f"{there.jobs}/api/v0/nodes", headers=bearer, timeout=30)
    answer.raise_for_status()
    listed = answer.json()["data"]["result"]["result"]
    return [node for node in listed if node["state"] == "ALIVE"]


def _alive(there: Cluster) -> int:
    """Count the nodes that are alive, without the head."""
    return sum(node["node_ip"] != there.head.address for node in _nodes(there))


def _node_id(there: Cluster, host: Host) -> str:
    return next(str(node["node_id"]) for node in _nodes(there) if node["node_ip"] == host.address)
