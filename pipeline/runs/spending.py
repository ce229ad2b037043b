"""GPU hours, core hours and cost of a run: what its workers reserved while they worked.

A detector on a GPU reserves its share of the GPU and one core, from its start to its last chips,
also while it waits for pixels. A detector on CPUs reserves `detect.threads` cores. Each other
worker is one core. Nodes that are up and idle are in none of these figures: your bill has them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scenesweep.pipeline.engine.steps import DetectorUse
from scenesweep.pipeline.settings import EngineSettings, ResolvedSettings

DETECTOR_STAGES = ("detect", "stage")
"""Stages of a scene that are time of detectors; all others are time of workers on one core."""
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Spending:
    """What a run, or a part of one, reserved."""

    gpu_hours: float = 0.0
    core_hours: float = 0.0

    def facts(self, engine: EngineSettings, megapixels: float) -> dict[str, float]:
        """Return the figures for a report. There is a cost only if a price is set."""
        facts = {"gpu_hours": round(self.gpu_hours, 4), "core_hours": round(self.core_hours, 4)}
        cost = self.cost(engine)
        if cost is None:
            return facts
        facts["cost"] = round(cost, 4)
        if megapixels:
            facts["cost_per_megapixel"] = round(cost / megapixels, 6)
        return facts

    def cost(self, engine: EngineSettings) -> float | None:
        """Return the cost, in the currency of the prices; None if no price is set."""
        gpu, core = engine.price_per_gpu_hour, engine.price_per_core_hour
        if gpu is None and core is None:
            return None
        return self.gpu_hours * (gpu or 0.0) + self.core_hours * (core or 0.0)


def spent(detector_s: float, worker_s: float, settings: ResolvedSettings, *, gpu: bool) -> Spending:
    """Return what detectors and other workers reserve in so many seconds of theirs."""
    if gpu:
        gpu_hours = detector_s / settings.engine.detectors_per_gpu / _HOUR_S
        return Spending(gpu_hours, (detector_s + worker_s) / _HOUR_S)
    return Spending(0.0, (detector_s * settings.detect.threads + worker_s) / _HOUR_S)


def spent_by(
    use: DetectorUse,
    seconds: Iterable[Mapping[str, float]],
    ran_on: Iterable[str],
    settings: ResolvedSettings,
) -> Spending:
    """Return what a run reserved, given what its detectors did, and the seconds of its scenes."""
    worker_s = sum(
        spent_s
        for of_scene in seconds
        for stage, spent_s in of_scene.items()
        if stage not in DETECTOR_STAGES
    )
    gpu = any(kind.startswith("cuda") for kind in ran_on)
    return spent(use.computed_s + use.waited_s, worker_s, settings, gpu=gpu)


def spending_line(facts: Mapping[str, float]) -> str:
    """Return the figures of `Spending.facts` as one line of text."""
    hours = f"{facts['core_hours']:.2f} core hours"
    if facts["gpu_hours"]:
        hours = f"{facts['gpu_hours']:.2f} GPU hours, {hours}"
    if "cost" not in facts:
        return f"workers: {hours}"
    per = f" ({facts['cost_per_megapixel']:.3g} per Mpx)" if "cost_per_megapixel" in facts else ""
    return f"workers: {hours}; cost: {facts['cost']:.2f}{per}"
