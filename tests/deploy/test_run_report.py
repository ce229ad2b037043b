"""docs/reference/run-report.schema.json describes real reports, and its page lists every key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import shapely

from scenesweep.jobs import cli
from tests.rasters import paint_squares, write_raster
from tests.small_models import a_model

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
SCHEMA: dict[str, Any] = json.loads((REFERENCE / "run-report.schema.json").read_text())
RESULT: dict[str, Any] = SCHEMA["properties"]["results"]["items"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Reports of three runs: one scene done, one failed; up to date; with an area."""
    folder = tmp_path_factory.mktemp("report")
    a_model(folder)
    pixels, _ = paint_squares(200, 150, largest=10, seed=1)
    scene = write_raster(folder / "scene.tif", pixels)
    bad = folder / "bad.tif"
    bad.write_text("text")
    area = folder / "area.geojson"
    area.write_text(shapely.to_geojson(shapely.box(-118, 34, -117, 35)))
    for out, arguments, code in (
        ("first", (scene, bad), 3),
        ("first", (scene,), 0),
        ("second", (scene, "--aoi", area), 0),
    ):
        words = ["--model", folder / "m.safetensors", "--out", folder / out, "--address", "none"]
        assert cli.main(["detect", *map(str, (*arguments, *words))]) == code
    paths = sorted(folder.glob("*/runs/*.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_real_reports_satisfy_the_schema(reports: list[dict[str, Any]]) -> None:
    assert len(reports) == 3
    statuses = {result["status"] for report in reports for result in report["results"]}
    assert statuses == {"done", "failed", "up-to-date"}
    assert sum(report["area"] is not None for report in reports) == 1
    for report in reports:
        jsonschema.validate(report, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("change", [{"new_key": 1}, {"exit_code": 99}, {"detections": "many"}])
def test_the_schema_rejects_other_reports(
    reports: list[dict[str, Any]], change: dict[str, object]
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(reports[0] | change, SCHEMA, jsonschema.Draft202012Validator)


def test_the_schema_names_every_key_and_no_other(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert list(report) == list(SCHEMA["properties"]) == SCHEMA["required"]
        for result in report["results"]:
            assert list(result) == list(RESULT["properties"]) == RESULT["required"]


def test_the_page_describes_each_key_as_the_schema_does() -> None:
    page = (REFERENCE / "run-report.md").read_text()
    for properties in (SCHEMA["properties"], RESULT["properties"]):
        for key, value in properties.items():
            assert f"| `{key}` | {value['description']} |\n" in page
