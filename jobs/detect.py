"""`scenesweep detect`: run a model over scenes and publish one table of detections.

`python -m scenesweep.jobs.detect` is the same command, for `ray job submit`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import get_args

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.shared.checks import (
    canary_of,
    expected_ids,
    stopped_by_canary,
    with_completeness,
    with_drift,
)
from scenesweep.jobs.shared.dry_run import dry_run
from scenesweep.jobs.shared.ground_arguments import add_ground_arguments
from scenesweep.jobs.shared.limits import (
    Deadline,
    deadline_at,
    first_scenes,
    newest_first,
    shard_of,
)
from scenesweep.jobs.shared.night_arguments import add_night_arguments
from scenesweep.jobs.shared.notify import message_of, message_of_error, notify
from scenesweep.jobs.shared.progress import Display
from scenesweep.jobs.shared.run_config import RunConfig, read_run_config, required
from scenesweep.jobs.shared.scene_arguments import add_scene_arguments
from scenesweep.jobs.shared.signals import stop_on_signals
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.engine.steps import Listener, Stop, never
from scenesweep.pipeline.errors import Exit, ScenesweepError, UsageError
from scenesweep.pipeline.planning.area import read_area
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.runs.ending import CutShort
from scenesweep.pipeline.runs.failures import (
    Failure,
    failures_allowed,
    noted,
    quarantined,
    read_failures,
    without,
    write_failures,
)
from scenesweep.pipeline.runs.known import recognised
from scenesweep.pipeline.runs.night_metrics import write_metrics
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import Run, Status, one_line, run_summary, write_report
from scenesweep.pipeline.runs.retention import Retention, discard, expired
from scenesweep.pipeline.runs.spending import spending_line
from scenesweep.pipeline.runs.writers import shared_files, writing
from scenesweep.pipeline.storage.host_headers import check_headers
from scenesweep.pipeline.storage.paths import TABLES
from scenesweep.pipeline.storage.remote import local_name
from scenesweep.pipeline.sweep import NO_RAY, carry_out, kept_session, take_order

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"none|local|auto|(ray://)?[^/\s]+:\d+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_scene_arguments(parser)
    parser.add_argument("--model", help="name of a built-in model, or a model file")
    parser.add_argument(
        "--out",
        help="output: a folder, or a prefix in a cloud: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or "
        "az://CONTAINER/PREFIX",
    )
    parser.add_argument("--aoi", type=Path, help="detect only inside these polygons (vector file)")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="with --aoi: replace published results that cover more area than these polygons",
    )
    parser.add_argument(
        "--address",
        help="Ray cluster: local (start Ray on this machine), auto, ray://HOST:PORT, or none for "
        "a plain loop without Ray; default: RAY_ADDRESS, if it is set, or local",
    )
    parser.add_argument(
        "--allow-failed",
        metavar="N|SHARE",
        help="exit with code 0 if at most so many scenes fail: a number, or a share such as 5%%; "
        "failures are still reported, and the code is still 4 if all scenes fail",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="retry quarantined scenes (`quarantine_after` in --config)",
    )
    add_ground_arguments(parser)
    add_night_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="plan, print and write nothing")
    parser.add_argument("--json", action="store_true", help="print the run report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    check_headers()
    config = read_run_config(arguments)
    url = config.notify or os.environ.get("SCENESWEEP_NOTIFY")
    try:
        return _run(arguments, config, url)
    except ScenesweepError as error:
        if not arguments.dry_run:
            notify(url, message_of_error(error, config.name))
        raise


def _run(arguments: argparse.Namespace, config: RunConfig, url: str | None) -> int:
    everything = take_order(
        config.named,
        open_model(local_name(required(config.model, "model", "--model"))),
        required(config.out, "out", "--out"),
        read_area(config.aoi) if config.aoi else None,
        config.settings,
    )
    everything = everything.replacing() if arguments.replace else everything
    everything = replace(everything, only_new=config.only_new)
    order = shard_of(newest_first(everything) if config.newest_first else everything, config.shard)
    deadline = deadline_at(config.deadline, datetime.now().astimezone())
    _check_address(config.address)
    failures_allowed(config.allow_failed, len(order.sources))
    ids = expected_ids(config, order.job)
    listed = config.quarantine_after is not None and not arguments.retry_failed
    known = read_failures(order.job.out) if listed else {}
    order, checked = shortened_order(order, config, known)
    if arguments.dry_run:
        return dry_run(order, config, known, as_json=arguments.json)
    out, grace_s = order.job.out, order.job.settings.engine.stop_grace_s
    with writing(out) as writer, stop_on_signals(grace_s) as stop:
        order = order.of_writer(writer.key)
        for killed in writer.killed:
            log.info("%s: resuming after %s, which was killed", out, killed)
        done = sweep_checked(order, checked, known, stop=Deadline(stop, deadline))
        stop.over()  # no timer may interrupt the report
        done = with_completeness(with_drift(done, order.job), everything, ids)
        report = write_report(done, order.job)
        if config.name:
            engine = order.job.settings.engine
            spending = done.spending(order.job.settings).facts(engine, done.megapixels)
            write_metrics(done, config.name, out, spending)
        ids_here = {source.scene_id for source in everything.sources}
        tidy(done, config.retention, order.job, scene_ids=ids_here)
    text = summary(done, order.job)
    notify(url, message_of(done, text, str(report)))
    if arguments.json:
        print(json.dumps(run_summary(done, order.job), indent=2))
    else:
        print(text)
        print(f"report: {report}")
    return done.exit_code


def shortened_order(
    order: Order, config: RunConfig, failures: Mapping[str, Failure]
) -> tuple[Order, RunConfig]:
    """Return the scenes within `limit`; without a canary if all scenes are up to date.

    `failures` are those that quarantine scenes.
    """
    if config.limit is None and config.canary_policy == "off":
        return order, config
    known = {result.scene_id for result in recognised(order)}
    if all(source.scene_id in known for source in order.sources):
        config = config.model_copy(update={"canary": "off"})
    if config.quarantine_after is not None:
        known |= {r.scene_id for r in quarantined(order, failures, config.quarantine_after)}
    return first_scenes(order, config.limit, skipped=known), config


def sweep_checked(
    order: Order, config: RunConfig, known: Mapping[str, Failure], *, stop: Deadline
) -> Run:
    """Sweep the canary first, if asked to, then the scenes. Stop at the deadline."""
    with kept_session(NO_RAY if config.canary_policy == "off" else config.address):
        canary = canary_of(order, config, stop=stop)
        if canary is not None and not canary.is_good and config.canary_policy == "stop":
            return stopped_by_canary(replace(order, night=config.name), canary)
        done = sweep_known(order, config, known, stop=stop)
    if stop.reached and done.cut_short is not None and done.cut_short.code == Exit.STOPPED:
        why = f"deadline {config.deadline} reached: {done.unfinished} scenes are left for later"
        done = replace(done, cut_short=CutShort(why, Exit.DONE))
    return replace(done, canary=canary, night=config.name)


def sweep_known(
    order: Order, config: RunConfig, known: Mapping[str, Failure], *, stop: Stop = never
) -> Run:
    """Sweep the scenes that are not quarantined, and record which failed."""
    after = config.quarantine_after
    skipped = [] if after is None else quarantined(order, known, after)
    for result in skipped:
        log.warning("%s", one_line(result))
    allowed = failures_allowed(config.allow_failed, len(order.sources))
    left = replace(without(order, skipped), night=config.name, allowed_failed=allowed)
    done = detect(left, address=config.address if left.sources else NO_RAY, stop=stop)
    done = replace(done, results=(*done.results, *skipped))
    if after is not None and not done.cut_short:
        note_failures(done, order, known)
    return done


def note_failures(run: Run, order: Order, known: Mapping[str, Failure]) -> None:
    """Record which scenes of the order failed; what is recorded of other scenes stays.

    `known` are the failures that count for its scenes: none if they were to be forgotten.
    """
    out, ids = order.job.out, {source.scene_id for source in order.sources}
    with shared_files(out, order.job.writer):
        recorded = read_failures(out)
        before = {i: f for i, f in recorded.items() if i not in ids}
        before |= {i: f for i, f in known.items() if i in ids}
        failures = noted(run, order, before)
        if failures != recorded:
            write_failures(failures, out)


def _check_address(address: str | None) -> None:
    """Check the form only; connecting shows whether the cluster exists."""
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
            listener=Listener(display.count, display.update, display.warn),
            stop=stop,
        )


def _starting_ray(address: str | None) -> str:
    """Return what happens before there is any progress."""
    if address == "local" or (address is None and not os.environ.get("RAY_ADDRESS")):
        return "starting Ray on this machine (--address none runs without Ray)"
    return f"connecting to the Ray cluster at {address or os.environ['RAY_ADDRESS']}"


def summary(run: Run, job: Job) -> str:
    """Return the result of a run as a few lines."""
    counts = ", ".join(
        f"{run.count(status)} {status}" for status in get_args(Status) if run.count(status)
    )
    speed = run.megapixels / run.seconds if run.seconds else 0.0
    spending = run.spending(job.settings).facts(job.settings.engine, run.megapixels)
    published = f"{run.detections:,} in {job.out / TABLES}"
    looked_at = any(result.windows for result in run.results)
    none = "none" if looked_at else "none, because no window has valid pixels"
    if run.unfinished:
        none = "none published yet"
    lines = [
        f"scenes: {counts or 'none done'}"
        + (f", {run.unfinished} unfinished" if run.unfinished else "")
        + (f", of these {run.outside} outside the area of interest" if run.outside else ""),
        f"detections: {published if run.detections else none}",
        f"warnings: {run.warned}, see the log and the report" if run.warned else "",
        _undated(run.undated) if run.undated else "",
        f"time: {run.seconds:.1f} s for {run.megapixels:,.1f} Mpx looked at, at the model's "
        f"resolution ({speed:.2f} Mpx/s)",
        spending_line(spending) if "cost" in spending else "",
        f"expected scenes: {run.expected}" if run.expected else "",
        *(f"unusual: {one}" for one in run.unusual),
        *(f"canary: {text}" for text in (run.canary.differences if run.canary else ())),
        run.cut_short.why if run.cut_short else "",
    ]
    return "\n".join(line for line in lines if line)


def _undated(count: int) -> str:
    scenes = "1 scene has" if count == 1 else f"{count} scenes have"
    return (
        f"dates: {scenes} none -> date=unknown; set scenes.acquired_at, or acquired_at in "
        "@scenes.yaml"
    )


def tidy(run: Run, retention: Retention, job: Job, *, scene_ids: Collection[str] = ()) -> None:
    """Delete files older than the retention, and log them; not after a run that was cut short.

    The parts of `scene_ids` stay: scenes of the sources that a limit or a shard left out.
    """
    if run.unfinished:
        return
    scene_ids = {result.scene_id for result in run.results}.union(scene_ids)
    paths = expired(job.out, retention, scene_ids=scene_ids, now=run.started_at)
    for path in discard(paths, job.out, job.writer):
        log.info("retention: removed %s", path)


if __name__ == "__main__":
    sys.exit(run_job("detect"))
