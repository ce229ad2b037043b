"""Two runs at once on one output: each scene is worked on by one of them, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scenesweep.jobs import cli
from scenesweep.jobs.detect import note_failures
from scenesweep.pipeline.errors import Exit, OutputInUse
from scenesweep.pipeline.runs import lock_holder
from scenesweep.pipeline.runs.claims import claim, keeps, release
from scenesweep.pipeline.runs.failures import Failure, read_failures, write_failures
from scenesweep.pipeline.runs.lock_holder import Holder
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import Run, SceneResult
from scenesweep.pipeline.runs.retention import Retention, discard, expired
from scenesweep.pipeline.runs.writers import living_keys, output_state, shared_files, writing
from scenesweep.pipeline.storage.commit import remove
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.objects import ObjectLocation, put_over, read_version
from scenesweep.pipeline.storage.paths import Output
from tests.faults.apart import apart
from tests.faults.invariants import check_output, newest_report
from tests.faults.kills import job_of
from tests.faults.painted import Sweep, journal, paint, said_by
from tests.rasters import SquareDetector, make_job, ref_of
from tests.stores import SCHEMES, bucket_served, in_environment, of_store
from tests.sweeps import digests
from tests.waiting import wait_until

ELSEWHERE = Holder("another-host", "another-boot", 1, "2026-01-01 00:00Z")


@pytest.fixture(params=("folder", *SCHEMES))
def out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Location]:
    if request.param == "folder":
        yield tmp_path / "out"
        return
    with bucket_served(monkeypatch, request.param) as out:
        yield out


def leave(out: Location, key: str, who: Holder) -> None:
    """Leave the file of a run behind as one does that is gone."""
    path = Output(out).writers / key
    content = json.dumps(asdict(who)).encode()
    if isinstance(path, ObjectLocation):
        put_over(path, content, read_version(path))
    else:
        Path(str(path)).parent.mkdir(parents=True, exist_ok=True)
        Path(str(path)).write_bytes(content)


def test_a_scene_has_one_run(out: Location) -> None:
    with writing(out) as one, writing(out) as two:
        assert one.key != two.key
        assert living_keys(out) == {one.key, two.key}
        assert claim(out, "a", one.key) == ""
        assert claim(out, "a", one.key) == ""  # as when a worker died after it
        assert f"process {os.getpid()} on " in claim(out, "a", two.key)
        assert claim(out, "b", two.key) == ""
        assert keeps(out, "a", one.key) == ""
        assert keeps(out, "a", two.key) != ""
        release(out, "a", two.key)  # not its own
        assert claim(out, "a", two.key) != ""
        release(out, "a", one.key)
        assert claim(out, "a", two.key) == ""
    assert living_keys(out) == set()
    with writing(out) as three:
        assert claim(out, "a", three.key) == ""  # a run that has ended keeps nothing
        assert three.killed == ()


def test_of_many_at_once_one_has_the_scene(out: Location) -> None:
    with writing(out) as dead:
        assert claim(out, "a", dead.key) == ""
    with writing(out) as one, writing(out) as two, ThreadPoolExecutor(6) as threads:
        keys = [one.key, two.key] * 3
        others = list(threads.map(lambda key: claim(out, "a", key), keys))
        assert {key for key, other in zip(keys, others, strict=True) if not other} in (
            {one.key},
            {two.key},
        )


def claim_and_die(out: Location) -> None:
    with writing(out) as writer:
        assert claim(out, "a", writer.key) == ""
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_of_this_machine_keeps_no_scene(out: Location) -> None:
    with writing(out) as other:  # which runs all the time
        assert apart(in_environment, of_store(), claim_and_die, out) == -signal.SIGKILL
        assert living_keys(out) == {other.key}
        assert claim(out, "a", other.key) == ""
    with writing(out) as writer:
        assert [holder.pid != os.getpid() for holder in writer.killed] == [True]
    with writing(out) as writer:
        assert writer.killed == ()


def test_a_run_elsewhere_is_believed_while_it_shows_life(
    out: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef"
    leave(out, key, ELSEWHERE)
    with writing(out) as writer:
        assert claim(out, "a", key) == ""
        assert "process 1 on another-host" in claim(out, "a", writer.key)
        monkeypatch.setattr(lock_holder, "DEAD_AFTER_S", -1.0)
        assert claim(out, "a", writer.key) == ""
        assert "process" in keeps(out, "a", key) or keeps(out, "a", key) == ""
        assert keeps(out, "a", writer.key) == ""
    with writing(out) as writer:
        assert writer.killed == (ELSEWHERE,)


def test_a_run_shows_that_it_is_alive(out: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_holder, "BEAT_S", 0.05)
    with writing(out) as writer:
        path = Output(out).writers / writer.key
        before = path.stat().st_mtime_ns
        wait_until(lambda: path.stat().st_mtime_ns > before)
        remove(path)  # by a run that took it for dead
        wait_until(lambda: living_keys(out) <= {writer.key} and exists(path))
    assert not exists(path)


def exists(path: Location) -> bool:
    return path.is_file()


def test_who_writes_alone_does_so(out: Location) -> None:
    with writing(out, alone=True):
        assert output_state(out).holder is not None
        for alone in (False, True):
            with (
                pytest.raises(OutputInUse, match=f"writing there: process {os.getpid()} on "),
                writing(out, alone=alone),
            ):
                pass
    with (
        writing(out),
        pytest.raises(OutputInUse, match="another run is writing there"),
        writing(out, alone=True),
    ):
        pass
    assert output_state(out).holder is None


def test_a_claim_that_was_not_written_completely_is_free_after_a_while(tmp_path: Path) -> None:
    path = Output(tmp_path).claim("a")
    path.parent.mkdir(parents=True)
    path.touch()
    with writing(tmp_path) as writer:
        assert claim(tmp_path, "a", writer.key) == "a run that has just started"
        os.utime(path, (1, 1))
        assert claim(tmp_path, "a", writer.key) == ""


def test_failures_of_other_scenes_stay(out: Location) -> None:
    job, kept = make_job(out), Failure("x.tif", "1", "no", 2)
    ours = replace(ref_of("none.tif"), id="ours")
    with writing(out) as writer:
        order = Order((ours,), None, job).of_writer(writer.key)  # type: ignore[arg-type]
        with shared_files(out, writer.key):
            write_failures({"theirs": kept, "ours": Failure("y.tif", "1", "no", 1)}, out)
        done = SceneResult(ours.href, "ours", "done")
        run = Run("run", datetime(2026, 1, 1, tzinfo=UTC), 1.0, (done,))
        note_failures(run, order, {})
        assert read_failures(out) == {"theirs": kept}


def test_parts_of_a_scene_in_progress_elsewhere_stay(tmp_path: Path) -> None:
    folder = tmp_path / ".work" / "a-0123456789abcdef"
    folder.mkdir(parents=True)
    later = datetime.now(UTC) + timedelta(days=9)
    old = expired(tmp_path, Retention(work_days=1), scene_ids=(), now=later)
    assert old == [folder]
    with writing(tmp_path) as one, writing(tmp_path) as two:
        assert claim(tmp_path, "a", one.key) == ""
        assert discard(old, tmp_path, two.key) == []
        assert folder.exists()
        release(tmp_path, "a", one.key)
        assert discard(old, tmp_path, two.key) == [folder]
    assert not folder.exists()


# The command itself


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = paint(tmp_path_factory.mktemp("scenes"), scenes=3, side=200)
    assert sweep.run(clean(sweep)) == Exit.DONE
    return sweep


def clean(sweep: Sweep) -> Path:
    return sweep.model.parent / "clean"


@contextmanager
def suspended(sweep: Sweep, out: Path, tag: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a run and suspend it in its first shard: it is alive, and goes on after the block."""
    process = sweep.start(out, nap_s=0.1, tag=tag)

    def has_begun() -> bool:
        assert process.poll() is None, said_by(out, tag)[0].read_text()
        return journal(out).exists()

    try:
        wait_until(has_begun)
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.wait(timeout=120)


