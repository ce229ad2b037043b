"""Estimate the time of a sweep from the reports of earlier runs, or from the model's arithmetic."""

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
from scenesweep.pipeline.runs.spending import DETECTOR_STAGES, Spending, spent
from scenesweep.pipeline.runs.workload import Workload, workload_of
from scenesweep.pipeline.settings import ResolvedSettings
from scenesweep.pipeline.storage.paths import Output

START_S = 25.0
"""Seconds from the command to the first detection on Ray: workers start and import torch."""
_FLOPS = 71.6e9
"""Operations per second of one detector on one core: naip-trees in
benchmarks/results/pipeline-share.json."""
_READ_S, _PUBLISH_S = 0.04, 0.03
"""Seconds of one core per megapixel of ground: docs/performance.md."""
_SCENE_S = 0.05
"""Seconds of one core to publish a scene of any size: scenes of 256 px in docs/performance.md."""
_REPORTS = 10


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of one worker per megapixel of ground, by stage, and where these figures come from.

    `scene_seconds` are added for each scene, whatever its size. `gpu` says that detectors were on
    GPUs.
    """

    seconds: Mapping[str, float]
    origin: str
    scene_seconds: float = 0.0
    gpu: bool = False

    def wall_seconds(self, work: Workload, detectors: int) -> float:
        """Return the seconds from start to end if all workers are always busy."""
        busy = sum(self.seconds.values()) * work.core_px / 1e6 + self.scene_seconds * work.scenes
        return START_S + busy / detectors

    def spending(self, work: Workload, settings: ResolvedSettings) -> Spending:
        """Return the GPU hours and core hours if all workers are always busy."""
        megapixels = work.core_px / 1e6
        detectors = sum(self.seconds.get(stage, 0.0) for stage in DETECTOR_STAGES) * megapixels
        all_of = sum(self.seconds.values()) * megapixels + self.scene_seconds * work.scenes
        return spent(detectors, all_of - detectors, settings, gpu=self.gpu)


def work_left(plan: Plan, job: Job) -> Workload:
    """Return the work of the shards of a scene that have no part file yet."""
    staged = staged_numbers(work_folder(job.out, plan.scene.id, plan.stage_id))
    return workload_of(plan, [number for number in plan.layout.numbers if number not in staged])


def rates_for(job: Job, work: Workload) -> Rates:
    """Return the seconds per megapixel, from the last runs of this model in OUT.

    If there are no such runs, divide the network's operations by the rate that was measured on
    one core of an AMD EPYC with AVX2. A GPU is far faster.
    """
    results = list(_earlier_results(job))
    if results:
        total: defaultdict[str, float] = defaultdict(float)
        for result in results:
            for stage, spent_s in result["seconds"].items():
                total[stage] += spent_s
        megapixels = sum(result["megapixels"] for result in results)
        # The new scenes may be larger or smaller, so keep the fixed cost of a scene apart.
        per_scene = min(_SCENE_S, total["publish"] / len(results))
        total["publish"] -= per_scene * len(results)
        seconds = {stage: spent_s / megapixels for stage, spent_s in total.items()}
        origin = f"{counted(len(results), 'scene')} of earlier runs in {job.out}"
        gpu = any(kind.startswith("cuda") for result in results for kind in result["ran_on"])
        return Rates(seconds, origin, per_scene, gpu)
    overlap = work.chip_px / work.core_px if work.core_px else 1.0
    detect = _detect_seconds(job.card) * overlap
    return Rates(
        {"read": _READ_S, "detect": detect, "publish": _PUBLISH_S},
        "the network's arithmetic at the speed of one core without bfloat16",
        _SCENE_S,
    )


def _earlier_results(job: Job) -> Iterator[dict[str, Any]]:
    """Yield the results of scenes that this model swept in one run, from the last reports."""
    for path in Output(job.out).run_reports()[-_REPORTS:]:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            results = report["results"] if report["model"]["sha256"] == job.model_sha256 else []
            yield from (r for r in results if r["megapixels"] and _in_one_run(r))
        except (OSError, ValueError, KeyError, TypeError):  # not a report, or an older format
            continue


def _in_one_run(result: dict[str, Any]) -> bool:
    return result["status"] == "done" and bool(result["seconds"]) and not result["resumed_shards"]


def _detect_seconds(card: ModelCard) -> float:
    """Return the seconds of one core per megapixel of chips. Imports torch."""
    from scenesweep.model.inference.arithmetic import flops_per_chip

    return flops_per_chip(card) / card.chip_px**2 * 1e6 / _FLOPS
