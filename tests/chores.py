"""Steps with fake work in place of a sweep, to test the engine alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenesweep.pipeline.engine import ray as engine
from scenesweep.pipeline.engine.resources import Resources
from scenesweep.pipeline.engine.steps import Listener, Planned, Steps, Unreadable
from scenesweep.pipeline.settings import EngineSettings


@dataclass(frozen=True)
class Chore:
    """A piece of fake work. `trouble` names the step that fails and how, `times` how often."""

    source: str
    number: int
    windows: int = 1
    pixels: int = 100
    trouble: str = ""
    times: int = 0


def _trouble(folder: Path, chore: Chore, step: str) -> None:
    """Fail in this step if the chore says so, the first `times` times."""
    if chore.trouble.partition(" ")[0] != step:
        return
    marks = folder / f"{chore.source}-{chore.number}-{step}"
    with marks.open("a") as file:
        file.write("x")
    if marks.stat().st_size > chore.times:
        return
    if chore.trouble.endswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if chore.trouble.endswith("hang"):
        time.sleep(120)
    raise ValueError("a bug of ours")


def fake_steps(folder: Path, chores: Mapping[str, Sequence[Chore]]) -> Steps[str, str]:
    """Steps that write one file per chore, and publish the content of the files."""

    def plan(source: str) -> Planned[str, str]:
        if source == "unplannable":
            return Planned(None, result="failed: unplannable")
        if source == "hanging":
            time.sleep(120)
        work = chores[source]
        return Planned(source, work, sum(chore.windows for chore in work))

    def read(work: Sequence[Chore]) -> list[int | Unreadable]:
        for chore in work:
            _trouble(folder, chore, "read")
        bad = Unreadable("unreadable")
        return [bad if c.trouble == "unreadable" else c.number * 10 for c in work]

    def detect(_: Any, work: Sequence[Chore], pixels: Sequence[Any]) -> None:
        for chore, pixel in zip(work, pixels, strict=True):
            _trouble(folder, chore, "detect")
            (folder / f"{chore.source}.{chore.number}").write_text(str(pixel))

    def finish(source: str, _: Mapping[str, float]) -> str:
        parts = sorted(folder.glob(f"{source}.*"))
        return f"done: {source} {'+'.join(p.read_text() for p in parts)}"

    def fail(source: str, reason: str, bug: bool) -> str:
        return f"failed: {source}: {reason}{' (bug)' if bug else ''}"

    return Steps(plan, read, lambda weights: weights, detect, finish, fail)


def run(
    steps: Steps[Any, Any], sources: Sequence[Any], *, detectors: int = 2, **settings: Any
) -> list[Any]:
    results: list[Any] = []
    engine.sweep(
        sources,
        steps,
        "weights",
        EngineSettings(**settings),
        Resources(detectors, 0.5, 0, 0.5),
        listener=Listener(results.append),
    )
    return results
