"""`scenesweep detect`: scenes in, one published table of detections out.

`python -m scenesweep.jobs.detect` is the same command, for `ray job submit`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.shared.dry_run import dry_run
from scenesweep.jobs.shared.progress import Display
from scenesweep.jobs.shared.run_config import RunConfig, read_run_config, required
from scenesweep.jobs.shared.scene_arguments import add_scene_arguments
from scenesweep.jobs.shared.signals import stop_on_signals
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.engine.steps import Stop, never
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.planning.area import read_area
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.runs.failures import (
    Failure,
    failures_allowed,
    noted,
    quarantined,
    read_failures,
    without,
    write_failures,
)
from scenesweep.pipeline.runs.lock import output_lock
from scenesweep.pipeline.runs.metrics import write_metrics
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import Run, Status, one_line, run_summary, write_report
from scenesweep.pipeline.runs.retention import Retention, discard, expired
from scenesweep.pipeline.storage.location import Location, location_of
from scenesweep.pipeline.storage.paths import TABLES
from scenesweep.pipeline.sweep import NO_RAY, carry_out, take_order

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
    parser.add_argument(
        "--allow-failed",
        metavar="N|SHARE",
        help="exit with 0 when no more scenes fail than this: a number, or a share such as 5%%; "
        "they are still reported, and all failed is 4 as ever",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="try quarantined scenes again (`quarantine_after` in --config)",
    )
    parser.add_argument("--dry-run", action="store_true", help="plan, and say what would be done")
    parser.add_argument("--json", action="store_true", help="print the run report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Detect on all scenes and return the exit code."""
    night = read_run_config(arguments)
    order = take_order(
        night.named,
        open_model(required(night.model, "model", "--model")),
        required(night.out, "out", "--out"),
        read_area(night.aoi) if night.aoi else None,
        night.settings,
    )
    order = order.replacing() if arguments.replace else order
    _check_address(night.address)
    failures_allowed(night.allow_failed, len(order.sources))
    listed = night.quarantine_after is not None and not arguments.retry_failed
    known = read_failures(location_of(order.job.out)) if listed else {}
    if arguments.dry_run:
        return dry_run(order, night, known, as_json=arguments.json)
    out, grace_s = order.job.out, order.job.settings.engine.stop_grace_s
    with output_lock(out) as died, stop_on_signals(grace_s) as stop:
        if died:
            log.info("%s: going on after %s, which died", out, died)
        done = sweep_night(order, night, known, stop=stop)
        stop.over()  # the report is written in any case
        report = write_report(done, order.job)
        if night.name:
            write_metrics(done, night.name, location_of(out))
        tidy(done, night.retention, location_of(out))
    if arguments.json:
        print(json.dumps(run_summary(done, order.job), indent=2))
    else:
        print(summary(done, order.job))
        print(f"report: {report}")
    return done.exit_code


def sweep_night(
    order: Order, night: RunConfig, known: Mapping[str, Failure], *, stop: Stop = never
) -> Run:
    """Sweep the scenes that are not quarantined, and note which failed."""
    after, out = night.quarantine_after, location_of(order.job.out)
    skipped = [] if after is None else quarantined(order, known, after)
    for result in skipped:
        log.warning("%s", one_line(result))
    allowed = failures_allowed(night.allow_failed, len(order.sources))
    left = replace(without(order, skipped), night=night.name, allowed_failed=allowed)
    done = detect(left, address=night.address if left.sources else NO_RAY, stop=stop)
    done = replace(done, results=(*done.results, *skipped))
    failures = noted(done, order, known)
    if after is not None and not done.cut_short and failures != read_failures(out):
        write_failures(failures, out)
    return done


def _check_address(address: str | None) -> None:
    """Check the form alone: whether a cluster is there is seen when it is asked."""
    if address is not None and not _ADDRESS.fullmatch(address):
        raise UsageError(
            f"--address {address}: expected none, local, auto, ray://HOST:PORT or HOST:PORT"
        )


def detect(order: Order, *, address: str | None, stop: Stop = never) -> Run:
    """Sweep all scenes, on Ray or in a plain loop, with progress on stderr."""
    if address != NO_RAY:
        log.info("%s", _starting_ray(address))
    with Display(len(order.sources)) as display:
        return carry_out(
            order,
            address=address,
            on_result=display.count,
            on_progress=display.update,
            on_warning=display.warn,
            stop=stop,
        )


def _starting_ray(address: str | None) -> str:
    """Say what goes on before there is any progress."""
    if address == "local" or (address is None and not os.environ.get("RAY_ADDRESS")):
        return "starting Ray on this machine; --address none does without it"
    return f"connecting to the Ray cluster at {address or os.environ['RAY_ADDRESS']}"


def summary(run: Run, job: Job) -> str:
    """Say in a few lines what became of a run."""
    counts = ", ".join(
        f"{run.count(status)} {status}" for status in get_args(Status) if run.count(status)
    )
    speed = run.megapixels / run.seconds
    found = f"{run.detections:,} in {location_of(job.out) / TABLES}"
    looked_at = any(result.windows for result in run.results)
    none = "nothing was found" if looked_at else "none, since nothing was looked at"
    if run.unfinished:
        none = "none published yet"
    lines = [
        f"scenes: {counts or 'none done'}"
        + (f", {run.unfinished} unfinished" if run.unfinished else "")
        + (f", of these {run.outside} outside the area of interest" if run.outside else ""),
        f"detections: {found if run.detections else none}",
        f"warnings: {run.warned}, named in the log and in the report" * bool(run.warned),
        _undated(run.undated) if run.undated else "",
        f"time: {run.seconds:.1f} s for {run.megapixels:,.1f} Mpx looked at, at the model's "
        f"resolution ({speed:.2f} Mpx/s)",
        run.cut_short.why if run.cut_short else "",
    ]
    return "\n".join(line for line in lines if line)


def _undated(count: int) -> str:
    scenes = "1 scene has" if count == 1 else f"{count} scenes have"
    return (
        f"dates: {scenes} none -> date=unknown; set scenes.acquired_at, or acquired_at in "
        "@scenes.yaml"
    )


def tidy(run: Run, retention: Retention, out: Location) -> None:
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
