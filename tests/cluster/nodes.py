"""A Ray cluster of several hosts: a head without work, and nodes of one CPU each."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.network import Host, Network

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# What docs/cluster.md recommends, and: small test shards lie on their node, as large ones do.
SETTINGS = {
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_max_direct_call_object_size": "4096",
    "RAY_worker_niceness": "0",
}


@dataclass
class Cluster:
    """The hosts of a cluster, and the environment of everything on them."""

    network: Network
    folder: Path
    environment: dict[str, str]
    head: Host
    nodes: list[Host] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.head.address}:6379"

    @property
    def jobs(self) -> str:
        """The address of the job API."""
        return f"http://{self.head.address}:8265"

    def start_head(self, *, with_jobs: bool) -> None:
        words = ["--head", "--port=6379", "--num-cpus=0", f"--dashboard-host={self.head.address}"]
        self._start(self.head, [*words, f"--include-dashboard={str(with_jobs).lower()}"])

    def start_nodes(self, *nodes: Host) -> None:
        """Start Ray on some nodes, all at the same time."""
        words = [f"--address={self.address}", "--num-cpus=1"]
        started = [(node, self._popen(node, self._words(node, words))) for node in nodes]
        for node, process in started:
            assert process.wait(120) == 0, self.log_of(node).read_text()

    def add_node(self, name: str) -> Host:
        """Add a host on which Ray does not run yet."""
        node = self.network.add_host(name)
        self.nodes.append(node)
        return node

    def _start(self, host: Host, words: Sequence[str]) -> None:
        process = self._popen(host, self._words(host, words))
        assert process.wait(120) == 0, self.log_of(host).read_text()

    def _words(self, host: Host, words: Sequence[str]) -> list[str]:
        folder = self.folder / host.name
        own = [f"--temp-dir={folder}", f"--node-ip-address={host.address}"]
        own += ["--object-store-memory=80000000", "--disable-usage-stats"]
        return [str(BIN / "ray"), "start", *words, *own]

    def log_of(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    def _popen(self, host: Host, words: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log_of(host).open("ab") as log:
            return self.start(host, words, log=log.fileno())

    def start(
        self, host: Host, words: Sequence[str], *, log: int, folder: Path = ROOT
    ) -> subprocess.Popen[bytes]:
        """Start a program on a host, with the environment of the cluster."""
        return subprocess.Popen(
            host.command(words, folder), env=self.environment, stdout=log, stderr=log
        )


@contextmanager
def cluster(
    network: Network, folder: Path, *, nodes: int = 3, with_jobs: bool = False
) -> Iterator[Cluster]:
    """Start a head and some nodes; the network ends them.

    `folder` must have a short path, because Ray's sockets lie below it.
    """
    # Without the short limits of other tests for the network: the defaults survive a cut cable.
    taken = ("RAY_", "GDAL_HTTP_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(taken)} | SETTINGS
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    there = Cluster(network, folder, environment, network.add_host("head"))
    for number in range(nodes):
        there.add_node(f"node{number + 1}")
    there.start_head(with_jobs=with_jobs)
    there.start_nodes(*there.nodes)
    yield there
