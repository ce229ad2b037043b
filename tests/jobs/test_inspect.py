"""`scenesweep inspect` as a user reads it, and causes that are said once."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scenesweep.jobs import cli
from scenesweep.jobs.shared.causes import SharedCauses
from scenesweep.jobs.shared.progress import Display
from scenesweep.jobs.view import why_no_scene
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.storage import cloud_settings
from tests.rasters import write_raster

LACKING = cloud_settings.NO_CREDENTIALS["s3"]


@pytest.mark.parametrize("georeferenced", [True, False])
def test_facts_are_in_words_and_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], georeferenced: bool
) -> None:
    """No tuple, None, empty list or bool of Python's."""
    pixels = np.ones((4, 300, 400), np.uint8)
    pixels[:, :75] = 0
    names = ("red", "green", "blue", "nir")
    path = write_raster(
        tmp_path / "a.tif", pixels, nodata=0, descriptions=names, photometric="MINISBLACK"
    )
    more = [] if georeferenced else ["--pixel-coordinates"]
    assert cli.main(["inspect", str(path), "--model", "naip-trees", *more]) == 0
    said = capsys.readouterr().out
    assert not re.search(r"None|True|False|\(\)|\[|\]|\('|{", said.replace(str(path), ""))
    expected = [
        "size: 400 x 300 px (0.12 Mpx)",
        "bands: red, green, blue, nir",
        "nodata: 0",
        "acquired: unknown",
        "overviews: none",
        "cut bands: 1, 2, 3, 4",
        "cut grid: 400 x 300 px of the model, not resampled",
        "cut windows: 1 to look at, 0 skipped",
    ]
    if georeferenced:
        expected += ["ground sample distance: 0.6002 m", "coordinate system: EPSG:32611"]
        expected += ["upper left corner: 430000, 3775000"]
    else:
        expected += ["ground sample distance: unknown", "none: boxes are in pixels"]
    assert [line for line in expected if line not in said] == []
    share = re.search(r"valid pixels: ([\d.]+) % \(estimated from a sample\)", said)
    assert share is not None
    assert float(share[1]) == pytest.approx(75, abs=2)


def test_a_warning_of_a_scene_has_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((1, 30, 40), np.uint8))
    Path(f"{path}.msk").write_text("not a mask")
    assert cli.main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "  warning: a.tif.msk is not a readable TIFF: not used\n" in said


def test_missing_credentials_are_said_once_in_a_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Display(5, stream=io.StringIO()) as display:
        for n in range(4):
            href = f"s3://bucket/{n}.tif"
            reason = f"{href}: {LACKING}"
            display.count(SceneResult(href, str(n), "failed", reason=reason))
        display.count(SceneResult("a.tif", "a", "failed", reason="a.tif: no such file"))
    said = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert said == [
        f"failed: s3://bucket/0.tif: {LACKING}",
        "failed: a.tif: no such file",
        f"3 more scenes failed for the same reason: {LACKING}",
    ]


def test_other_causes_are_said_each_time() -> None:
    causes = SharedCauses()
    assert not any(causes.is_repeated("a.tif: no such file") for _ in range(3))
    assert not causes.is_repeated(f"a: {LACKING}")
    assert causes.lines() == []
    assert causes.is_repeated(f"b: {LACKING}")
    assert causes.lines() == [f"1 more scene failed for the same reason: {LACKING}"]


def test_a_page_without_its_scene_says_why() -> None:
    vrt = "trees/claremont.vrt"
    assert "is a VRT; add --driver VRT if you trust it" in why_no_scene(vrt, ("GTiff",))
    assert "is missing, changed or unreadable" in why_no_scene(vrt, ("GTiff", "VRT"))
    assert "no run report names the scene's file" in why_no_scene(None, ())


def test_inspect_imports_nothing_that_is_slow() -> None:
    code = (
        "import sys; import scenesweep.jobs.inspect; "
        "slow = 'torch', 'ray', 'pandas', 'scipy.optimize'; "
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
