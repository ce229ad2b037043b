"""Two runs on one prefix: one writes, the other says who does; the dead keep nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace

import pytest

from scenesweep.pipeline.errors import OutputInUse
from scenesweep.pipeline.runs import lock_holder as holder
from scenesweep.pipeline.runs import lock_store
from scenesweep.pipeline.runs.lock import holder_of, output_lock
from scenesweep.pipeline.runs.lock_holder import Holder
from scenesweep.pipeline.storage.clients import Outdated
from scenesweep.pipeline.storage.objects import ObjectLocation, put_over, read_version
from tests.faults.apart import apart
from tests.stores import SCHEMES, bucket_served, in_environment, of_store
from tests.waiting import wait_until

ELSEWHERE = Holder("another-host", "another-boot", 1, "2026-01-01 00:00Z")


@pytest.fixture(params=SCHEMES)
def out(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ObjectLocation]:
    with bucket_served(monkeypatch, request.param) as out:
        yield out


def leave(out: ObjectLocation, who: Holder) -> None:
    """Leave a lock behind as a holder does that is gone."""
    path = out / ".work" / "lock"
    put_over(path, json.dumps(asdict(who)).encode(), read_version(path))


def test_the_second_says_who_holds_it(out: ObjectLocation) -> None:
    assert holder_of(out) is None
    with output_lock(out) as died:
        assert died is None
        mine = holder_of(out)
        assert mine is not None
        assert mine.pid == os.getpid()
        says = rf"^{out}: another run is writing there: process {os.getpid()} on "
        with pytest.raises(OutputInUse, match=says), output_lock(out):
            pass
    assert holder_of(out) is None
    assert (out / ".work" / "lock").read_bytes() == b""
    with output_lock(out) as died:
        assert died is None


def hold_and_die(out: ObjectLocation) -> None:
    with output_lock(out):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_of_this_machine_that_is_gone_is_taken_over_at_once(out: ObjectLocation) -> None:
    assert apart(in_environment, of_store(), hold_and_die, out) == -signal.SIGKILL
    assert holder_of(out) is None
    with output_lock(out) as died:
        assert died is not None
        assert died.pid != os.getpid()


def test_a_holder_elsewhere_is_believed_while_it_shows_life(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(out, ELSEWHERE)
    assert holder_of(out) == ELSEWHERE
    with pytest.raises(OutputInUse, match="process 1 on another-host"), output_lock(out):
        pass
    monkeypatch.setattr(holder, "DEAD_AFTER_S", -1.0)
    assert holder_of(out) is None
    with output_lock(out) as died:
        assert died == ELSEWHERE


def test_a_lock_that_is_none_is_free(out: ObjectLocation) -> None:
    for content in (b"", b"{", b"[1]", b'{"host": "x"}'):
        path = out / ".work" / "lock"
        put_over(path, content, read_version(path))
        assert holder_of(out) is None
        with output_lock(out) as died:
            assert died is None


def test_it_beats(out: ObjectLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "BEAT_S", 0.02)
    with output_lock(out):
        tags: set[str] = set()  # each heartbeat is a version of its own, not mistaken for another

        def look() -> int:
            current = read_version(out / ".work" / "lock")
            assert current is not None
            tags.add(current.tag)
            return len(tags)

        wait_until(lambda: look() > 3)
    assert (out / ".work" / "lock").read_bytes() == b""


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_at_once_one_has_it(
    out: ObjectLocation, dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when all see the same dead holder: who has put over it is not overwritten."""
    if dead:
        leave(out, replace(holder.myself(), pid=2**22 + 1))
    together, over = threading.Barrier(6), threading.Event()
    waited = threading.local()

    def all_read_first(path: ObjectLocation) -> object:
        seen = read_version(path)
        if not getattr(waited, "done", False):
            waited.done = True
            together.wait(60)
        return seen

    monkeypatch.setattr(lock_store, "read_version", all_read_first)

    def hold(_: int) -> bool:
        try:
            with output_lock(out):
                over.wait(60)
                return True
        except OutputInUse:
            return False

    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(hold, number) for number in range(6)]
        wait_until(lambda: sum(one.done() for one in asked) == 5)
        over.set()
        assert sum(one.result() for one in asked) == 1


def test_a_put_whose_answer_was_lost_counts(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[object] = []

    def twice(*arguments: object) -> str:
        puts.append(arguments)
        put_over(*arguments)  # type: ignore[arg-type]
        return put_over(*arguments)  # type: ignore[arg-type]  # as when a request is made again

    monkeypatch.setattr(lock_store, "put_over", twice)
    monkeypatch.setattr(holder, "BEAT_S", 0.02)
    with output_lock(out):
        wait_until(lambda: len(puts) > 3)  # it goes on putting the lock
    assert holder_of(out) is None


def test_who_was_taken_over_says_so_and_leaves_the_lock_alone(
    out: ObjectLocation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(holder, "BEAT_S", 0.5)  # time to put it over between two beats

    def be_taken_over() -> None:
        with output_lock(out):
            while holder_of(out) != ELSEWHERE:
                with suppress(Outdated):  # between two beats
                    leave(out, ELSEWHERE)
            wait_until(lambda: "another run took over this output" in caplog.text)

    with pytest.raises(OutputInUse, match="took it over"):
        be_taken_over()
    assert holder_of(out) == ELSEWHERE
