"""`scenesweep detect --dry-run`: what a run would do, and what it would take."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from scenesweep.jobs.shared.causes import SharedCauses
from scenesweep.jobs.shared.run_config import RunConfig
from scenesweep.pipeline.errors import Exit, SceneError, UsageError
from scenesweep.pipeline.flow import nothing_looked_at
from scenesweep.pipeline.planning.area import meets, meets_nothing
from scenesweep.pipeline.planning.plan import Job, plan_scene
from scenesweep.pipeline.publish.publish import check_replaceable, is_published
from scenesweep.pipeline.runs.cost import Rates, rates_for, work_left
from scenesweep.pipeline.runs.failures import Failure, failures_allowed, quarantined, without
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import counted, printable
from scenesweep.pipeline.runs.retention import expired
from scenesweep.pipeline.runs.workload import NOTHING, Workload
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.sweep import NO_RAY

State = Literal["to do", "up to date", "would fail", "quarantined"]


@dataclass(frozen=True, slots=True)
class SceneForecast:
    """What a run would do with one scene. `work` is what is left of it."""

    href: str
    scene_id: str
    state: State
    reason: str = ""
    work: Workload = NOTHING
    skipped_windows: int = 0
    warnings: tuple[str, ...] = ()
    outside_area: bool = False


def dry_run(order: Order, night: RunConfig, known: Mapping[str, Failure], *, as_json: bool) -> int:
    """Plan every scene, print what a run would do, and return the exit code it would have.

    Scenes that `known` failures of earlier runs quarantine are named and not planned.

    Raises:
        UsageError: when the area of interest meets none of the scenes.
    """
    detectors = 1 if night.address == NO_RAY else detectors_for(order.job)
    after = night.quarantine_after
    skipped = [] if after is None else quarantined(order, known, after)
    outlooks = [outlook(source, order.job) for source in without(order, skipped).sources]
    if order.job.area is not None and outlooks and all(one.outside_area for one in outlooks):
        raise UsageError(meets_nothing(order.job.area, len(outlooks)))
    outlooks += [
        SceneForecast(one.href, one.scene_id, "quarantined", one.reason) for one in skipped
    ]
    work = sum((one.work for one in outlooks), NOTHING)
    rates = rates_for(order.job, work)
    removed = expired(
        order.job.out,
        night.retention,
        scene_ids={one.scene_id for one in outlooks},
        now=datetime.now(UTC),
    )
    if as_json:
        print(json.dumps(_facts(outlooks, work, rates, detectors, removed), indent=2))
    else:
        print("\n".join(_lines(outlooks, work, rates, detectors, removed)))
    failed = sum(one.state == "would fail" for one in outlooks)
    if failed and failed == len(outlooks) - len(skipped):
        return Exit.ALL_FAILED
    allowed = failures_allowed(night.allow_failed, len(order.sources))
    return Exit.DONE if failed <= allowed else Exit.SOME_FAILED


def outlook(ref: SceneRef, job: Job) -> SceneForecast:
    """Plan one scene and say what is left to do."""
    href = ref.href
    try:
        plan = plan_scene(ref, job)
        outside = not meets(plan.scene, plan.area_px)
        if not outside and is_published(plan, job):
            return SceneForecast(href, plan.scene.id, "up to date")
        if not outside:
            check_replaceable(plan, job)
    except SceneError as error:
        return SceneForecast(href, ref.scene_id, "would fail", str(error))
    return SceneForecast(
        href,
        plan.scene.id,
        "to do",
        work=work_left(plan, job),
        skipped_windows=plan.layout.skipped,
        warnings=() if plan.layout.windows else (nothing_looked_at(plan, job),),
        outside_area=outside,
    )


def detectors_for(job: Job) -> int:
    """Return how many detectors a run without a cluster has."""
    settings = job.settings
    return settings.engine.detectors or max(1, (os.cpu_count() or 1) // settings.detect.threads)


def _facts(
    outlooks: Sequence[SceneForecast],
    work: Workload,
    rates: Rates,
    detectors: int,
    removed: Sequence[Location],
) -> dict[str, object]:
    return {
        "scenes": [asdict(one) for one in outlooks],
        "work": asdict(work),
        "estimate": {
            "seconds": round(rates.wall_seconds(work, detectors), 1) if work.windows else 0.0,
            "detectors": detectors,
            "seconds_per_megapixel": {k: round(v, 4) for k, v in rates.seconds.items()},
            "seconds_per_scene": round(rates.scene_seconds, 4),
            "origin": rates.origin,
        },
        "would_remove": [str(path) for path in removed],
    }


def _lines(
    outlooks: Sequence[SceneForecast],
    work: Workload,
    rates: Rates,
    detectors: int,
    removed: Sequence[Location],
) -> list[str]:
    counts = {state: sum(one.state == state for one in outlooks) for state in get_args(State)}
    causes = SharedCauses()
    told = [one for one in outlooks if not causes.is_repeated(one.reason)]
    lines = [line for one in told for line in (_line(one), *_warnings(one))]
    lines += [f"would fail: {line}" for line in causes.lines()]
    lines += [f"would remove: {path}" for path in removed]
    lines += [
        "scenes: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count),
        f"work: {_said(work)}",
    ]
    if work.windows:
        took = _duration(rates.wall_seconds(work, detectors))
        with_detectors = counted(detectors, "detector")
        lines.append(f"estimate: {took} with {with_detectors}, from {rates.origin}")
    return lines


def _line(one: SceneForecast) -> str:
    if one.state in ("would fail", "quarantined"):
        named = one.reason.startswith(one.href)
        return printable(f"{one.state}: {one.reason if named else f'{one.href}: {one.reason}'}")
    if one.state == "up to date":
        return f"up to date: {one.scene_id}"
    skipped = counted(one.skipped_windows, "window")
    nothing = f" ({skipped} without valid pixels)" if one.skipped_windows else ""
    return f"to do: {one.scene_id}: {_said(one.work)}{nothing}"


def _warnings(one: SceneForecast) -> list[str]:
    return [f"warning: {one.scene_id}: {text}" for text in one.warnings]


def _said(work: Workload) -> str:
    return (
        f"{counted(work.windows, 'window')} in {counted(work.shards, 'shard')}, "
        f"{work.core_px / 1e6:,.1f} Mpx at the model's resolution, "
        f"{_bytes(work.read_bytes)} of pixels to read"
    )


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
