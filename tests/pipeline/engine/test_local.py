"""The plain loop: what it reports, and scenes that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")

from scenesweep.pipeline.engine import local
from scenesweep.pipeline.engine.steps import Listener, Progress
from tests.chores import Chore, fake_steps


def test_windows_of_a_failed_scene_leave_the_total(tmp_path: Path) -> None:
    """They are never done: if they stayed, the run would never be seen to publish only."""
    chores = {
        "bad": [Chore("bad", 0, 3), Chore("bad", 1, 5, trouble="unreadable"), Chore("bad", 2, 7)],
        "bug": [Chore("bug", 0, 4, trouble="detect raise", times=9)],
        "good": [Chore("good", 0, 2)],
    }
    seen: list[Progress] = []
    results: list[str] = []
    sources = ["bad", "bug", "missing", "good"]
    listener = Listener(results.append, seen.append)
    local.sweep(sources, fake_steps(tmp_path, chores), "weights", listener=listener)
    assert results == [
        "failed: bad: unreadable",
        "failed: bug: ValueError: a bug of ours (bug)",
        "failed: missing: KeyError: 'missing' (bug)",
        "done: good 0",
    ]
    assert seen[0].windows_known == 15
    last = seen[-1]
    assert (last.windows_done, last.windows_known) == (5, 5)
    assert (last.scenes_planned, last.scenes_done, last.pixels_done) == (4, 4, 200)
