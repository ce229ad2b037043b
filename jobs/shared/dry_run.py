"""`scenesweep detect --dry-run`: what a run would do, and how long it would take."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, get_args

from rasterio.errors import NotGeoreferencedWarning

from scenesweep.jobs.shared.causes import SharedCauses
from scenesweep.jobs.shared.run_config import RunConfig
from scenesweep.pipeline.errors import Exit, SceneError, UsageError, printable
from scenesweep.pipeline.planning.area import meets, meets_nothing
from scenesweep.pipeline.planning.plan import Job, plan_scene
from scenesweep.pipeline.publish.scene_warnings import nothing_looked_at
from scenesweep.pipeline.publish.up_to_date import check_replaceable, is_published
from scenesweep.pipeline.runs.cost import Rates, rates_for, work_left
from scenesweep.pipeline.runs.failures import Failure, failures_allowed, quarantined, without
from scenesweep.pipeline.runs.known import recognised
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import counted
from scenesweep.pipeline.runs.retention import expired
from scenesweep.pipeline.runs.spending import Spending, spending_line
from scenesweep.pipeline.runs.workload import NOTHING, Workload
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.network import is_remote
from scenesweep.pipeline.sweep import NO_RAY

_REMOTE_THREADS = 16

State = Literal["to do", "up to date", "would fail", "quarantined"]


@dataclass(frozen=True, slots=True)
class SceneForecast:
    """What a run would do with one scene. `work` is the part that is not done yet.

    `at_most` means that some of its windows may have no valid pixels, which only reading shows.
    """

    href: str
    scene_id: str
    state: State
    reason: str = ""
    work: Workload = NOTHING
    skipped_windows: int = 0
    warnings: tuple[str, ...] = ()
    outside_area: bool = False
    at_most: bool = False


def dry_run(order: Order, config: RunConfig, known: Mapping[str, Failure], *, as_json: bool) -> int:
    """Plan every scene, print what a run would do, and return the exit code that it would have.

    `known` are the failures of earlier runs; scenes that they quarantine are listed, not planned.

    Raises:
        UsageError: when no scene meets the area of interest.
    """
    detectors = 1 if config.address == NO_RAY else detectors_for(order.job)
    after = config.quarantine_after
    skipped = [] if after is None else quarantined(order, known, after)
    forecasts = forecast_scenes(without(order, skipped))
    all_outside = bool(forecasts) and all(forecast.outside_area for forecast in forecasts)
    if order.job.area is not None and all_outside:
        raise UsageError(meets_nothing(order.job.area, len(forecasts)))
    forecasts += [
        SceneForecast(result.href, result.scene_id, "quarantined", result.reason)
        for result in skipped
    ]
    work = sum((forecast.work for forecast in forecasts), NOTHING)
    rates = rates_for(order.job, work)
    spending = _spending_facts(order.job, work, rates)
    removed = expired(
        order.job.out,
        config.retention,
        scene_ids={forecast.scene_id for forecast in forecasts},
        now=datetime.now(UTC),
    )
    if as_json:
        facts = _facts(forecasts, work, rates, detectors, removed)
        facts["estimate"] |= spending
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(_lines(forecasts, work, rates, detectors, removed)))
        if work.windows:
            print(spending_line(spending))
    failed = sum(forecast.state == "would fail" for forecast in forecasts)
    if failed and failed == len(forecasts) - len(skipped):
        return Exit.ALL_FAILED
    allowed = failures_allowed(config.allow_failed, len(order.sources))
    return Exit.DONE if failed <= allowed else Exit.SOME_FAILED


def forecast_scenes(order: Order) -> list[SceneForecast]:
    """Return what is left to do for each scene, in their order.

    As a run does, it recognises scenes that are up to date without opening them. It plans the
    others in several threads, because GDAL decodes, and servers answer, while Python waits.
    """
    known = {
        result.scene_id: SceneForecast(result.href, result.scene_id, "up to date")
        for result in recognised(order)
    }
    left = [source for source in order.sources if source.scene_id not in known]
    # The filters of warnings belong to the process, and each thread sets and restores them.
    with warnings.catch_warnings(), ThreadPoolExecutor(_threads(left)) as threads:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        planned = threads.map(partial(forecast_scene, job=order.job), left)
        known |= {forecast.scene_id: forecast for forecast in planned}
    return [known[source.scene_id] for source in order.sources]


def _threads(sources: Sequence[SceneRef]) -> int:
    """Return how many scenes are planned at the same time: more if servers have to answer."""
    remote = any(is_remote(file.href) for source in sources for file in source.files)
    return _REMOTE_THREADS if remote else os.cpu_count() or 1


def forecast_scene(ref: SceneRef, job: Job) -> SceneForecast:
    """Plan one scene and return what is left to do."""
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
        at_most=not plan.layout.exact,
    )


def detectors_for(job: Job) -> int:
    """Return how many detectors a run without a cluster has."""
    settings = job.settings
    return settings.engine.detectors or max(1, (os.cpu_count() or 1) // settings.detect.threads)


def _spending_facts(job: Job, work: Workload, rates: Rates) -> dict[str, float]:
    spending = rates.spending(work, job.settings) if work.windows else Spending()
    return spending.facts(job.settings.engine, work.core_px / 1e6)


def _facts(
    forecasts: Sequence[SceneForecast],
    work: Workload,
    rates: Rates,
    detectors: int,
    removed: Sequence[Location],
) -> dict[str, Any]:
    return {
        "scenes": [asdict(forecast) for forecast in forecasts],
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
    forecasts: Sequence[SceneForecast],
    work: Workload,
    rates: Rates,
    detectors: int,
    removed: Sequence[Location],
) -> list[str]:
    counts = {
        state: sum(forecast.state == state for forecast in forecasts) for state in get_args(State)
    }
    causes = SharedCauses()
    shown = [forecast for forecast in forecasts if not causes.is_repeated(forecast.reason)]
    lines = [line for forecast in shown for line in (_line(forecast), *_warnings(forecast))]
    lines += [f"would fail: {line}" for line in causes.lines()]
    lines += [f"would remove: {path}" for path in removed]
    lines += [
        "scenes: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count),
        f"work: {_amounts(work)}",
    ]
    if work.windows:
        duration = _duration(rates.wall_seconds(work, detectors))
        with_detectors = counted(detectors, "detector")
        lines.append(f"estimate: {duration} with {with_detectors}, from {rates.origin}")
    return lines


def _line(forecast: SceneForecast) -> str:
    if forecast.state in ("would fail", "quarantined"):
        named = forecast.reason.startswith(forecast.href)
        reason = forecast.reason if named else f"{forecast.href}: {forecast.reason}"
        return printable(f"{forecast.state}: {reason}")
    if forecast.state == "up to date":
        return f"up to date: {forecast.scene_id}"
    skipped = counted(forecast.skipped_windows, "window")
    nothing = f" ({skipped} without valid pixels)" if forecast.skipped_windows else ""
    most = "at most " if forecast.at_most else ""
    return f"to do: {forecast.scene_id}: {most}{_amounts(forecast.work)}{nothing}"


def _warnings(forecast: SceneForecast) -> list[str]:
    return [f"warning: {forecast.scene_id}: {text}" for text in forecast.warnings]


def _amounts(work: Workload) -> str:
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
