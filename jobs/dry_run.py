"""`scenesweep detect --dry-run`: what a run would do, and what it would take."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from jobs.causes import SharedCauses
from pipeline.errors import SceneError
from pipeline.place import Place, place
from pipeline.plan import Job, plan_scene
from pipeline.publish import is_published
from pipeline.ref import Asked, as_ref
from pipeline.runs.cost import Rates, rates_for, work_left
from pipeline.runs.report import printable
from pipeline.runs.retain import Retention, expired
from pipeline.runs.run import Order
from pipeline.runs.workload import NOTHING, Workload

State = Literal["to do", "up to date", "would fail"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run would do with one scene. `work` is what is left of it."""

    href: str
    scene_id: str
    state: State
    reason: str = ""
    work: Workload = NOTHING
    skipped_windows: int = 0


def dry_run(order: Order, retention: Retention, *, in_turn: bool, as_json: bool) -> int:
    """Plan every scene, print what a run would do, and return the exit code it would have.

    A run without Ray does all `in_turn`.
    """
    detectors = 1 if in_turn else detectors_for(order.job)
    outlooks = [outlook(source, order.job) for source in order.sources]
    work = sum((one.work for one in outlooks), NOTHING)
    rates = rates_for(order.job, work)
    removed = expired(
        place(order.job.out),
        retention,
        scene_ids={one.scene_id for one in outlooks},
        now=datetime.now(UTC),
    )
    if as_json:
        print(json.dumps(_facts(outlooks, work, rates, detectors, removed), indent=2))
    else:
        print("\n".join(_lines(outlooks, work, rates, detectors, removed)))
    failed = sum(one.state == "would fail" for one in outlooks)
    return 0 if not failed else 4 if failed == len(outlooks) else 3


def outlook(asked: Asked, job: Job) -> Outlook:
    """Plan one scene and say what is left to do."""
    ref = as_ref(asked)
    href = ref.href
    try:
        plan = plan_scene(ref, job)
    except SceneError as error:
        return Outlook(href, ref.scene_id, "would fail", str(error))
    if is_published(plan, job):
        return Outlook(href, plan.scene.id, "up to date")
    return Outlook(
        href, plan.scene.id, "to do", work=work_left(plan, job), skipped_windows=plan.layout.skipped
    )


def detectors_for(job: Job) -> int:
    """Return how many detectors a run without a cluster has."""
    settings = job.settings
    return settings.engine.detectors or max(1, (os.cpu_count() or 1) // settings.detect.threads)


def _facts(
    outlooks: Sequence[Outlook],
    work: Workload,
    rates: Rates,
    detectors: int,
    removed: Sequence[Place],
) -> dict[str, object]:
    return {
        "scenes": [asdict(one) for one in outlooks],
        "work": asdict(work),
        "estimate": {
            "seconds": round(rates.wall_seconds(work, detectors), 1) if work.windows else 0.0,
            "detectors": detectors,
            "seconds_per_megapixel": {k: round(v, 4) for k, v in rates.seconds.items()},
            "origin": rates.origin,
        },
        "would_remove": [str(path) for path in removed],
    }


def _lines(
    outlooks: Sequence[Outlook],
    work: Workload,
    rates: Rates,
    detectors: int,
    removed: Sequence[Place],
) -> list[str]:
    counts = {state: sum(one.state == state for one in outlooks) for state in _STATES}
    causes = SharedCauses()
    lines = [_line(one) for one in outlooks if not causes.is_repeated(one.reason)]
    lines += [f"would fail: {line}" for line in causes.lines()]
    lines += [f"would remove: {path}" for path in removed]
    lines += [
        "scenes: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count),
        f"work: {_said(work)}",
    ]
    if work.windows:
        s = "" if detectors == 1 else "s"
        took = _duration(rates.wall_seconds(work, detectors))
        lines.append(f"estimate: {took} with {detectors} detector{s}, from {rates.origin}")
    return lines


_STATES: tuple[State, ...] = ("to do", "up to date", "would fail")


def _line(one: Outlook) -> str:
    if one.state == "would fail":
        named = one.reason.startswith(one.href)
        return printable(f"would fail: {one.reason if named else f'{one.href}: {one.reason}'}")
    if one.state == "up to date":
        return f"up to date: {one.scene_id}"
    return f"to do: {one.scene_id}: {_said(one.work)}, {one.skipped_windows:,} windows skipped"


def _said(work: Workload) -> str:
    return (
        f"{work.windows:,} windows in {work.shards:,} shards, {work.core_px / 1e6:,.1f} Mpx, "
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
