"""A night on a Ray that was there before, by Ray's own commands: submit, refuse, stop, go on."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from scenesweep.jobs import cli
from tests.rasters import paint_squares, write_raster
from tests.small_models import a_model
from tests.sweeps import digests
from tests.waiting import wait_until

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cluster:
    """A head node with token authentication, on loopback."""

    address: str
    metrics: str
    environment: dict[str, str]

    def job(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `ray job ACTION --address ... REST`."""
        action, *rest = words
        return subprocess.run(
            [str(BIN / "ray"), "job", action, "--address", self.address, *rest],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def ask(self, path: str, *, token: str = "") -> str:
        """Ask the job API, with the cluster's token unless another is given."""
        bearer = f"Bearer {token or self.environment['RAY_AUTH_TOKEN']}"
        request = urllib.request.Request(self.address + path, headers={"Authorization": bearer})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read(), "utf-8")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's sockets need a short path
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    environment |= {"RAY_metrics_report_interval_ms": "500", "RAY_worker_niceness": "0"}
    dashboard, client, metrics = _free_ports(3)
    ports = {"port": 0, "dashboard-port": dashboard, "ray-client-server-port": client}
    ports |= {"dashboard-agent-listen-port": 0, "metrics-export-port": metrics}
    head = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
        + ["--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        + [f"--{name}={port}" for name, port in ports.items()],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: _answers(dashboard))
        here = "http://127.0.0.1"
        yield Cluster(f"{here}:{dashboard}", f"{here}:{metrics}/metrics", environment)
    finally:
        head.terminate()
        try:
            head.wait(20)
        finally:
            _kill_group(head.pid)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.faults
def test_a_night_is_submitted_once_stopped_and_goes_on(tmp_path: Path, cluster: Cluster) -> None:
    a_model(tmp_path)
    pixels, _ = paint_squares(960, 960, largest=10, seed=1)  # 841 windows
    scene = write_raster(tmp_path / "scene.tif", pixels)
    out = tmp_path / "out"
    night = {
        "sources": [str(scene)],
        "model": str(tmp_path / "m.safetensors"),
        "out": str(out),
        "tiling": {"shard": 1},
        "engine": {"batch_windows": 1, "detectors": 1},
        "name": "painted",
    }
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(night))
    command = [sys.executable, "-m", "scenesweep.jobs.detect"]
    command += ["--config", str(tmp_path / "night.yaml")]
    checkout = ("--working-dir", str(ROOT), "--")

    with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
        cluster.ask("/api/jobs/", token="a stranger's")
    first = ("submit", "--submission-id", "detect-2026-11-21", "--no-wait", *checkout, *command)
    assert cluster.job(*first).returncode == 0
    again = cluster.job(*first)
    assert again.returncode == 1
    assert "detect-2026-11-21" in again.stderr
    wait_until(lambda: _parts(out) >= 3, most_s=90)
    with _detector_suspended(cluster):  # the scene cannot end before the job is stopped
        wait_until(lambda: "ray_scenesweep_detectors" in _fetched(cluster.metrics))
        assert cluster.job("stop", "detect-2026-11-21").returncode == 0
        assert json.loads(cluster.ask("/api/jobs/detect-2026-11-21"))["status"] == "STOPPED"
    staged = _parts(out)
    assert digests(out) == {}
    second = ("submit", "--submission-id", "detect-2026-11-21-2", *checkout, *command)
    done = cluster.job(*second)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scenes: 1 done" in done.stdout
    figures = (out / "runs" / "painted.prom").read_text()
    assert 'scenesweep_last_run_exit_code{night="painted"} 0' in figures
    report = max((out / "runs").glob("*.json"))
    assert json.loads(report.read_text())["results"][0]["resumed_shards"] >= staged
    plain = ["--out", str(tmp_path / "plain"), "--address", "none"]
    assert cli.main(["detect", *command[3:], *plain]) == 0
    assert digests(out) == digests(tmp_path / "plain")
    failed = cluster.job("submit", *checkout, *command, "--model", "none")
    assert failed.returncode == 1
    assert "expected a file or a built-in model" in failed.stdout
    assert "exit code 2" in failed.stdout + failed.stderr


def _parts(out: Path) -> int:
    return len(list(out.rglob("part-*.parquet")))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read(), "utf-8")


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def _detector_suspended(cluster: Cluster) -> Iterator[None]:
    detector = next(one for one in psutil.process_iter() if _is_detector(one, cluster))
    detector.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):  # the stop may have killed it
            detector.resume()


def _is_detector(process: psutil.Process, cluster: Cluster) -> bool:
    token = cluster.environment["RAY_AUTH_TOKEN"]
    try:
        title = " ".join(process.cmdline())
        return "_DetectorActor" in title and process.environ().get("RAY_AUTH_TOKEN") == token
    except psutil.Error:
        return False


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