def test_a_night_beside_a_backfill(painted: Sweep, tmp_path: Path) -> None:
    """Two processes on one output; they share one scene, which one of them sweeps."""
    out = tmp_path / "out"
    night = replace(painted, scenes=painted.scenes[1:])
    with suspended(replace(painted, scenes=painted.scenes[:2]), out, "-fill") as backfill:
        assert night.run(out, tag="-night") == Exit.DONE
        assert cli.main(["verify", str(out)]) == Exit.IN_USE
        assert cli.main(["compact", str(out)]) == Exit.IN_USE
        assert [path.stem for path in Output(out).manifests()] == ["scene1", "scene2"]
    assert backfill.returncode == Exit.DONE
    assert "scenes: 1 done, 1 up-to-date" in said_by(out, "-fill")[1].read_text()
    assert digests(out) == digests(clean(painted))
    assert cli.main(["verify", str(out)]) == Exit.DONE
    check_output(painted.sources, job_of(painted, out))
    shards = journal(out).read_text().splitlines()
    assert len(shards) == len(set(shards)), "a shard was detected twice"


def test_the_same_command_twice_names_the_other(painted: Sweep, tmp_path: Path) -> None:
    out, one = tmp_path / "out", replace(painted, scenes=painted.scenes[:1])
    with suspended(one, out, "-first") as first:
        assert one.run(out, tag="-second") == Exit.IN_USE
        log, said = (path.read_text() for path in said_by(out, "-second"))
        assert f"another run is writing it: process {first.pid} on " in log
        assert "scenes: 1 in-use" in said
        report = json.loads(newest_report(out).read_text())
        assert (report["exit_code"], report["scenes"]["in-use"]) == (Exit.IN_USE, 1)
    assert first.returncode == Exit.DONE
    assert digests(out).keys() <= digests(clean(painted)).keys()


