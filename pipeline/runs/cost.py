"""What a sweep will take: pixels to read, and seconds by what earlier sweeps took."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scenesweep.model.card import ModelCard
from scenesweep.pipeline.detection.parts import staged_numbers, work_folder
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.runs.report import counted
from scenesweep.pipeline.runs.workload import Workload, workload_of
from scenesweep.pipeline.storage.paths import Output

START_S = 25.0
"""From the command to the first detection on Ray: workers that start and import torch."""
_FLOPS = 71.6e9
"""Of one detector on one core: naip-trees in benchmarks/results/pipeline-share.json."""
_READ_S, _PUBLISH_S = 0.10, 0.14
"""Of one core, a megapixel of ground: docs/performance.md."""
_SCENE_S = 0.33
"""Of one core, to publish the files of a scene however small: measured on 200 scenes of 256 px."""
_REPORTS = 10


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of one worker for a megapixel of ground, by stage, and where they were taken.

    `scene_seconds` come on top for each scene, however small.
    """

    seconds: Mapping[str, float]
    origin: str
    scene_seconds: float = 0.0

    def wall_seconds(self, work: Workload, detectors: int) -> float:
        """Return the time from start to end when all workers are busy all the time."""
        busy = sum(self.seconds.values()) * work.core_px / 1e6 + self.scene_seconds * work.scenes
        return START_S + busy / detectors


def work_left(plan: Plan, job: Job) -> Workload:
    """Return the work of a scene that is not staged yet."""
    staged = staged_numbers(work_folder(job.out, plan.scene.id, plan.stage_id))
    return workload_of(plan, [number for number in plan.layout.numbers if number not in staged])


def rates_for(job: Job, work: Workload) -> Rates:
    """Return what a megapixel takes: as this model's last runs in OUT had it, else as computed.

    Without such runs the network's arithmetic is divided by the rate measured on one core of an
    AMD EPYC with AVX2: a GPU is far faster.
    """
    runs = list(_runs(job))
    if runs:
        total: defaultdict[str, float] = defaultdict(float)
        for result in runs:
            for stage, spent in result["seconds"].items():
                total[stage] += spent
        megapixels = sum(result["megapixels"] for result in runs)
        # The scenes of tonight may be larger or smaller: what a scene costs as such is kept apart.
        of_scene = min(_SCENE_S, total["publish"] / len(runs))
        total["publish"] -= of_scene * len(runs)
        seconds = {stage: spent / megapixels for stage, spent in total.items()}
        return Rates(
            seconds, f"{counted(len(runs), 'scene')} of earlier runs in {job.out}", of_scene
        )
    overlap = work.chip_px / work.core_px if work.core_px else 1.0
    detect = _detect_seconds(job.card) * overlap
    return Rates(
        {"read": _READ_S, "detect": detect, "publish": _PUBLISH_S},
        "the network's arithmetic at the speed of one core without bfloat16",
        _SCENE_S,
    )


def _runs(job: Job) -> Iterator[dict[str, Any]]:
    """Yield the scenes that this model swept whole, of the last reports that can be read."""
    for path in Output.of(job.out).run_reports()[-_REPORTS:]:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            results = report["results"] if report["model"]["sha256"] == job.model_sha256 else []
            yield from (r for r in results if r["megapixels"] and _whole(r))
        except (OSError, ValueError, KeyError, TypeError):  # another's file, or an older form
            continue


def _whole(result: dict[str, Any]) -> bool:
    return result["status"] == "done" and bool(result["seconds"]) and not result["resumed_shards"]


def _detect_seconds(card: ModelCard) -> float:
    """Seconds of one core for a megapixel of chips. Imports torch."""
    from scenesweep.model.inference.arithmetic import flops_per_chip

    return flops_per_chip(card) / card.chip_px**2 * 1e6 / _FLOPS
