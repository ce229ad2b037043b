"""`scenesweep metrics`, and the alerts: they use only metrics that a run exports."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from scenesweep.jobs import cli
from scenesweep.jobs.metrics import server
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.runs.canary import Canary
from scenesweep.pipeline.runs.drift import Unusual
from scenesweep.pipeline.runs.expected import Expected
from scenesweep.pipeline.runs.metrics import PROGRESS, TOTALS, USE
from scenesweep.pipeline.runs.night_metrics import figures_of, write_metrics
from scenesweep.pipeline.runs.report import Run, SceneResult

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/kubernetes/components/alerts/rules.yaml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["spec"]["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
THEN = datetime(2026, 11, 21, 4, tzinfo=UTC)
RESULTS = (SceneResult("a", "a", "done", detections=3), SceneResult("b", "b", "quarantined"))
UNUSUAL = Unusual("score_p50", 0.2, 0.6, 0.5, 0.7, 14)


def write_two_nights(out: Path) -> None:
    """Write a good night and one with everything that an alert is for."""
    write_metrics(Run("r1", THEN, 60.0, RESULTS[:1], night="good"), "good", out)
    bad = Run(
        "r2",
        THEN,
        60.0,
        (*RESULTS, SceneResult("c", "c", "failed")),
        unusual=(UNUSUAL,),
        compared_nights=14,
        canary=Canary("changed", ("x",)),
        expected=Expected(1, ("c",), (), ("d",)),
    )
    write_metrics(bad, "bad", out)


def test_the_figures_of_all_schedules_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_two_nights(tmp_path)
    assert cli.main(["metrics", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    types = [line for line in lines if line.startswith("#")]
    assert len(types) == len(set(types))
    for line in (
        'scenesweep_last_run_exit_code{night="good"} 0',
        'scenesweep_last_run_exit_code{night="bad"} 3',
        'scenesweep_last_run_unusual{night="bad",figure="score_p50"} 1',
        'scenesweep_last_run_unusual{night="bad",figure="empty_share"} 0',
        'scenesweep_last_run_canary{night="bad"} 0',
        'scenesweep_last_run_expected{night="bad",state="missing"} 1',
    ):
        assert line in lines
    assert not [line for line in lines if "canary" in line and "good" in line]
    free = next(line for line in lines if line.startswith("scenesweep_out_free_bytes "))
    assert int(free.split()[1]) > 0
    assert cli.main(["metrics", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == ""


def test_they_are_served_and_read_again_for_each_request(tmp_path: Path) -> None:
    with server(tmp_path, "127.0.0.1:0") as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{serving.server_port}"
        try:
            write_two_nights(tmp_path)
            with urllib.request.urlopen(f"{url}/metrics") as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                assert 'exit_code{night="bad"} 3\n' in answer.read().decode()
            with pytest.raises(urllib.error.HTTPError, match="404") as caught:
                urllib.request.urlopen(f"{url}/other")
            caught.value.close()
        finally:
            serving.shutdown()
            thread.join()


@pytest.mark.parametrize("address", ["9100", "host:", "127.0.0.1:70000", "192.0.2.1:9100"])
def test_a_wrong_address_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=f"--listen {address}: "):
        server(tmp_path, address)


def test_alerts_use_only_metrics_that_exist(tmp_path: Path) -> None:
    write_two_nights(tmp_path)
    of_nights = set(re.findall(r"^(\w+)", figures_of(tmp_path), re.M))
    of_runs = {f"ray_scenesweep_{name}" for name in (*TOTALS, *PROGRESS, *USE)}
    used = re.findall(r"(?:ray_)?scenesweep_\w+", " ".join(r["expr"] for r in ALERTS.values()))
    assert set(used) <= of_nights | of_runs
    assert len(ALERTS) == 10


def test_every_alert_has_its_section_in_the_runbook() -> None:
    page = (ROOT / "docs/alerts.md").read_text()
    headings = re.findall(r"^## (Scenesweep\w+)$", page, re.M)
    assert headings == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_promtool_accepts_the_rules_and_they_fire(tmp_path: Path) -> None:
    """The series are those of the two nights; Ray's are written as a run exports them."""
    write_two_nights(tmp_path / "out")
    lines = [line for line in figures_of(tmp_path / "out").splitlines() if line[0] != "#"]
    series = [
        {"series": name, "values": f"{value}x120"}
        for name, value in (line.rsplit(" ", 1) for line in lines)
        if not name.startswith("scenesweep_out_")
    ]
    series += [{"series": "scenesweep_out_free_bytes", "values": "5x120"}]
    series += [{"series": "scenesweep_out_size_bytes", "values": "100x120"}]
    tags = 'run="r",night="n"'
    for run, computed, detectors in (
        ("idle", "0+1x120", 2),
        ("busy", "0+110x120", 2),
        ("none", "0x120", 0),
    ):
        tags = f'run="{run}",night="n"'
        series += [
            {"series": f"ray_scenesweep_windows_known{{{tags}}}", "values": "900x120"},
            {"series": f"ray_scenesweep_windows_done{{{tags}}}", "values": "100x120"},
            {"series": f"ray_scenesweep_detectors{{{tags}}}", "values": f"{detectors}x120"},
            {
                "series": f'ray_scenesweep_detector_seconds{{activity="computing",{tags}}}',
                "values": computed,
            },
        ]
    plain = [  # promtool compares annotations too, with their values
        group
        | {
            "rules": [
                {k: v for k, v in rule.items() if k != "annotations"} for rule in group["rules"]
            ]
        }
        for group in GROUPS
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": plain}))
    success = 'scenesweep_last_success_timestamp_seconds{night="good"}'
    series = [one for one in series if one["series"] != success]
    series.append({"series": success, "values": "-99999x120"})
    tests = [
        {"interval": "1m", "input_series": series, "alert_rule_test": [*expected_alerts()]},
        {
            "interval": "1m",
            "input_series": [],
            "alert_rule_test": [alert("ScenesweepNoFigures", 90, {})],
        },
    ]
    test_file = tmp_path / "test.yaml"
    test_file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    for words in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
        done = subprocess.run(["promtool", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def alert(name: str, minutes: int, *labels: dict[str, str]) -> dict[str, Any]:
    """Return what promtool expects of an alert: one firing instance for each of `labels`."""
    severity = {"severity": ALERTS[name]["labels"]["severity"]}
    return {
        "eval_time": f"{minutes}m",
        "alertname": name,
        "exp_alerts": [{"exp_labels": severity | one} for one in labels],
    }


def expected_alerts() -> list[dict[str, Any]]:
    bad, of_run = {"night": "bad"}, {"night": "n"}
    return [
        alert("ScenesweepRunFailed", 5, bad),
        alert("ScenesweepNoSuccess", 5, {"night": "good"}),
        alert("ScenesweepNoFigures", 90),
        alert("ScenesweepScenesQuarantined", 5, bad | {"status": "quarantined"}),
        alert("ScenesweepScenesMissing", 5, bad | {"state": "failed"}, bad | {"state": "missing"}),
        alert("ScenesweepUnusualNight", 5, bad | {"figure": "score_p50"}),
        alert("ScenesweepCanaryFailed", 5, bad),
        alert("ScenesweepDiskNearlyFull", 30, {}),
        alert("ScenesweepDetectorsIdle", 60, of_run | {"run": "idle"}),
        alert("ScenesweepNoDetector", 60, of_run | {"run": "none"}),
    ]
