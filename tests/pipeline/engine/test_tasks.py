"""What worker processes do: time limits, and the sizes of pixels."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from scenesweep.pipeline.engine import tasks
from scenesweep.pipeline.engine.steps import Steps, Unreadable
from scenesweep.pipeline.engine.tasks import TaskLimit, read_pixels, within


@dataclass
class Board:
    did: list[str] = field(default_factory=list)

    def put(self, key: str) -> None:
        self.did.append(f"put {key}")

    def remove(self, key: str) -> None:
        self.did.append(f"remove {key}")


def test_a_task_that_ends_soon_tells_nobody() -> None:
    board = Board()
    with within(TaskLimit("k", 60), board):
        pass
    assert board.did == []


def test_a_longer_task_tells_that_it_runs_and_removes_what_it_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "_TELL_AFTER_S", 0.01)
    board = Board()
    with within(TaskLimit("k", 60), board):
        until = time.monotonic() + 30
        while not board.did and time.monotonic() < until:
            time.sleep(0.01)
    assert board.did == ["put k", "remove k"]


def test_a_task_that_holds_the_lock_of_the_interpreter_ends_its_process() -> None:
    """It can tell nobody that it runs, and no Python code can stop it."""
    code = """
import ctypes
from scenesweep.pipeline.engine import tasks
tasks._GRACE_S = 0.1
with tasks.within(tasks.TaskLimit("k", 0.1), None):
    ctypes.PyDLL(None).sleep(300)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr


@dataclass(frozen=True, slots=True)
class Pair:
    name: str
    left: object
    right: object


def test_a_read_reports_the_bytes_of_its_pixels() -> None:
    items = [np.zeros(10, np.uint8), Pair("", np.zeros(5, np.int32), None), Unreadable("bad"), 7]
    steps: Steps[str, str] = Steps(
        lambda s: s, lambda work: items, lambda w: w, lambda *a: None, lambda *a: "", lambda *a: ""
    )
    outcome, pixels = read_pixels(steps, [0] * 4)
    assert outcome.size == 30
    assert outcome.unreadable == (None, None, Unreadable("bad"), None)
    assert len(pixels) == 3
