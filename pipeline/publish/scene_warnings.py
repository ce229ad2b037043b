"""Warnings about a published scene: what was not looked at, missing, capped or left out."""

from __future__ import annotations

from collections.abc import Sequence

from scenesweep.pipeline.detection.computing import Computing
from scenesweep.pipeline.detection.parts import UselessParts
from scenesweep.pipeline.planning.area import meets
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.files import skipped_formats
from scenesweep.pipeline.publish.strips import PartsSummary


def warnings_of(plan: Plan, parts: PartsSummary, job: Job, *, rows: int) -> tuple[str, ...]:
    """Return the warnings of a published scene, whose table has so many rows."""
    return (*_warnings(plan, parts, job), *_mixture(parts), *left_out(plan, job, rows=rows))


def nothing_looked_at(plan: Plan, job: Job) -> str:
    """Return the reason why no window of a scene is looked at."""
    if not meets(plan.scene, plan.area_px):
        return "no pixels in the area of interest: nothing was looked at, nothing is published"
    where = "" if job.area is None else " in the area of interest"
    return f"no valid pixels{where}: nothing was looked at"


def left_out(plan: Plan, job: Job, *, rows: int) -> tuple[str, ...]:
    """Return the reasons why some of the requested formats are not written for a scene."""
    return tuple(skipped_formats(plan, job, rows=rows).values())


def _warnings(plan: Plan, parts: PartsSummary, job: Job) -> tuple[str, ...]:
    warnings = list(plan.scene.warnings)
    if not parts.windows:
        warnings.append(nothing_looked_at(plan, job))
    missing = [str(b) for b, i in zip(job.card.bands, plan.source.bands, strict=True) if not i]
    if missing:
        warnings.append(f"the scene has no {', '.join(missing)}: filled with the model's mean")
    if parts.capped_windows:
        warnings.append(
            f"{parts.capped_windows} windows reached a cap on detections (detect.topk_per_level, "
            "detect.max_detections_per_chip): objects may be missing there"
        )
    return tuple(warnings)


def _mixture(parts: PartsSummary) -> tuple[str, ...]:
    """Return a warning if detectors differed in GPU, convolutions or versions."""
    if len(parts.ran_on) < 2:
        return ()
    return (
        f"its shards ran on {' and on '.join(parts.ran_on)}: scores may differ in the last digits",
    )


def repairs(
    parts: UselessParts, files: Sequence[str], computing: Computing | None
) -> tuple[str, ...]:
    """Return warnings about part files and published files that this run replaces."""
    warnings = []
    if parts.damaged:
        warnings.append(f"damaged parts were done again: {_shards(parts.damaged)}")
    if parts.foreign:
        warnings.append(
            f"parts that were not computed as {computing or 'those of this run'} were done again: "
            f"{_shards(parts.foreign)}"
        )
    if files:
        warnings.append(f"damaged files were published again: {', '.join(files)}")
    return tuple(warnings)


def _shards(numbers: set[int]) -> str:
    """Return how many shards these are, and the first of their numbers."""
    shown = [str(number) for number in sorted(numbers)[:5]]
    if len(numbers) > 5:
        shown.append("…")
    return f"{len(numbers)} shards ({', '.join(shown)})"
