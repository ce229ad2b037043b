"""Compare the figures of a night with those of the nights before, and name what is unusual.

A figure x is unusual if its distance from the median of the earlier nights is larger than
`SPREADS` times their spread. The spread is 1.4826 MAD (median absolute deviation): it estimates the
standard deviation of a normal distribution, and single odd nights do not change it (P. J.
Rousseeuw, C. Croux, "Alternatives to the Median Absolute Deviation", JASA 88, 1993). It is at least
`floor`, so that nights that were equal by chance do not make every other night unusual. Figures
that vary by factors are compared as logarithms. The share of empty scenes also varies because a
night has few scenes, so its spread is at least the standard deviation of a binomial share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from scenesweep.pipeline.publish.rows import SCORE_BINS
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output

NIGHTS = 14
"""So many earlier nights are compared with."""
LEAST_NIGHTS = 10
"""With fewer earlier nights, nothing is compared."""
SPREADS = 6.0
"""Distance from the median, in spreads, from which a figure is unusual."""
_READ_REPORTS = 100  # how far to look back for nights with figures: runs by hand lie between them


@dataclass(frozen=True, slots=True)
class Scale:
    """How a figure is compared: its smallest spread, as a share of it if it varies by factors."""

    floor: float
    by_factors: bool


FIGURES: Mapping[str, Scale] = {
    "detections_per_km2": Scale(0.05, True),
    "score_p10": Scale(0.01, False),
    "score_p50": Scale(0.01, False),
    "score_p90": Scale(0.01, False),
    "empty_share": Scale(0.02, False),
    "observed_km2": Scale(0.1, True),
    "seconds_per_megapixel": Scale(0.05, True),
}
"""The figures of a night that are compared."""


class Swept(Protocol):
    """What this module reads of `pipeline.runs.report.SceneResult`."""

    @property
    def status(self) -> str: ...
    @property
    def detections(self) -> int: ...
    @property
    def megapixels(self) -> float: ...
    @property
    def resumed_shards(self) -> int: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...
    @property
    def score_counts(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Unusual:
    """A figure of this night outside `low` to `high`, which the `nights` before it allow."""

    figure: str
    value: float
    median: float
    low: float
    high: float
    nights: int

    def __str__(self) -> str:
        return (
            f"{self.figure} is {self.value:.4g}; the median of {self.nights} nights is "
            f"{self.median:.4g}, and {self.low:.4g} to {self.high:.4g} are usual"
        )


def quantile_of_counts(counts: Sequence[int], share: float) -> float:
    """Return the score below which a share of the counted scores lies, linear within a bin."""
    total, before = sum(counts), 0
    for i, count in enumerate(counts):
        if count and before + count >= share * total:
            return (i + (share * total - before) / count) / SCORE_BINS
        before += count
    return 1.0


def night_figures(results: Iterable[Swept], gsd_m: float) -> dict[str, float]:
    """Return the figures of the scenes that a run swept from the first to the last shard.

    `gsd_m` is the pixel size of the model's grid. Figures that need a detection are left out if
    there is none, and there are no figures if no scene was swept.
    """
    swept = [r for r in results if r.status == "done" and r.megapixels and not r.resumed_shards]
    megapixels = sum(result.megapixels for result in swept)
    if not megapixels:
        return {}
    km2 = megapixels * gsd_m**2
    figures = {
        "detections_per_km2": sum(result.detections for result in swept) / km2,
        "empty_share": sum(not result.detections for result in swept) / len(swept),
        "observed_km2": km2,
        "seconds_per_megapixel": sum(sum(r.seconds.values()) for r in swept) / megapixels,
    }
    counted = [result.score_counts for result in swept if len(result.score_counts) == SCORE_BINS]
    counts = [sum(bins) for bins in zip(*counted, strict=True)]
    if sum(counts):
        for percent in (10, 50, 90):
            figures[f"score_p{percent}"] = quantile_of_counts(counts, percent / 100)
    rounded = {name: float(f"{figures[name]:.6g}") for name in FIGURES if name in figures}
    return {"scenes": len(swept), **rounded}


def unusual_figures(
    figures: Mapping[str, float], earlier: Sequence[Mapping[str, float]]
) -> tuple[Unusual, ...]:
    """Return the unusual figures of a night, given those of the nights before, newest last."""
    found = []
    for name, scale in FIGURES.items():
        before = [night[name] for night in earlier if name in night][-NIGHTS:]
        if name in figures and len(before) >= LEAST_NIGHTS:
            if name == "empty_share":
                scale = replace(scale, floor=_share_floor(before, figures.get("scenes", 1)))
            low, median, high = usual_range(before, scale)
            if not low <= figures[name] <= high:
                found.append(Unusual(name, figures[name], median, low, high, len(before)))
    return tuple(found)


def usual_range(values: Sequence[float], scale: Scale) -> tuple[float, float, float]:
    """Return the lowest usual value, the median, and the highest usual value."""
    if scale.by_factors:
        low, median, high = usual_range(
            [math.log(max(value, 1e-9)) for value in values], Scale(scale.floor, False)
        )
        return math.exp(low), math.exp(median), math.exp(high)
    median = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(np.asarray(values) - median)))
    reach = SPREADS * max(spread, scale.floor)
    return median - reach, median, median + reach


def _share_floor(shares: Sequence[float], scenes: float) -> float:
    """Return the standard deviation of a share of so many scenes, for the median of `shares`."""
    share = min(max(float(np.median(shares)), 1 / (scenes + 1)), scenes / (scenes + 1))
    return max(FIGURES["empty_share"].floor, math.sqrt(share * (1 - share) / scenes))


def earlier_nights(out: Location, *, night: str, model_sha256: str) -> list[dict[str, float]]:
    """Return the figures of the last nights of this schedule and model, the newest last.

    Reports of other schedules or models, without figures, or of an older format are left out.
    """
    found: list[dict[str, float]] = []
    for path in reversed(Output(out).run_reports()[-_READ_REPORTS:]):
        if len(found) == NIGHTS:
            break
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            if (report["name"], report["model"]["sha256"]) != (night, model_sha256):
                continue
            figures = _numbers(report["figures"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if figures and report["exit_code"] in (0, 3):
            found.append(figures)
    return found[::-1]


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(figures[name]) for name in ("scenes", *FIGURES) if name in figures}
