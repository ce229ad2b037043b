"""Ray kills what takes too much memory: the shard is given up, with its scene, and no loop."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from scenesweep.pipeline.engine.steps import Steps

pytest.importorskip("ray")
from scenesweep.pipeline.engine import ray as engine
from tests.chores import Chore, fake_steps, run

ROOM, TOO_MUCH = 1.5e9, 4e9


@pytest.fixture
def monitored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start a Ray that kills when memory has grown by `ROOM` from what is in use now."""
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    if memory.available < 2 * TOO_MUCH:
        pytest.skip("needs 8 GB of free memory")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{(used + ROOM) / memory.total:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    with engine.ray_session("local"):
        yield


@pytest.mark.faults
@pytest.mark.usefixtures("monitored")
def test_a_shard_that_ray_kills_for_memory_is_given_up(tmp_path: Path) -> None:
    chores = {
        "hungry": [Chore("hungry", 0), Chore("hungry", 1)],
        "modest": [Chore("modest", number) for number in range(3)],
    }
    steps = fake_steps(tmp_path, chores)
    killed = tmp_path / "tried"

    def read(work: Sequence[Chore]) -> Sequence[object]:
        if any(chore.source == "hungry" and chore.number == 1 for chore in work):
            with killed.open("a") as file:
                file.write("x")
            kept = []
            for _ in range(int(TOO_MUCH / 1e8)):
                kept.append(os.urandom(1) * 100_000_000)
                time.sleep(0.02)
            time.sleep(60)
        return steps.read(work)

    hungry = Steps(steps.plan, read, steps.make_detector, steps.detect, steps.finish, steps.fail)
    results = sorted(run(hungry, list(chores), batch_windows=1, attempts=2))
    assert results[0] == "done: modest 0+10+20"
    assert "failed: hungry: given up: a worker was lost 2 times in read" in results[1]
    assert "memory" in results[1]
    assert killed.read_text() == "xxx"  # the first time it may have been another's fault
