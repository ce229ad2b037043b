"""kill -9 of one process of a sweep at a random moment, and the same command again.

A round is made by its kind and seed alone, but for the machine's speed. To do some again:
`python -m tests.faults.kills raylet 7 8` (kind, first seed, last seed and one).
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import psutil

from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.engine.pace import CALLS_EACH
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.settings import load_settings
from tests.faults.invariants import check_output, check_report
from tests.faults.painted import Sweep, journal, paint, said_by
from tests.sweeps import digests

KINDS = ("driver", "detector", "reader", "raylet")
TITLES = {"detector": "ray::_DetectorActor", "reader": "ray::_read_task", "raylet": "raylet"}
DETECTORS = 2
SHARDS = 80
NAP_S = 0.04  # of each of them, on two detectors
START_S = 6.0


@dataclass(frozen=True)
class Round:
    """What was done: when the kill came, what stood then, and what was done twice."""

    kind: str
    seed: int
    after_s: float
    exit_code: int
    staged: int
    finished: int
    redone: int


@dataclass(frozen=True)
class Cluster:
    """A Ray whose processes carry a mark in their environment."""

    address: str
    raylet: psutil.Process


def do_round(sweep: Sweep, folder: Path, kind: str, seed: int, cluster: Cluster | None) -> Round:
    """Kill a process of a run, run again what that cut short, and compare with a clean run."""
    chance = random.Random(f"{kind} {seed}")
    out, address = folder / f"{kind}{seed}", cluster.address if cluster else "local"
    run = sweep.start(out, address, nap_s=NAP_S, tag="-killed")
    after = _kill(run, kind, out, chance, cluster)
    code = run.wait(timeout=60)
    finished = {path.stem for path in (out / "checksums").glob("*")}
    staged = len(list(out.rglob("part-*.parquet")))
    if kind in ("detector", "reader"):  # the run itself mends that
        assert code == 0, said_by(out, "-killed")[0].read_text()
        check_report(out, code, said_by(out, "-killed")[0].read_text(), sweep.sources)
    else:
        assert sweep.run(out, address, tag="-again") == 0, said_by(out, "-again")[0].read_text()
        report = check_report(out, 0, said_by(out, "-again")[0].read_text(), sweep.sources)
        again = {result["scene_id"] for result in report["results"] if result["status"] == "done"}
        assert not again & finished, f"{kind} {seed}: finished scenes were done again"
    check_output(sweep.sources, job_of(sweep, out))
    assert digests(out) == digests(folder / "clean"), f"{kind} {seed}: other bytes"
    detected = Counter(journal(out).read_text().splitlines())
    redone = sum(detected.values()) - len(detected)
    # A detector has two calls: it computes one while the parts of the other are written.
    assert redone <= DETECTORS * CALLS_EACH, f"{kind} {seed}: {redone} shards were done again"
    return Round(kind, seed, round(after, 2), code, staged, len(finished), redone)


def do_rounds(folder: Path, rounds: Sequence[tuple[str, int]]) -> Iterator[Round]:
    """Do rounds one after the other; the kinds that leave a cluster alive share one."""
    sweep = paint(folder)
    assert sweep.run(folder / "clean") == 0, said_by(folder / "clean")[0].read_text()
    with _cluster() if any(kind != "raylet" for kind, _ in rounds) else _none() as cluster:
        for kind, seed in rounds:
            yield do_round(sweep, folder, kind, seed, None if kind == "raylet" else cluster)


def job_of(sweep: Sweep, out: Path) -> Job:
    """Return the job that the command makes of its arguments."""
    model = open_model(str(sweep.model))
    settings = load_settings(None, sweep.settings).resolved(model.card)
    return Job(model.card, model.sha256, settings, out=out)


def _kill(
    run: subprocess.Popen[bytes],
    kind: str,
    out: Path,
    chance: random.Random,
    cluster: Cluster | None,
) -> float:
    """Kill -9 a process of this kind when the moment has come and there is one.

    Moments are spread evenly over the shards that are staged; some come before the first, from
    the lock on, which is taken first.
    """
    staged = chance.randrange(-SHARDS // 8, SHARDS)
    pause = chance.uniform(0, NAP_S if staged >= 0 else START_S)
    while not (out / ".work" / "lock").exists() and run.poll() is None:
        time.sleep(0.01)
    begun = time.monotonic()
    while run.poll() is None and len(list(out.rglob("part-*.parquet"))) < staged:
        time.sleep(0.01)
    time.sleep(pause)
    while run.poll() is None:
        victims = [run.pid] if kind == "driver" else _pids(kind, run, cluster)
        if victims:
            os.kill(chance.choice(victims), signal.SIGKILL)
            break
        time.sleep(0.02)
    return time.monotonic() - begun


def _pids(kind: str, run: subprocess.Popen[bytes], cluster: Cluster | None) -> list[int]:
    """Return the living processes of one kind under the cluster's raylet or under the run."""
    root = cluster.raylet if cluster else psutil.Process(run.pid)
    found = []
    for process in root.children(recursive=True):
        with suppress(psutil.Error):
            words = process.cmdline()  # a dead one has none
            if words and Path(words[0]).name.startswith(TITLES[kind]):
                found.append(process.pid)
    return found


@contextmanager
def _none() -> Iterator[None]:
    yield None


@contextmanager
def _cluster() -> Iterator[Cluster]:
    """Start a head node; in the end kill its processes, and no others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mark = f"{os.getpid()}-{port}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}"]
    command += [f"--temp-dir={tempfile.mkdtemp(prefix='rf', dir='/tmp')}", "--num-cpus=2"]
    command += ["--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    try:
        with mock.patch.dict(os.environ, token):
            subprocess.run(
                command,
                check=True,
                env=os.environ | {"FAULTS": mark, "RAY_worker_niceness": "0"},
                stdout=subprocess.DEVNULL,  # the cluster would keep a pipe open
                stderr=subprocess.DEVNULL,
                timeout=60,
            )
            (raylet,) = [p for p in _marked(mark) if p.name() == "raylet"]
            yield Cluster(f"127.0.0.1:{port}", raylet)
    finally:
        for process in _marked(mark):
            with suppress(psutil.Error):
                process.kill()


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FAULTS") == mark:
                found.append(process)
    return found


def main() -> None:
    """Do the rounds of one kind and print a line for each."""
    kind, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        for done in do_rounds(Path(folder), [(kind, seed) for seed in range(first, last)]):
            print(json.dumps(asdict(done)), flush=True)


if __name__ == "__main__":
    main()
