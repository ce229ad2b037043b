"""Hours from acquisition to publication: a histogram in the report and for Prometheus."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from scenesweep.pipeline.engine.steps import DetectorUse
from scenesweep.pipeline.runs.freshness import UP_TO_HOURS, age_hours, freshness_of
from scenesweep.pipeline.runs.night_metrics import metrics_text
from scenesweep.pipeline.runs.report import Run, SceneResult, run_summary
from scenesweep.pipeline.runs.spending import Spending, spent_by
from tests.rasters import make_job

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_age_is_in_hours_whatever_the_zone() -> None:
    assert age_hours(None) is None
    assert age_hours(NOW - timedelta(hours=5), NOW) == 5
    assert age_hours(datetime(2026, 11, 21, 7), NOW) == 5  # a naive time is UTC
    there = (NOW - timedelta(hours=5)).astimezone(timezone(timedelta(hours=9)))
    assert age_hours(there, NOW) == 5


def test_each_scene_is_in_one_bin() -> None:
    assert freshness_of([]) is None
    assert freshness_of([None]) is None
    fresh = freshness_of([None, 0.5, 1.0, 1.1, 30.0, 10_000.0])
    assert fresh is not None
    assert (fresh.scenes, fresh.median_hours) == (5, 1.1)
    assert fresh.counts == (2, 1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert len(fresh.counts) == len(UP_TO_HOURS) + 1
    assert fresh.cumulative()[-1] == ("+Inf", 5)
    assert [count for _, count in fresh.cumulative()] == [2, 3, 3, 3, 3, 4, 4, 4, 4, 5]


def test_report_and_metrics_have_them() -> None:
    results = tuple(SceneResult("a", "a", "done", age_hours=age) for age in (0.5, 20.0, None))
    run = Run("r", NOW, 60.0, results, night="n")
    summary = run_summary(run, make_job(Path("out")))
    assert summary["freshness"]["counts"] == (1, 0, 0, 0, 1, 0, 0, 0, 0, 0)  # type: ignore[index]
    text = metrics_text(run, "n")
    bins = re.findall(r'freshness_hours_bucket\{night="n",le="(\S+)"\} (\d+)', text)
    assert bins[0] == ("1", "1")
    assert bins[-1] == ("+Inf", "2")
    assert 'scenesweep_last_run_freshness_hours_sum{night="n"} 20.5\n' in text
    assert 'scenesweep_last_run_freshness_hours_count{night="n"} 2\n' in text
    assert "freshness" not in metrics_text(Run("r", NOW, 60.0, ()), "n")


def test_a_gpu_costs_its_time_and_a_core() -> None:
    job = make_job(Path("out"), "engine.detectors_per_gpu=2", "detect.threads=4")
    use = DetectorUse(computed_s=3000.0, waited_s=600.0)
    seconds = [{"plan": 60.0, "read": 1000.0, "detect": 3000.0, "stage": 50.0, "publish": 740.0}]
    on_gpus = spent_by(use, seconds, ["cuda bfloat16"], job.settings)
    assert on_gpus == Spending(0.5, 1.5)
    assert spent_by(use, seconds, ["cpu float32"], job.settings) == Spending(0.0, 4.5)
    assert on_gpus.facts(job.settings.engine, 10.0) == {"gpu_hours": 0.5, "core_hours": 1.5}
    priced = job.settings.engine.model_copy(update={"price_per_gpu_hour": 2.0})
    facts = on_gpus.facts(priced, 10.0)
    assert (facts["cost"], facts["cost_per_megapixel"]) == pytest.approx((1.0, 0.1))
    priced = priced.model_copy(update={"price_per_core_hour": 0.1})
    assert on_gpus.facts(priced, 0.0).keys() == {"gpu_hours", "core_hours", "cost"}
    assert on_gpus.cost(priced) == pytest.approx(1.15)
