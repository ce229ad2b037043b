"""The command on painted scenes, with a detector of squares and a journal with times.

`python -m tests.cluster.sweep detect ARGS` is `scenesweep detect ARGS` with `SquareDetector` in
place of the network. Each shard takes NAP_S. When it begins, a line goes to the file JOURNAL:
seconds (all hosts share one clock), host, scene and shard. JOURNAL.reads has the same of reads.
On the host NO_START, detectors raise an error when they start; on the host DIES, they die at work.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import scenesweep.pipeline.sweep
from scenesweep.jobs import cli
from scenesweep.pipeline import flow
from scenesweep.pipeline.detection.computing import IN_THIS_PROCESS, DetectorHost
from scenesweep.pipeline.engine.steps import Steps
from scenesweep.pipeline.planning.plan import Job
from tests.rasters import SquareDetector


@dataclass(frozen=True)
class Begun:
    """When and where a shard began to be detected."""

    at: float
    host: str
    shard: str


@dataclass(frozen=True)
class Orders:
    """What the environment of the driver tells its workers, which have another one."""

    journal: str
    nap_s: float
    no_start: str
    dies: str


def read_journal(path: Path) -> list[Begun]:
    """Return the complete lines of a journal, by their time."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    words = [line.split(" ", 2) for line in lines]
    return sorted((Begun(float(at), host, shard) for at, host, shard in words), key=_at)


def _at(begun: Begun) -> float:
    return begun.at


def squares_of(job: Job, host: DetectorHost = IN_THIS_PROCESS) -> Steps[Any, Any]:
    """Return the steps of the main job with another detector and a journal."""
    orders = Orders(
        journal=os.environ["JOURNAL"],
        nap_s=float(os.environ["NAP_S"]),
        no_start=os.environ.get("NO_START", ""),
        dies=os.environ.get("DIES", ""),
    )
    steps = flow.scene_steps(job, host)
    return replace(
        steps,
        read=partial(_read, orders, steps.read),
        make_detector=partial(_squares, orders),
        detect=partial(_detect, orders),
    )


def _squares(orders: Orders, _: Any) -> SquareDetector:
    if platform.node() == orders.no_start:
        raise OSError("no GPU here")
    return SquareDetector()


def _read(
    orders: Orders, read: Callable[[Sequence[Any]], Sequence[object]], tasks: Sequence[Any]
) -> Sequence[object]:
    _note(f"{orders.journal}.reads", tasks)
    return read(tasks)


def _detect(orders: Orders, detector: Any, tasks: Sequence[Any], pixels: list[Any]) -> None:
    if platform.node() == orders.dies:
        os._exit(1)
    _note(orders.journal, tasks)
    time.sleep(orders.nap_s * len(tasks))
    flow.detect_and_stage(detector, tasks, pixels)


def _note(journal: str, tasks: Sequence[Any]) -> None:
    now = f"{time.monotonic():.3f} {platform.node()}"
    lines = [f"{now} {task.folder.name} {task.shard.number}\n" for task in tasks]
    with Path(journal).open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def main() -> int:
    """Run the command with squares in place of the network."""
    scenesweep.pipeline.sweep.scene_steps = squares_of  # type: ignore[attr-defined]
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