def test_the_scene_of_a_killed_run_goes_to_the_other(painted: Sweep, tmp_path: Path) -> None:
    """The other one is running already, and tries again what the first had when it was killed."""
    out = tmp_path / "out"
    with suspended(painted, out, "-first") as first:
        before = len(journal(out).read_text().splitlines())
        second = painted.start(out, nap_s=0.1, tag="-second")
        wait_until(lambda: len(journal(out).read_text().splitlines()) > before)
        first.send_signal(signal.SIGKILL)
    assert second.wait(timeout=120) == Exit.DONE, said_by(out, "-second")[0].read_text()
    assert "scenes: 3 done" in said_by(out, "-second")[1].read_text()
    assert digests(out) == digests(clean(painted))
    assert painted.run(out, tag="-third") == Exit.DONE
    assert f"resuming after process {first.pid} " in said_by(out, "-third")[0].read_text()


def test_a_scene_in_progress_elsewhere_is_left_alone(
    out: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenesweep.pipeline.flow.make_detector", lambda *_, **__: SquareDetector())
    sweep = paint(tmp_path, scenes=2, side=100)
    command: list[Any] = ["detect", *sweep.arguments(Path("none"), "none"), "--out", str(out)]
    with writing(out) as other:
        assert claim(out, "scene0", other.key) == ""
        assert cli.main(command) == Exit.IN_USE
        assert [path.stem for path in Output(out).manifests()] == ["scene1"]
    assert cli.main(command) == Exit.DONE
    assert [path.stem for path in Output(out).manifests()] == ["scene0", "scene1"]
    assert list(Output(out).claim("x").parent.glob("scene*")) in ([], [Output(out).claim("scene0")])
