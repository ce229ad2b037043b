"""Coverage files tell where nothing was found from where nobody looked."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from scenesweep.pipeline.publish.coverage import COLUMNS, SCHEMA, read_ground
from tests.rasters import make_card, make_job, paint_squares, write_raster
from tests.sweeps import digests, sweep

DATE = "scenes.acquired_at=2026-11-20T10:00:00Z"
COVERAGE = "coverage/date=2026-11-20"
PX_KM2 = 0.36e-6


def painted(folder: Path, *, name: str = "scene", width: int = 400, height: int = 300) -> Path:
    """Write a scene whose left half is nodata."""
    pixels, _ = paint_squares(width, height, largest=10, seed=4)
    pixels[:, :, : width // 2] = 0
    return write_raster(folder / f"{name}.tif", pixels, nodata=0)


def test_every_scene_has_a_coverage_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    scene = painted(tmp_path)
    empty = write_raster(tmp_path / "empty.tif", np.zeros((1, 200, 200), np.uint8), nodata=0)
    card = make_card(class_thresholds={"square": 0.5})
    result, nothing = sweep([scene, empty], make_job(out, DATE, card=card))
    frame = gpd.read_parquet(out / COVERAGE).set_index("scene_id")
    assert frame.crs == "OGC:CRS84"
    assert list(frame.index) == ["empty", "scene"]
    row = frame.loc["scene"]
    assert row.observed_km2 == pytest.approx(400 * 300 / 2 * PX_KM2, rel=0.06)
    assert row.windows == result.windows
    assert dict(row.thresholds) == {"square": 0.5}
    assert row.exact
    assert row.geometry.is_valid
    assert frame.loc["empty"].observed_km2 == 0
    assert frame.loc["empty"].geometry is None
    assert len(read_ground(Path(nothing.files["coverage"]))) == 0
    assert pq.read_schema(out / COVERAGE / "scene.parquet").equals(SCHEMA)
    assert list(COLUMNS) == SCHEMA.names


def test_density_is_one_query(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (result,) = sweep([painted(tmp_path)], make_job(out, DATE))
    rows = duckdb.execute(f"""
        select c.scene_id, count(d.detection_id) as n, any_value(c.observed_km2) as km2
        from '{out}/coverage/**/*.parquet' c
        left join '{out}/detections/**/*.parquet' d using (scene_id, date)
        group by all
    """).fetchall()
    assert rows == [("scene", result.detections, pytest.approx(0.0216, rel=0.06))]


def test_the_item_has_the_observed_ground(tmp_path: Path) -> None:
    (result,) = sweep([painted(tmp_path)], make_job(tmp_path / "out", DATE))
    item = json.loads(Path(result.files["item"]).read_text())
    (ground,) = read_ground(Path(result.files["coverage"]))
    shape = shapely.geometry.shape(item["geometry"])
    assert shape.symmetric_difference(ground).area < 0.001 * ground.area
    np.testing.assert_allclose(item["bbox"], shape.bounds)
    assert item["properties"]["scenesweep:observed_km2"] == pytest.approx(0.0216, rel=0.06)
    assert item["assets"]["coverage"]["href"] == f"../{COVERAGE}/scene.parquet"


def test_pixel_scenes_have_no_coverage(tmp_path: Path) -> None:
    job = make_job(tmp_path / "out", DATE, "scenes.pixel_coordinates=true")
    (result,) = sweep([painted(tmp_path)], job)
    assert "coverage" not in result.files


def test_a_rerun_repairs_and_moves_the_file(tmp_path: Path) -> None:
    out, scene = tmp_path / "out", painted(tmp_path)
    sweep([scene], make_job(out, DATE))
    before = digests(out)
    path = out / COVERAGE / "scene.parquet"
    path.write_bytes(b"x")
    (result,) = sweep([scene], make_job(out, DATE))
    assert result.status == "done"
    assert digests(out) == before
    sweep([scene], make_job(out, "scenes.acquired_at=2026-11-21T10:00:00Z"))
    assert not path.exists()
    assert (out / "coverage/date=2026-11-21/scene.parquet").is_file()


def test_pieces_write_the_same_coverage(tmp_path: Path) -> None:
    scene = painted(tmp_path)
    sweep([scene], make_job(tmp_path / "a", DATE))
    sweep([scene], make_job(tmp_path / "b", DATE, "engine.pieces_from_windows=2"))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
