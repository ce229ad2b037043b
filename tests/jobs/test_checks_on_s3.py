"""The canary, the comparison of nights and the figures of the last run with an output on S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenesweep.jobs import cli
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.runs.drift import earlier_nights
from scenesweep.pipeline.storage.paths import Output
from tests.rasters import paint_squares, write_raster
from tests.small_models import a_model
from tests.stores import bucket_served


def test_a_night_on_s3_has_its_canary_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_model(tmp_path)
    for number in (1, 2):
        pixels, _ = paint_squares(96, 96, largest=10, seed=number)
        write_raster(tmp_path / "scenes" / f"s{number}.tif", pixels)
    with bucket_served(monkeypatch) as out:
        words = ["--model", str(tmp_path / "m.safetensors"), "--out", str(out), "--address", "none"]
        command = ["detect", str(tmp_path / "scenes"), *words, "--set", "name=nightly"]
        for _ in range(2):
            assert cli.main([*command, "--limit", "1"]) == 0
        reports = [
            json.loads(path.read_text(encoding="utf-8")) for path in Output(out).run_reports()
        ]
        assert [report["canary"]["state"] for report in reports] == ["recorded", "good"]
        assert [report["compared_nights"] for report in reports] == [0, 0]  # too few nights
        sha256 = open_model(str(tmp_path / "m.safetensors")).sha256
        assert len(earlier_nights(out, night="nightly", model_sha256=sha256)) == 2
        capsys.readouterr()
        assert cli.main(["metrics", str(out)]) == 0
        printed = capsys.readouterr().out
    assert 'scenesweep_last_run_exit_code{night="nightly"} 0\n' in printed
    assert 'scenesweep_last_run_canary{night="nightly"} 1\n' in printed
    assert "scenesweep_out_free_bytes" not in printed
