"""Detections are compared with layers when they are published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import shapely

from scenesweep.pipeline.geometry.layers import LayerSettings, open_layers
from scenesweep.pipeline.planning.plan import Job
from tests.rasters import UTM, make_job, paint_squares, write_raster
from tests.sweeps import digests, published, sweep

WEST, NORTH = 430_000, 3_775_000


def with_layers(job: Job, settings: LayerSettings) -> Job:
    shown = job.settings.model_copy(update={"layers": settings.names_only()})
    return replace(job, settings=shown, layers=open_layers(settings))


def test_columns_of_layers(tmp_path: Path) -> None:
    pixels, _ = paint_squares(400, 300, largest=10, seed=2)
    scene = write_raster(tmp_path / "s.tif", pixels)
    plain = published(sweep([scene], make_job(tmp_path / "plain"))[0])
    assert plain[["excluded", "near_id", "near_m"]].isna().all(axis=None)
    land = gpd.GeoDataFrame(geometry=[shapely.box(WEST, NORTH - 300, WEST + 120, NORTH)], crs=UTM)
    rigs = gpd.GeoDataFrame(
        {"id": ["r1"]}, geometry=[shapely.Point(WEST + 120, NORTH - 90)], crs=UTM
    )
    land.to_file(tmp_path / "land.gpkg")
    rigs.to_file(tmp_path / "rigs.gpkg")
    settings = LayerSettings(
        exclude=(str(tmp_path / "land.gpkg"),), near=f"{tmp_path}/rigs.gpkg:60"
    )
    results = {}
    for name, given in (("one", ()), ("two", ("engine.pieces_from_windows=2",))):
        job = with_layers(make_job(tmp_path / name, *given), settings)
        (results[name],) = sweep([scene], job)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    frame = published(results["one"])
    assert frame.detection_id.tolist() == plain.detection_id.tolist()
    x = (frame.x_min + frame.x_max) / 2 * 0.6
    y = (frame.y_min + frame.y_max) / 2 * 0.6
    np.testing.assert_array_equal(frame.excluded, x < 120)
    metres = np.hypot(x - 120, y - 90)
    near = metres < 59.5
    np.testing.assert_allclose(frame.near_m[near], metres[near], rtol=0.002, atol=0.02)
    assert set(frame.near_id[near]) == {"r1"}
    assert frame.near_m[metres > 60.5].isna().all()
    assert frame.near_id[metres > 60.5].isna().all()
    record = json.loads(pq.read_schema(results["one"].files["detections"]).metadata[b"scenesweep"])
    assert record["settings"]["layers"]["exclude"] == ["land.gpkg"]


def test_a_changed_layer_publishes_again(tmp_path: Path) -> None:
    pixels, _ = paint_squares(200, 200, largest=10, seed=2)
    scene = write_raster(tmp_path / "s.tif", pixels)
    path = tmp_path / "land.geojson"
    seen = []
    for width in (60, 90, 90):
        box = shapely.box(WEST, NORTH - 300, WEST + width, NORTH)
        gpd.GeoDataFrame(geometry=[box], crs=UTM).to_crs(4326).to_file(path)
        job = with_layers(make_job(tmp_path / "out"), LayerSettings(exclude=(str(path),)))
        (result,) = sweep([scene], job)
        seen.append((result.status, int(published(result).excluded.sum())))
    assert [status for status, _ in seen] == ["done", "done", "up-to-date"]
    assert seen[0][1] < seen[1][1] == seen[2][1]
