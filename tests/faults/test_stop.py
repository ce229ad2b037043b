"""Ctrl-C and SIGTERM: once, the shard in hand is finished; twice, at once; nothing is left over."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import Exit
from tests.faults.invariants import check_output, check_report
from tests.faults.kills import job_of
from tests.faults.painted import Sweep, journal, paint, said_by
from tests.pipeline.test_flow import digests


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = paint(tmp_path_factory.mktemp("scenes"), scenes=2, side=200)
    assert sweep.run(clean(sweep)) == Exit.DONE
    return sweep


def clean(sweep: Sweep) -> Path:
    return sweep.model.parent / "clean"


def stopped(run: subprocess.Popen[bytes], out: Path, *signals: signal.Signals) -> float:
    """Send signals when a shard is begun; return how long the process took from the last to end."""
    deadline = time.monotonic() + 60
    while not (journal(out).exists() and journal(out).stat().st_size):
        assert run.poll() is None, said_by(out)[0].read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ours = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    for number in signals[:-1]:
        run.send_signal(number)
        time.sleep(0.1)
    started = time.monotonic()
    run.send_signal(signals[-1])
    run.wait(timeout=30)
    seconds = time.monotonic() - started
    _, alive = psutil.wait_procs(ours, timeout=max(0, 5 - seconds))
    assert [process.name() for process in alive] == []
    return seconds


def check_stopped(sweep: Sweep, out: Path, *, finished: bool) -> None:
    """The report says so, and the same command goes on from there to the same bytes."""
    log, said = (path.read_text() for path in said_by(out))
    assert "stopping: what is in hand is finished" in log
    assert "Traceback" not in log
    report = check_report(out, Exit.STOPPED, log, sweep.sources)
    assert "the same command goes on" in report["cut_short"]
    assert report["cut_short"] in said
    begun = journal(out).read_text().splitlines()
    assert len(list(out.rglob("part-*.parquet"))) >= len(begun) - (0 if finished else 1)
    assert sweep.run(out, tag="-again") == Exit.DONE
    check_output(sweep.sources, job_of(sweep, out))
    assert digests(out) == digests(clean(sweep))
    again = journal(out).read_text().splitlines()
    assert len(again) - len(set(again)) <= (0 if finished else 1)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)]
)
def test_once_finishes_the_shard_in_hand(
    tmp_path: Path, sweep: Sweep, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    assert stopped(sweep.start(out, nap_s=0.6), out, number) < 3
    check_stopped(sweep, out, finished=True)


@pytest.mark.parametrize(("signals", "limit_s"), [(1, 3.0), (2, 1.0)])
def test_a_shard_that_takes_long_is_broken_off(
    tmp_path: Path, sweep: Sweep, signals: int, limit_s: float
) -> None:
    """After the time limit at the first signal, and at once at the second."""
    out = tmp_path / "out"
    run = sweep.start(out, nap_s=20)
    assert stopped(run, out, *[signal.SIGTERM] * signals) < limit_s
    check_stopped(sweep, out, finished=False)


@pytest.mark.parametrize(
    ("nap_s", "signals", "finished"),
    [
        pytest.param(0.6, (signal.SIGTERM,), True, marks=pytest.mark.faults),
        pytest.param(20.0, (signal.SIGINT,), False, marks=pytest.mark.faults),
        pytest.param(20.0, (signal.SIGINT, signal.SIGINT), False, marks=pytest.mark.faults),
    ],
)
def test_a_run_on_ray_stops_and_leaves_no_process(
    tmp_path: Path, sweep: Sweep, nap_s: float, signals: tuple[signal.Signals, ...], finished: bool
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    run = sweep.start(out, "local", nap_s=nap_s)
    assert stopped(run, out, *signals) < 5
    check_stopped(sweep, out, finished=finished)
