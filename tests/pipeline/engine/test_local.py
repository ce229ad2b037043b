"""The plain loop: what it reports, and scenes that fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from scenesweep.pipeline.engine import local
from scenesweep.pipeline.engine.steps import DetectorUse, Listener, Progress
from scenesweep.pipeline.errors import DetectorLost
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


def test_a_failed_gpu_ends_the_run_and_fails_no_scene(tmp_path: Path) -> None:
    """There is no other detector in the plain loop."""

    def detect(*_: Any) -> None:
        raise DetectorLost("the GPU failed (AcceleratorError: CUDA error: ECC)")

    steps = replace(fake_steps(tmp_path, {"a": [Chore("a", 0)]}), detect=detect)
    results: list[str] = []
    with pytest.raises(DetectorLost, match="the GPU failed"):
        local.sweep(["a"], steps, "weights", listener=Listener(results.append))
    assert results == []


def test_what_a_detector_did_is_reported_and_added_to_its_scene(tmp_path: Path) -> None:
    chores = {"a": [Chore("a", 0), Chore("a", 1)]}
    seconds: dict[str, float] = {}

    def finish(source: str, spent: Mapping[str, float]) -> str:
        seconds.update(spent)
        return source

    use = DetectorUse(2.0, 1.0, 0.5, 16, 1000)
    steps = replace(fake_steps(tmp_path, chores), detect=lambda *_: use, finish=finish)
    uses: list[DetectorUse] = []
    local.sweep(["a"], steps, "weights", listener=Listener(detected=uses.append))
    assert uses == [use, use]
    assert (seconds["detect"], seconds["stage"]) == (4.0, 1.0)
    assert use + use == DetectorUse(4.0, 2.0, 1.0, 32, 1000)
