"""A sweep to be hurt: the command itself on small painted scenes, with a detector of squares.

`python -m tests.faults.painted detect ARGS` is `scenesweep detect ARGS` with `SquareDetector` in
place of the network and a journal of the shards that were detected: one line each, in the file
that the environment's JOURNAL names. NAP_S is how long each shard takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

import scenesweep.pipeline.sweep
from scenesweep.jobs import cli
from scenesweep.model.files.model_file import CARD_KEY
from scenesweep.pipeline import flow
from scenesweep.pipeline.detection.computing import IN_THIS_PROCESS, DetectorHost
from scenesweep.pipeline.engine.steps import Steps
from scenesweep.pipeline.planning.plan import Job
from tests.rasters import SquareDetector, make_card, paint_squares, write_raster

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "publish.quicklook=false",
    "tiling.shard=2",
    "engine.batch_windows=1",
    "engine.detectors=2",
)


@dataclass(frozen=True)
class Sweep:
    """A command on some scenes: where they are, and what it is told besides."""

    scenes: tuple[Path, ...]
    model: Path
    settings: tuple[str, ...] = SETTINGS

    @property
    def sources(self) -> list[str]:
        return [str(scene) for scene in self.scenes]

    def arguments(self, out: Path, address: str, grace_s: float | None = None) -> list[str]:
        grace = [] if grace_s is None else [f"engine.stop_grace_s={grace_s}"]
        more = [word for one in (*self.settings, *grace) for word in ("--set", one)]
        return [
            *self.sources,
            "--model",
            str(self.model),
            "--out",
            str(out),
            "--address",
            address,
            *more,
        ]

    def start(
        self,
        out: Path,
        address: str = "none",
        *,
        nap_s: float = 0.0,
        grace_s: float | None = None,
        tag: str = "",
    ) -> subprocess.Popen[bytes]:
        """Start the command in a process of its own; its words go to files beside `out`."""
        log, said = said_by(out, tag)
        with log.open("wb") as errors, said.open("wb") as lines:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.faults.painted",
                    "detect",
                    *self.arguments(out, address, grace_s),
                ],
                cwd=ROOT,
                env=os.environ
                | {"JOURNAL": str(journal(out)), "NAP_S": str(nap_s)}
                | {"RAY_worker_niceness": "0"},
                stderr=errors,
                stdout=lines,
                start_new_session=True,
            )

    def run(self, out: Path, address: str = "none", *, nap_s: float = 0.0, tag: str = "") -> int:
        """Run the command to its end; return its exit code."""
        return self.start(out, address, nap_s=nap_s, tag=tag).wait(timeout=240)


def paint(folder: Path, *, scenes: int = 3, side: int = 330) -> Sweep:
    """Paint scenes and make the model file that goes with them: a card without weights."""
    paths = []
    for seed in range(scenes):
        pixels, _ = paint_squares(side + 20 * seed, side, largest=10, seed=seed)
        paths.append(write_raster(folder / f"scene{seed}.tif", pixels))
    model = folder / "squares.safetensors"
    save_file({}, model, metadata={CARD_KEY: make_card().model_dump_json()})
    return Sweep(tuple(paths), model)


def said_by(out: Path, tag: str = "") -> tuple[Path, Path]:
    """Return the files of what a command said to stderr and to stdout."""
    return out.with_name(f"{out.name}{tag}.log"), out.with_name(f"{out.name}{tag}.txt")


def journal(out: Path) -> Path:
    """Return the file with a line for each shard that was detected."""
    return out.with_name(f"{out.name}.journal")


def squares_of(job: Job, host: DetectorHost = IN_THIS_PROCESS) -> Steps[Any, Any]:
    """Return the steps of the main job with another detector and a journal."""
    steps = flow.scene_steps(job, host)
    # Workers of a cluster that was there before have another environment.
    told = partial(_detect, journal=os.environ["JOURNAL"], nap_s=float(os.environ["NAP_S"]))
    return replace(steps, make_detector=_squares, detect=told)


def _squares(_: Any) -> SquareDetector:
    return SquareDetector()


def _detect(
    detector: Any, tasks: Sequence[Any], pixels: list[Any], *, journal: str, nap_s: float
) -> None:
    lines = [f"{task.folder.name} {task.shard.number}\n" for task in tasks]
    with Path(journal).open("a", encoding="utf-8") as file:
        file.write("".join(lines))
    time.sleep(nap_s)
    flow.detect_and_stage(detector, tasks, pixels)


def main() -> int:
    """Run the command with squares in place of the network."""
    scenesweep.pipeline.sweep.scene_steps = squares_of  # type: ignore[attr-defined]
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
