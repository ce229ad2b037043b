"""Two runs on one output: one writes, the other says who does; the dead keep nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from scenesweep.jobs import cli
from scenesweep.jobs import verify as verifying
from scenesweep.pipeline.errors import Exit, OutputError, OutputInUse, UsageError
from scenesweep.pipeline.results.verify import Problem, Verified, verify
from scenesweep.pipeline.runs import lock
from scenesweep.pipeline.runs.lock import holder_of, output_lock
from scenesweep.pipeline.runs.lock_holder import DEAD_AFTER_S, Holder, is_alive, myself
from scenesweep.pipeline.runs.writers import output_state, writing
from tests.faults.apart import apart
from tests.faults.painted import paint
from tests.waiting import wait_until

ELSEWHERE = Holder("another-host", "another-boot", 1, "2026-01-01 00:00Z")


def test_the_second_says_who_holds_it_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sweep = tmp_path / "out", paint(tmp_path, scenes=1, side=80)
    with writing(out, alone=True):
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != "lock"}
        assert cli.main(["detect", *sweep.arguments(out, "none")]) == Exit.IN_USE
        after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != "lock"}
        assert after == before
        assert cli.main(["verify", str(out)]) == Exit.IN_USE
    said = capsys.readouterr().err
    assert f"another run is writing there: process {os.getpid()} on " in said
    assert output_state(out).holder is None
    assert cli.main(["verify", str(out)]) == Exit.DONE


def hold_and_die(out: Path) -> None:
    with output_lock(out):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_holder_s_lock_is_taken_over(tmp_path: Path) -> None:
    assert apart(hold_and_die, tmp_path) == -signal.SIGKILL
    assert holder_of(tmp_path) is None
    with output_lock(tmp_path) as died:
        assert died is not None
        assert died.pid != os.getpid()
    with output_lock(tmp_path) as died:
        assert died is None


def test_a_holder_elsewhere_is_believed_while_it_shows_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system that keeps locks to one machine."""
    path = tmp_path / ".work" / "lock"
    path.parent.mkdir()
    path.write_text(json.dumps(asdict(ELSEWHERE)))
    with pytest.raises(OutputInUse, match="process 1 on another-host"), output_lock(tmp_path):
        pass
    assert holder_of(tmp_path) == ELSEWHERE
    old = time.time() - DEAD_AFTER_S - 1
    os.utime(path, (old, old))
    assert holder_of(tmp_path) is None
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with output_lock(tmp_path) as died:
        assert died == ELSEWHERE
        mine = replace(ELSEWHERE, **json.loads(path.read_text()))
        before = path.stat().st_mtime_ns
        wait_until(lambda: path.stat().st_mtime_ns > before)  # a heartbeat
    assert mine.pid == os.getpid()
    assert path.read_text() == ""


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without `flock`, as Lustre mounted without it."""

    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, request.param), "flock")

    monkeypatch.setattr(fcntl, "flock", refuse)


def in_use(out: Path) -> bool:
    try:
        with output_lock(out):
            return False
    except OutputInUse:
        return True


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_process_of_this_machine_holds_the_output(tmp_path: Path) -> None:
    with output_lock(tmp_path):
        mine = holder_of(tmp_path)
        assert mine is not None
        assert in_use(tmp_path)
        old = time.time() - DEAD_AFTER_S - 1
        os.utime(tmp_path / ".work" / "lock", (old, old))
        assert in_use(tmp_path)  # a process that was suspended may go on
        assert holder_of(tmp_path) == mine
    assert not in_use(tmp_path)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_the_dead_hold_nothing(tmp_path: Path) -> None:
    assert apart(hold_and_die, tmp_path) == -signal.SIGKILL
    assert holder_of(tmp_path) is None
    path = tmp_path / ".work" / "lock"
    with output_lock(tmp_path) as died:
        assert died is not None
    another = replace(myself(), started="1")  # which had our number before us
    path.write_text(json.dumps(asdict(another)))
    with output_lock(tmp_path) as died:
        assert died == another
    unseen = replace(myself(), space="pid:[1]", pid=2**22 + 1)  # in another container
    path.write_text(json.dumps(asdict(unseen)))
    with pytest.raises(OutputInUse), output_lock(tmp_path):
        pass
    old = time.time() - DEAD_AFTER_S - 1
    os.utime(path, (old, old))
    with output_lock(tmp_path) as died:
        assert died == unseen


@pytest.mark.usefixtures("no_flock")
def test_without_flock_one_of_many_at_once_has_it(tmp_path: Path) -> None:
    together, over = threading.Barrier(8), threading.Event()

    def hold(_: int) -> bool:
        together.wait(20)
        try:
            with output_lock(tmp_path):
                over.wait(20)
                return True
        except OutputInUse:
            return False

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(hold, number) for number in range(8)]
        wait_until(lambda: sum(one.done() for one in asked) == 7)
        over.set()
        assert sum(one.result() for one in asked) == 1
    taking = tmp_path / ".work" / "lock.taking"
    assert not taking.exists()
    taking.touch()
    with pytest.raises(OutputInUse, match="just started"), output_lock(tmp_path):
        pass
    os.utime(taking, (1, 1))  # of a process that died just then
    assert not in_use(tmp_path)


def test_who_ended_and_was_not_waited_for_holds_nothing() -> None:
    child = subprocess.Popen(["true"])
    path = Path(f"/proc/{child.pid}/stat")
    while path.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert not is_alive(replace(myself(), pid=child.pid), age_s=1e9)
    child.wait()
    assert not is_alive(replace(myself(), pid=2**80), age_s=0)  # a damaged lock


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with output_lock(tmp_path):
        pass
    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(OutputError, match="No space left"), output_lock(tmp_path):
        pass


def test_verify_looks_without_taking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that starts at that moment must not be told that another one is writing."""
    assert apart(hold_and_die, tmp_path) == -signal.SIGKILL

    def refuse(*_: object) -> None:
        raise AssertionError("the lock was taken")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert holder_of(tmp_path) is None
    assert cli.main(["verify", str(tmp_path)]) == Exit.DONE


@pytest.mark.parametrize("ended", [False, True])
def test_verify_notices_a_run_that_starts_while_it_reads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ended: bool,
) -> None:
    out = tmp_path / "out"
    with writing(out):
        pass
    runs = ExitStack()

    def and_a_run(path: Path) -> Verified:
        with writing(path):
            assert verify(path).problems == ()
        if not ended:
            runs.enter_context(writing(path))
        return Verified(1, 1, 1, 1, (Problem("half", "missing"),))

    monkeypatch.setattr(verifying, "verify", and_a_run)
    with runs:
        assert cli.main(["verify", str(out)]) == Exit.IN_USE
    said = capsys.readouterr()
    assert "a run wrote to it during the check" in said.err
    assert (f"process {os.getpid()}" in said.err) is not ended
    assert said.out == ""


def test_verify_of_what_is_no_output_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.txt").write_text("x")
    for out in (tmp_path / "pictures", tmp_path):
        assert cli.main(["verify", str(out)]) == Exit.USAGE
        assert f"{out}: no scenesweep output here" in capsys.readouterr().err


def test_a_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="expected a folder"), output_lock(tmp_path / "file"):
        pass
