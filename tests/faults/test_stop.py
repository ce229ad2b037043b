"""Ctrl-C and SIGTERM: once, the current shard has its time; twice, at once; nothing is left."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from scenesweep.pipeline.engine.pace import CALLS_EACH
from scenesweep.pipeline.errors import Exit
from tests.faults.invariants import check_output, check_report
from tests.faults.kills import job_of
from tests.faults.painted import Sweep, journal, paint, said_by
from tests.sweeps import digests
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = paint(tmp_path_factory.mktemp("scenes"), scenes=2, side=200)
    assert sweep.run(clean(sweep)) == Exit.DONE
    return sweep


def clean(sweep: Sweep) -> Path:
    return sweep.model.parent / "clean"


def begun(out: Path) -> list[str]:
    """Return the shards that were begun, in their order: lines of folder and number."""
    return journal(out).read_text().splitlines() if journal(out).exists() else []


def stopped(
    run: subprocess.Popen[bytes], out: Path, *signals: signal.Signals, shards: int = 1
) -> list[str]:
    """Send signals when so many shards are begun, and wait for the end; return these shards."""

    def enough() -> bool:
        assert run.poll() is None, said_by(out)[0].read_text()
        return len(begun(out)) >= shards

    wait_until(enough)
    ours = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    in_hand = begun(out)
    for number in signals[:-1]:
        run.send_signal(number)
        time.sleep(0.1)
    run.send_signal(signals[-1])
    run.wait(timeout=60)
    _, alive = psutil.wait_procs(ours, timeout=30)
    assert [process.name() for process in alive] == []
    return in_hand


def check_stopped(
    sweep: Sweep, out: Path, in_hand: list[str], *, finished: bool, redone: int
) -> None:
    """The report says so, and the same command resumes and publishes the same bytes.

    The shards in progress at the signal have part files only if they were `finished`: otherwise
    the run ended before them. At most `redone` shards are begun a second time: each detector on Ray
    has `CALLS_EACH` calls.
    """
    log, said = (path.read_text() for path in said_by(out))
    assert "Stopping after the current piece, in " in log
    assert "press Ctrl-C again to stop now." in log
    assert "Traceback" not in log
    report = check_report(out, Exit.STOPPED, log, sweep.sources)
    assert "rerun the same command to resume" in report["cut_short"]
    assert report["cut_short"] in said
    staged = {f"{p.parent.name} {int(p.stem[5:])}" for p in out.rglob("part-*.parquet")}
    assert finished == (set(in_hand) <= staged)
    assert len(begun(out)) - len(staged) <= redone
    assert sweep.run(out, tag="-again") == Exit.DONE
    check_output(sweep.sources, job_of(sweep, out))
    assert digests(out) == digests(clean(sweep))
    again = begun(out)
    assert len(again) - len(set(again)) <= redone


@pytest.mark.parametrize(
    ("number", "nap_s", "grace_s"),
    [
        (signal.SIGTERM, 0.6, 20),
        # Longer than SIGTERM gives: a full shard takes 5 s and more on one core.
        (signal.SIGINT, 4.0, None),
        pytest.param(signal.SIGINT, 0.6, 20, marks=pytest.mark.faults),
    ],
)
def test_once_finishes_the_shard_in_hand(
    tmp_path: Path, sweep: Sweep, number: signal.Signals, nap_s: float, grace_s: float | None
) -> None:
    out = tmp_path / "out"
    in_hand = stopped(sweep.start(out, nap_s=nap_s, grace_s=grace_s), out, number)
    check_stopped(sweep, out, in_hand, finished=True, redone=0)


@pytest.mark.parametrize(("signals", "grace_s"), [(1, None), (2, 20.0)])
def test_a_shard_that_takes_long_is_broken_off(
    tmp_path: Path, sweep: Sweep, signals: int, grace_s: float | None
) -> None:
    """After the time limit at the first signal, and at once at the second."""
    out = tmp_path / "out"
    run = sweep.start(out, nap_s=40, grace_s=grace_s)
    in_hand = stopped(run, out, *[signal.SIGTERM] * signals)
    check_stopped(sweep, out, in_hand, finished=False, redone=1)


@pytest.mark.parametrize(
    ("nap_s", "signals", "finished"),
    [
        pytest.param(0.6, (signal.SIGTERM,), True, marks=pytest.mark.faults),
        pytest.param(20.0, (signal.SIGTERM,), False, marks=pytest.mark.faults),
        pytest.param(20.0, (signal.SIGINT, signal.SIGINT), False, marks=pytest.mark.faults),
    ],
)
def test_a_run_on_ray_stops_and_leaves_no_process(
    tmp_path: Path, sweep: Sweep, nap_s: float, signals: tuple[signal.Signals, ...], finished: bool
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    run = sweep.start(out, "local", nap_s=nap_s)
    # The first shards also wait for imports: only later ones surely end in the time they have.
    in_hand = stopped(run, out, *signals, shards=5 if finished else 1)
    check_stopped(sweep, out, in_hand, finished=finished, redone=2 * CALLS_EACH)
