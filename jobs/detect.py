"""`scenesweep detect`: scenes in, one published table of detections out.

`python -m jobs.detect` is the same command, for `ray job submit`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from jobs.cli import run_job
from jobs.dry_run import dry_run
from jobs.night import read_night, required
from jobs.scenes import add_scene_arguments
from model.file import open_model
from pipeline.area import read_area
from pipeline.plan import Job
from pipeline.report import Run, failure, one_line, run_summary, write_report
from pipeline.retain import Retention, discard, expired
from pipeline.run import Order, carry_out, take_order
from pipeline.steps import Progress

log = logging.getLogger(__name__)

_LINE_EVERY_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_scene_arguments(parser)
    parser.add_argument("--model", help="name of a built-in model, or a model file")
    parser.add_argument("--out", help="folder for everything that is written")
    parser.add_argument("--aoi", type=Path, help="look only inside these polygons (vector file)")
    parser.add_argument(
        "--address",
        help="Ray cluster: local (start one here), auto, ray://HOST:PORT, or none for a plain "
        "loop without Ray; default: the cluster of the environment, else local",
    )
    parser.add_argument("--dry-run", action="store_true", help="plan, and say what would be done")
    parser.add_argument("--json", action="store_true", help="print the run report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Detect on all scenes and return the exit code."""
    night = read_night(arguments)
    order = take_order(
        required(night.sources, "sources", "SCENE"),
        open_model(required(night.model, "model", "--model")),
        required(night.out, "out", "--out"),
        read_area(night.aoi) if night.aoi else None,
        night.settings,
    )
    if arguments.dry_run:
        return dry_run(order, night.retention, as_json=arguments.json)
    done = detect(order, address=night.address)
    report = write_report(done, order.job)
    if arguments.json:
        print(json.dumps(run_summary(done, order.job), indent=2))
    else:
        print(summary(done, order.job))
        print(f"report: {report}")
    _tidy(done, night.retention, Path(order.job.out))
    return done.exit_code


def detect(order: Order, *, address: str | None) -> Run:
    """Sweep all scenes, on Ray or in a plain loop, with progress on stderr."""
    with _Display(len(order.sources)) as display:
        return carry_out(
            order,
            address=address,
            on_result=lambda result: display.say(
                one_line(result), failed=result.status == "failed"
            ),
            on_progress=display.update,
        )


def summary(run: Run, job: Job) -> str:
    """Say in a few lines what became of a run."""
    counts = ", ".join(
        f"{run.count(status)} {status}"
        for status in ("done", "up-to-date", "failed")
        if run.count(status)
    )
    lines = [f"failed: {failure(result)}" for result in run.results if result.status == "failed"]
    speed = run.megapixels / run.seconds
    lines += [
        f"scenes: {counts}",
        f"detections: {run.detections:,} in {Path(job.out) / 'detections'}",
        f"time: {run.seconds:.1f} s for {run.megapixels:,.1f} Mpx ({speed:.2f} Mpx/s)",
    ]
    return "\n".join(lines)


def _tidy(run: Run, retention: Retention, out: Path) -> None:
    """Delete what has had its time, and say so."""
    scene_ids = {result.scene_id for result in run.results}
    paths = expired(out, retention, scene_ids=scene_ids, now=run.started_at)
    discard(paths)
    for path in paths:
        log.info("retention: removed %s", path)


@dataclass
class _Display:
    """Progress on stderr: a bar on a terminal, else a log line every few seconds."""

    scenes: int

    def __enter__(self) -> Self:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(unit="window", leave=False, dynamic_ncols=True) if terminal else None
        self._said_at = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, progress: Progress) -> None:
        if self._bar is not None:
            self._bar.total = progress.windows_known
            self._bar.n = progress.windows_done
            self._bar.set_description(f"{progress.scenes_done}/{self.scenes} scenes")
        elif time.monotonic() - self._said_at >= _LINE_EVERY_S:
            self._said_at = time.monotonic()
            log.info(
                "%d of %d scenes, %d of %d windows, %d detectors",
                *(progress.scenes_done, self.scenes, progress.windows_done),
                *(progress.windows_known, progress.detectors),
            )

    def say(self, line: str, *, failed: bool) -> None:
        if self._bar is not None:
            self._bar.clear()
        log.log(logging.ERROR if failed else logging.INFO, "%s", line)


if __name__ == "__main__":
    sys.exit(run_job("detect"))
