"""Which nights are unusual: simulated nights, and what is read from reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenesweep.pipeline.publish.rows import count_scores
from scenesweep.pipeline.runs.drift import (
    FIGURES,
    LEAST_NIGHTS,
    NIGHTS,
    earlier_nights,
    night_figures,
    quantile_of_counts,
    unusual_figures,
)
from scenesweep.pipeline.runs.report import Run, SceneResult, write_report
from tests.rasters import make_job

THEN = datetime(2026, 11, 21, 4, tzinfo=UTC)
Night = dict[str, float]


def simulated(rng: np.random.Generator, *, scenes: int, spread: float) -> Night:
    """Return the figures of a night in which nothing is wrong."""
    count = 1 + rng.poisson(scenes - 1)
    return {
        "scenes": count,
        "detections_per_km2": 300 * float(np.exp(rng.normal(0, spread))),
        "score_p10": 0.35 + rng.normal(0, 0.01),
        "score_p50": 0.6 + rng.normal(0, 0.02),
        "score_p90": 0.85 + rng.normal(0, 0.01),
        "empty_share": rng.binomial(count, 0.1) / count,
        "observed_km2": 36 * count * float(np.exp(rng.normal(0, 0.1))),
        "seconds_per_megapixel": 2 * float(np.exp(rng.normal(0, 0.1))),
    }


@pytest.mark.parametrize(
    ("scenes", "spread", "nights", "most"),
    [(40, 0.1, 14, 0.01), (40, 0.4, 14, 0.01), (10, 0.4, 14, 0.02), (40, 0.4, 10, 0.02)],
)
def test_false_alarms_are_rare(scenes: int, spread: float, nights: int, most: float) -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        earlier = [simulated(rng, scenes=scenes, spread=spread) for _ in range(nights)]
        alarms += bool(unusual_figures(simulated(rng, scenes=scenes, spread=spread), earlier))
    assert alarms / 1000 <= most


@pytest.mark.parametrize(
    ("figure", "change"),
    [
        ("detections_per_km2", lambda x: x / 4),
        ("detections_per_km2", lambda x: x * 4),
        ("score_p50", lambda x: x - 0.2),
        ("score_p90", lambda x: x - 0.12),
        ("empty_share", lambda x: 0.8),
        ("observed_km2", lambda x: x / 10),
        ("seconds_per_megapixel", lambda x: x * 3),
    ],
)
def test_a_large_change_is_found_and_named(figure: str, change: Callable[[float], float]) -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        earlier = [simulated(rng, scenes=40, spread=0.1) for _ in range(NIGHTS)]
        night = simulated(rng, scenes=40, spread=0.1)
        night[figure] = change(night[figure])
        found += figure in {one.figure for one in unusual_figures(night, earlier)}
    assert found >= 190


def test_single_odd_nights_do_not_hide_the_next_one() -> None:
    """Mean and standard deviation would: this is why the median and the MAD are used."""
    usual = [{"detections_per_km2": 300.0 + i} for i in range(NIGHTS - 4)]
    odd = [{"detections_per_km2": 5000.0}] * 4
    (one,) = unusual_figures({"detections_per_km2": 5000.0}, [*usual, *odd])
    assert one.median == pytest.approx(307, abs=2)
    assert "detections_per_km2 is 5000; the median of 14 nights is 30" in str(one)


def test_few_nights_and_equal_nights_are_no_reason() -> None:
    night = dict.fromkeys(FIGURES, 0.5)
    assert unusual_figures(dict.fromkeys(FIGURES, 9.0), [night] * (LEAST_NIGHTS - 1)) == ()
    close = dict.fromkeys(FIGURES, 0.52)
    assert unusual_figures(close, [night] * NIGHTS) == ()
    assert len(unusual_figures(dict.fromkeys(FIGURES, 9.0), [night] * NIGHTS)) == 7
    assert unusual_figures({}, [night] * NIGHTS) == ()


def swept(detections: int, megapixels: float = 100.0, **more: Any) -> SceneResult:
    values: dict[str, Any] = {"seconds": {"read": 10.0, "detect": 190.0}} | more
    status = values.pop("status", "done")
    return SceneResult("a", "a", status, detections=detections, megapixels=megapixels, **values)


def test_figures_are_those_of_scenes_swept_in_one_run() -> None:
    counts = count_scores(np.asarray([0.31, 0.52, 0.53, 0.9], np.float32))
    results = [
        swept(4, score_counts=counts),
        swept(0, score_counts=count_scores(np.zeros(0, np.float32))),
        swept(50, resumed_shards=3),
        swept(70, 0.0, status="up-to-date"),
        swept(0, status="failed"),
    ]
    figures = night_figures(results, 0.5)
    assert figures["scenes"] == 2
    assert figures["observed_km2"] == 50  # 200 Mpx of 0.25 m2
    assert figures["detections_per_km2"] == pytest.approx(4 / 50)
    assert figures["empty_share"] == 0.5
    assert figures["seconds_per_megapixel"] == 2
    assert figures["score_p50"] == pytest.approx(0.525, abs=0.03)
    assert night_figures(results[2:], 0.5) == {}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_quantiles_of_counts_are_those_of_the_scores(share: float) -> None:
    scores = np.random.default_rng(0).beta(4, 2, 5000).astype(np.float32)
    found = quantile_of_counts(count_scores(scores), share)
    assert found == pytest.approx(float(np.quantile(scores, share)), abs=0.01)


def test_only_nights_of_this_schedule_and_model_are_read(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    for day in range(1, 20):
        run = Run(f"202611{day:02}T040000-0a1b2c", THEN, 9.0, (swept(day),), night="nightly")
        write_report(run, job)
    other = Run("20261130T040000-0a1b2c", THEN, 9.0, (swept(1),), night="backfill")
    write_report(other, job)
    nothing = Run("20261130T050000-0a1b2c", THEN, 9.0, (), night="nightly")
    write_report(nothing, job)
    (tmp_path / "runs" / "20261130T060000-0a1b2c.json").write_text("[1]")
    old = json.loads((tmp_path / "runs" / "20261119T040000-0a1b2c.json").read_text())
    del old["figures"]
    (tmp_path / "runs" / "20261119T040000-0a1b2c.json").write_text(json.dumps(old))
    nights = earlier_nights(tmp_path, night="nightly", model_sha256=job.model_sha256)
    km2 = 100 * job.card.gsd_m**2
    expected = [pytest.approx(day / km2, rel=1e-4) for day in range(5, 19)]
    assert [night["detections_per_km2"] for night in nights] == expected
    assert earlier_nights(tmp_path, night="nightly", model_sha256="other") == []
