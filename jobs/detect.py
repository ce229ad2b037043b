"""`scenesweep detect`: scenes in, one published table of detections out.

`python -m jobs.detect` is the same command, for `ray job submit`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from tqdm import tqdm

from jobs.cli import run_job
from jobs.scenes import add_scene_arguments, settings_from
from model.file import ModelFile, open_model
from pipeline import local
from pipeline.area import read_area
from pipeline.errors import SceneError, UsageError
from pipeline.flow import scene_steps
from pipeline.plan import Job, plan_scene
from pipeline.publish import is_published
from pipeline.report import Run, SceneResult, failure, one_line, run_summary, write_report
from pipeline.sources import check_ids, expand
from pipeline.steps import Progress

log = logging.getLogger(__name__)

NO_RAY = "none"
_LINE_EVERY_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_scene_arguments(parser)
    parser.add_argument("--model", required=True, help="name of a built-in model, or a model file")
    parser.add_argument("--out", required=True, help="folder for everything that is written")
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
    settings = settings_from(arguments)
    model = open_model(arguments.model)
    sources = expand(arguments.scenes, settings.scenes.drivers)
    area = read_area(arguments.aoi) if arguments.aoi else None
    job = Job(model.card, model.sha256, settings.resolved(model.card), arguments.out, area)
    if settings.scenes.ids == "stem":
        check_ids(sources)
    if arguments.dry_run:
        return dry_run(sources, job)
    done = detect(sources, model, job, address=arguments.address)
    report = write_report(done, job)
    if arguments.json:
        print(json.dumps(run_summary(done, job), indent=2))
    else:
        print(summary(done, job))
        print(f"report: {report}")
    return done.exit_code


def detect(sources: Sequence[str], model: ModelFile, job: Job, *, address: str | None) -> Run:
    """Sweep all sources, on Ray or in a plain loop, with progress on stderr."""
    started, clock = datetime.now(UTC), time.monotonic()
    results: list[SceneResult] = []
    with _Display(len(sources)) as display:

        def on_result(result: SceneResult) -> None:
            results.append(result)
            display.say(one_line(result), failed=result.status == "failed")

        if address == NO_RAY:
            local.sweep(
                sources, scene_steps(job), model, on_result=on_result, on_progress=display.update
            )
        else:
            _on_ray(sources, model, job, address, on_result, display.update)
    run_id = f"{started:%Y%m%dT%H%M%S}-{uuid4().hex[:6]}"
    place = {source: i for i, source in enumerate(sources)}
    results.sort(key=lambda result: place[result.href])
    return Run(run_id, started, time.monotonic() - clock, tuple(results))


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


def dry_run(sources: Sequence[str], job: Job) -> int:
    """Plan every scene and print what a run would do."""
    failed = 0
    for source in sources:
        try:
            plan = plan_scene(source, job)
        except SceneError as error:
            failed += 1
            print(f"would fail: {error}")
            continue
        state = "up to date" if is_published(plan, job) else "to do"
        print(
            f"{state}: {plan.scene.id}: {plan.layout.windows:,} windows in "
            f"{len(plan.layout.numbers):,} shards, "
            f"{plan.layout.skipped:,} windows skipped"
        )
    return 0 if not failed else 4 if failed == len(sources) else 3


def _on_ray(
    sources: Sequence[str],
    model: ModelFile,
    job: Job,
    address: str | None,
    on_result: Callable[[SceneResult], None],
    on_progress: Callable[[Progress], None],
) -> None:
    try:
        from pipeline import engine
    except ImportError as error:
        raise UsageError(f"Ray is not installed ({error}); use --address {NO_RAY}") from error
    settings = job.settings
    with engine.ray_session(address):
        resources = engine.resources_for(
            settings.engine, threads=settings.detect.threads, device=settings.detect.device
        )
        engine.sweep(
            sources,
            scene_steps(job),
            model,
            settings.engine,
            resources,
            on_result=on_result,
            on_progress=on_progress,
        )


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
