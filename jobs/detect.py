"""`scenesweep detect`: scenes in, one published table of detections out.

`python -m jobs.detect` is the same command, for `ray job submit`.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from pathlib import Path

from jobs.cli import run_job
from jobs.dry_run import dry_run
from jobs.night import read_night, required
from jobs.progress import Display
from jobs.scenes import add_scene_arguments
from jobs.stopping import stop_on_signals
from model.file import open_model
from pipeline.area import read_area
from pipeline.errors import UsageError
from pipeline.place import Place, place
from pipeline.plan import Job
from pipeline.runs.lock import output_lock
from pipeline.runs.report import Run, run_summary, write_report
from pipeline.runs.retain import Retention, discard, expired
from pipeline.runs.run import NO_RAY, Order, carry_out, take_order
from pipeline.steps import Stop, never

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"none|local|auto|(ray://)?[^/\s]+:\d+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_scene_arguments(parser)
    parser.add_argument("--model", help="name of a built-in model, or a model file")
    parser.add_argument(
        "--out", help="folder for everything that is written, or s3://BUCKET/PREFIX"
    )
    parser.add_argument("--aoi", type=Path, help="look only inside these polygons (vector file)")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="with --aoi: replace published results that cover more ground than these polygons",
    )
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
        night.named,
        open_model(required(night.model, "model", "--model")),
        required(night.out, "out", "--out"),
        read_area(night.aoi) if night.aoi else None,
        night.settings,
    )
    order = order.replacing() if arguments.replace else order
    _check_address(night.address)
    if arguments.dry_run:
        return dry_run(
            order, night.retention, in_turn=night.address == NO_RAY, as_json=arguments.json
        )
    out = order.job.out
    with output_lock(out) as died, stop_on_signals() as stop:
        if died:
            log.info("%s: going on after %s, which died", out, died)
        done = detect(order, address=night.address, stop=stop)
        stop.over()  # the report is written in any case
        report = write_report(done, order.job)
        tidy(done, night.retention, place(out))
    if arguments.json:
        print(json.dumps(run_summary(done, order.job), indent=2))
    else:
        print(summary(done, order.job))
        print(f"report: {report}")
    return done.exit_code


def _check_address(address: str | None) -> None:
    """Check the form alone: whether a cluster is there is seen when it is asked."""
    if address is not None and not _ADDRESS.fullmatch(address):
        raise UsageError(
            f"--address {address}: expected none, local, auto, ray://HOST:PORT or HOST:PORT"
        )


def detect(order: Order, *, address: str | None, stop: Stop = never) -> Run:
    """Sweep all scenes, on Ray or in a plain loop, with progress on stderr."""
    with Display(len(order.sources)) as display:
        return carry_out(
            order,
            address=address,
            on_result=display.count,
            on_progress=display.update,
            on_warning=display.warn,
            stop=stop,
        )


def summary(run: Run, job: Job) -> str:
    """Say in a few lines what became of a run."""
    counts = ", ".join(
        f"{run.count(status)} {status}"
        for status in ("done", "up-to-date", "failed")
        if run.count(status)
    )
    speed = run.megapixels / run.seconds
    found = f"{run.detections:,} in {place(job.out) / 'detections'}"
    none = "none published yet" if run.unfinished else "nothing was found"
    lines = [
        f"scenes: {counts or 'none done'}"
        + (f", {run.unfinished} unfinished" if run.unfinished else "")
        + (f", of these {run.outside} outside the area of interest" if run.outside else ""),
        f"detections: {found if run.detections else none}",
        f"warnings: {run.warned}, named in the log and in the report" * bool(run.warned),
        _undated(run.undated) if run.undated else "",
        f"time: {run.seconds:.1f} s for {run.megapixels:,.1f} Mpx ({speed:.2f} Mpx/s)",
        run.cut_short.why if run.cut_short else "",
    ]
    return "\n".join(line for line in lines if line)


def _undated(count: int) -> str:
    scenes = "1 scene has" if count == 1 else f"{count} scenes have"
    return (
        f"dates: {scenes} none -> date=unknown; set scenes.acquired_at, or acquired_at in "
        "@scenes.yaml"
    )


def tidy(run: Run, retention: Retention, out: Place) -> None:
    """Delete what has had its time, and say so; a run cut short has not seen all its scenes."""
    if run.unfinished:
        return
    scene_ids = {result.scene_id for result in run.results}
    paths = expired(out, retention, scene_ids=scene_ids, now=run.started_at)
    discard(paths)
    for path in paths:
        log.info("retention: removed %s", path)


if __name__ == "__main__":
    sys.exit(run_job("detect"))
