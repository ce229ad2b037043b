"""What a run checks beside its scenes: the canary, unusual figures, and completeness."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from scenesweep.jobs.shared.canary import check_canary
from scenesweep.jobs.shared.run_config import RunConfig
from scenesweep.pipeline.engine.steps import Stop
from scenesweep.pipeline.errors import Exit
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.runs.canary import Canary
from scenesweep.pipeline.runs.drift import (
    LEAST_NIGHTS,
    earlier_nights,
    night_figures,
    unusual_figures,
)
from scenesweep.pipeline.runs.ending import CutShort
from scenesweep.pipeline.runs.expected import Expected, completeness
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import Run
from scenesweep.pipeline.sources import Named, find_scenes

log = logging.getLogger(__name__)

CANARY_STOPPED = (
    "the canary scene has other detections than expected, or could not be swept; no scene was tried"
)


def canary_of(order: Order, config: RunConfig, *, stop: Stop) -> Canary | None:
    """Sweep the canary if the configuration asks for it, and log what it says."""
    if config.canary_policy == "off" or not order.sources:
        return None
    canary = check_canary(order, config.settings, address=config.address, stop=stop)
    if canary.state == "failed" and stop():
        return None  # the run was stopped, which says nothing about the canary
    if canary.is_good:
        log.info(
            "canary: %s, %d detections, %.1f s", canary.state, canary.detections, canary.seconds
        )
    for difference in canary.differences:
        log.warning("canary: %s: %s", canary.state, difference)
    return canary


def stopped_by_canary(order: Order, canary: Canary) -> Run:
    """Return the run that ended after its canary."""
    now = datetime.now(UTC)
    return Run(
        f"{now:%Y%m%dT%H%M%S}-{uuid4().hex[:6]}",
        now,
        canary.seconds,
        (),
        len(order.sources),
        CutShort(CANARY_STOPPED, Exit.CANARY),
        night=order.night,
        canary=canary,
    )


def with_drift(run: Run, job: Job) -> Run:
    """Return the run with the figures that differ from those of earlier nights, and log them.

    Only runs with a name are compared: other runs have nothing in common.
    """
    if not run.night:
        return run
    earlier = earlier_nights(job.out, night=run.night, model_sha256=job.model_sha256)
    figures = night_figures(run.results, job.card.gsd_m)
    unusual = unusual_figures(figures, earlier)
    compared = len(earlier) if figures and len(earlier) >= LEAST_NIGHTS else 0
    for one in unusual:
        log.warning("unusual: %s", one)
    return replace(run, unusual=unusual, compared_nights=compared)


def expected_ids(config: RunConfig, job: Job) -> tuple[str, ...] | None:
    """Return the ids of the scenes that should be published; None if that was not asked for.

    Raises:
        UsageError: if a list cannot be read, or a STAC API does not answer.
    """
    if not (config.expected or config.expected_search):
        return None
    named = Named(config.expected, config.choose, config.expected_search)
    found = find_scenes(named, job.settings.scenes, card_bands=job.settings.read.bands)
    return tuple(source.scene_id for source in found)


def with_completeness(run: Run, order: Order, ids: tuple[str, ...] | None) -> Run:
    """Return the run with what became of the expected scenes. `order` has all sources."""
    if ids is None:
        return run
    statuses: Mapping[str, str] = {result.scene_id: result.status for result in run.results}
    expected = completeness(ids, (s.scene_id for s in order.sources), statuses)
    _warn(expected)
    return replace(run, expected=expected)


def _warn(expected: Expected) -> None:
    for state, ids in (
        ("failed", expected.failed),
        ("late", expected.late),
        ("missing", expected.missing),
    ):
        if ids:
            more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
            log.warning("expected scenes, %s: %s%s", state, ", ".join(ids[:5]), more)
