"""Two runs on one output: one writes, the other says who does; the dead keep nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jobs import cli
from pipeline.errors import Exit, OutputInUse, UsageError
from pipeline.runs import lock
from pipeline.runs.holder import DEAD_AFTER_S, Holder
from pipeline.runs.lock import holder_of, output_lock
from tests.faults.painted import paint
from tests.faults.test_commit import apart

ELSEWHERE = Holder("another-host", "another-boot", 1, "2026-01-01 00:00Z")


def test_the_second_says_who_holds_it_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sweep = tmp_path / "out", paint(tmp_path, scenes=1, side=80)
    with output_lock(str(out)):
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        assert cli.main(["detect", *sweep.arguments(out, "none")]) == Exit.IN_USE
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
        assert cli.main(["verify", str(out)]) == Exit.IN_USE
    said = capsys.readouterr().err
    assert f"another run is writing there: process {os.getpid()} on " in said
    assert holder_of(str(out)) is None
    assert cli.main(["verify", str(out)]) == Exit.DONE


def hold_and_die(out: str) -> None:
    with output_lock(out):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_holder_s_lock_is_taken_over(tmp_path: Path) -> None:
    assert apart(hold_and_die, str(tmp_path)) == -signal.SIGKILL
    assert holder_of(str(tmp_path)) is None
    with output_lock(str(tmp_path)) as died:
        assert died is not None
        assert died.pid != os.getpid()
    with output_lock(str(tmp_path)) as died:
        assert died is None


def test_a_holder_elsewhere_is_believed_while_it_shows_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system that keeps locks to one machine."""
    path = tmp_path / ".work" / "lock"
    path.parent.mkdir()
    path.write_text(json.dumps(asdict(ELSEWHERE)))
    with pytest.raises(OutputInUse, match="process 1 on another-host"), output_lock(str(tmp_path)):
        pass
    assert holder_of(str(tmp_path)) == ELSEWHERE
    old = time.time() - DEAD_AFTER_S - 1
    os.utime(path, (old, old))
    assert holder_of(str(tmp_path)) is None
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with output_lock(str(tmp_path)) as died:
        assert died == ELSEWHERE
        mine = replace(ELSEWHERE, **json.loads(path.read_text()))
        before = path.stat().st_mtime_ns
        time.sleep(0.3)
        assert path.stat().st_mtime_ns > before  # it beats
    assert mine.pid == os.getpid()
    assert path.read_text() == ""


def test_a_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="expected a folder"), output_lock(str(tmp_path / "file")):
        pass
