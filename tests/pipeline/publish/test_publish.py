"""The published files, read as users read them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from pyproj import Transformer
from rasterio.transform import from_origin

from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.flow import prepare
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.publish import manifest, quicklook
from scenesweep.pipeline.publish.publish import publish
from scenesweep.pipeline.publish.quicklook import scene_picture
from scenesweep.pipeline.publish.table import SCHEMA
from scenesweep.pipeline.raster.inspect import inspect
from tests.rasters import UTM, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import sweep


def many(count: int, width: int, height: int) -> Candidates:
    rng = np.random.default_rng(0)
    corner = rng.random((count, 2)) * [width - 10, height - 10]
    return Candidates(
        np.hstack([corner, corner + rng.uniform(2, 10, (count, 2))]),
        rng.random(count).astype(np.float32),
        np.zeros(count, np.int16),
        np.zeros(count, np.bool_),
    )


def test_duckdb_and_geopandas_read_the_folder_as_one_table(tmp_path: Path) -> None:
    """Two UTM zones, a date and no date, and a scene where nothing was found."""
    pixels, truth = paint_squares(200, 150, largest=10, seed=1)
    tags = {"TIFFTAG_DATETIME": "2026:05:31 18:22:01"}
    north = write_raster(tmp_path / "a.tif", pixels, tags=tags)
    other = write_raster(
        tmp_path / "b.tif", pixels, crs="EPSG:32645", transform=from_origin(4e5, 3e6, 0.6, 0.6)
    )
    empty = write_raster(tmp_path / "c.tif", np.ones_like(pixels), tags=tags)
    sweep([north, other, empty], make_job(tmp_path / "out"))
    folder = tmp_path / "out" / "detections"
    frame = gpd.read_parquet(folder)
    assert len(frame) == 2 * len(truth)
    assert frame.crs == "OGC:CRS84"
    assert frame.detection_id.is_unique
    assert set(frame["crs"]) == {UTM, "EPSG:32645"}
    rows = duckdb.execute(
        f"select scene_id, date, count(*), min(center_lon) from '{folder}/**/*.parquet' "
        "group by all order by all"
    ).fetchall()
    assert [row[:3] for row in rows] == [
        ("a", "2026-05-31", len(truth)),
        ("b", "unknown", len(truth)),
    ]
    assert rows[0][3] == pytest.approx(-117.76, abs=0.01)
    assert rows[1][3] == pytest.approx(86.0, abs=0.1)
    for path in folder.rglob("*.parquet"):
        assert pq.read_schema(path).equals(SCHEMA)


def test_a_bbox_filter_prunes_row_groups(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "s.tif", np.ones((1, 2000, 2000), np.uint8))
    job = make_job(tmp_path / "out", "publish.formats=[]")
    plan = plan_scene(ref_of(scene), job)
    path = publish(many(250_000, 2000, 2000), plan, job).table
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups == 3
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    extents = [
        [
            getattr(metadata.row_group(g).column(names.index(f"bbox.{side}")).statistics, bound)
            for side, bound in (("xmin", "min"), ("ymin", "min"), ("xmax", "max"), ("ymax", "max"))
        ]
        for g in range(3)
    ]
    every = gpd.read_parquet(path)
    west, south, east, north = every.geometry[0].buffer(3e-5).bounds
    hit = [e for e in extents if e[0] <= east and e[2] >= west and e[1] <= north and e[3] >= south]
    assert len(hit) == 1
    read = gpd.read_parquet(path, bbox=(west, south, east, north))
    assert 0 < len(every.cx[west:east, south:north]) == len(read) < 2000


def test_the_file_says_what_it_was_made_from(tmp_path: Path) -> None:
    pixels, _ = paint_squares(100, 100, largest=10, seed=1)
    scene = write_raster(tmp_path / "s.tif", pixels)
    job = make_job(tmp_path / "out")
    (result,) = sweep([scene], job)
    metadata = pq.read_schema(result.files["detections"]).metadata
    said = json.loads(metadata[b"scenesweep"])
    assert said["settings"]["tiling"]["margin"] == 16
    assert said["model"] == {
        "id": "squares",
        "version": "1",
        "sha256": "0" * 64,
        "classes": ["square"],
    }
    assert "engine" not in said["settings"]
    assert str(tmp_path) not in metadata[b"scenesweep"].decode()
    frame = gpd.read_parquet(result.files["detections"])
    assert set(frame.fingerprint) == {said["fingerprint"]}
    geo = json.loads(metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]
    np.testing.assert_allclose(geo["columns"]["geometry"]["bbox"], frame.total_bounds)


@pytest.mark.parametrize("found", [True, False])
def test_geojson_follows_rfc_7946(tmp_path: Path, found: bool) -> None:
    pixels, truth = paint_squares(100, 100, largest=10, seed=1)
    flipped = Affine(0.6, 0, 430_000, 0, 0.6, 3_775_000)
    scene = write_raster(
        tmp_path / "s.tif", pixels if found else np.ones_like(pixels), transform=flipped
    )
    (result,) = sweep([scene], make_job(tmp_path / "out"))
    data = json.loads(Path(result.files["geojson"]).read_text())
    assert data["type"] == "FeatureCollection"
    assert "crs" not in data
    assert len(data["features"]) == (len(truth) if found else 0)
    frame = gpd.read_parquet(result.files["detections"])
    for feature, row in zip(data["features"], frame.itertuples(), strict=True):
        assert feature["type"] == "Feature"
        assert feature["properties"]["detection_id"] == row.detection_id
        assert set(feature["properties"]) == set(SCHEMA.names) - {"geometry", "bbox"}
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) == 5
        x, y = np.array(ring[:-1]).T
        assert ((x >= -180) & (x <= 180) & (y >= -90) & (y <= 90)).all()
        assert np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) > 0
        np.testing.assert_allclose(np.array(ring)[:4].mean(0), row.geometry.centroid.coords[0])


def test_boxes_across_the_antimeridian_stay_small(tmp_path: Path) -> None:
    pixels = np.full((1, 64, 64), 1, np.uint8)
    pixels[0, 20:40, 20:40] = 255
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:32601", always_xy=True).transform(180, 10)
    edge = from_origin(x - 18, y + 18, 0.6, 0.6)
    scene = write_raster(tmp_path / "s.tif", pixels, crs="EPSG:32601", transform=edge)
    (result,) = sweep([scene], make_job(tmp_path / "out"))
    frame = gpd.read_parquet(result.files["detections"])
    west, _, east, _ = frame.total_bounds
    assert east - west < 0.001
    assert frame.width_m.tolist() == pytest.approx([12.0], rel=1e-2)
    data = json.loads(Path(result.files["geojson"]).read_text())
    assert data["features"][0]["geometry"]["type"] == "MultiPolygon"


def test_a_quicklook_is_the_scene_made_small(tmp_path: Path) -> None:
    """Averaged, without boxes; pixels that are not valid are transparent."""
    pixels = np.full((1, 300, 400), 60, np.uint8)
    pixels[0, 100:114, 100:114] = 255
    settings = ("publish.quicklook=true", "publish.quicklook_px=200")
    for nodata in (None, 60):
        scene = write_raster(tmp_path / "s.tif", pixels, nodata=nodata)
        (result,) = sweep([scene], make_job(tmp_path / "out", *settings))
        picture = np.asarray(Image.open(result.files["quicklook"]))
        assert picture.shape == (150, 200, 3 if nodata is None else 4)
        inside = np.zeros((150, 200), np.bool_)
        inside[50:57, 50:57] = True
        assert (picture[inside] == 255).all()
        assert (picture[~inside, -1] == (60 if nodata is None else 0)).all()


def test_a_quicklook_read_in_strips_is_that_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, x = np.mgrid[:317, :211] / 30
    pixels = (2000 + 1900 * np.stack([np.sin(y), np.cos(x), np.sin(x + y)])).astype(np.uint16)
    scene = inspect(str(write_raster(tmp_path / "s.tif", pixels)))
    for size in ((211, 317), (105, 158)):
        whole = scene_picture(scene, size)
        monkeypatch.setattr(quicklook, "_STRIP_PX", 5000)
        difference = np.abs(scene_picture(scene, size).astype(int) - whole)
        monkeypatch.undo()
        assert difference.max() <= (0 if size == (211, 317) else 4)


def all_of_it(alpha: NDArray[np.uint8], top: int) -> list[quicklook.Block]:
    return [(slice(top, top + alpha.shape[0]), slice(0, alpha.shape[1]))]


def test_of_a_sparse_scene_the_same_picture_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((3, 1200, 1500), np.uint8)
    y, x = np.mgrid[:90, :70]
    for left, top in ((3, 5), (700, 400), (1430, 1110)):
        pixels[:, top : top + 90, left : left + 70] = 60 + y + x
    scene = inspect(str(write_raster(tmp_path / "s.tif", pixels, nodata=0)))
    for size in ((1500, 1200), (500, 400), (433, 346)):
        pieces = scene_picture(scene, size)
        monkeypatch.setattr(quicklook, "_blocks", all_of_it)
        whole = scene_picture(scene, size)
        monkeypatch.undo()
        assert np.array_equal(pieces[..., 3], whole[..., 3])
        assert (pieces[..., 3] > 0).mean() < 0.02
        difference = np.abs(pieces.astype(int) - whole)
        assert difference.max() <= (0 if size == (1500, 1200) else 12), size
        assert (difference > 4).mean() < 0.001


def test_a_new_date_moves_the_scene(tmp_path: Path) -> None:
    pixels, _ = paint_squares(100, 100, largest=10, seed=1)
    scene = write_raster(tmp_path / "s.tif", pixels)
    sweep([scene], make_job(tmp_path / "out"))
    (result,) = sweep([scene], make_job(tmp_path / "out", "scenes.acquired_at=2026-06-01"))
    assert result.resumed_shards == result.shards
    files = [p.parent.name for p in (tmp_path / "out" / "detections").rglob("*.parquet")]
    assert files == ["date=2026-06-01"]
    frame = gpd.read_parquet(result.files["detections"])
    assert frame.acquired_at[0] == datetime(2026, 6, 1, tzinfo=UTC)


def test_nothing_half_written_lies_among_the_published(tmp_path: Path) -> None:
    pixels, _ = paint_squares(100, 100, largest=10, seed=1)
    scene = write_raster(tmp_path / "s.tif", pixels)
    (result,) = sweep([scene], make_job(tmp_path / "out"))
    with rasterio.open(scene) as dataset:
        assert dataset.files == [str(scene)]  # nothing was written beside the source
    found = {str(p) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    work = {p for p in found if "/.work/" in p}
    assert found - work == {*result.files.values(), str(tmp_path / "out/checksums/s.sha256")}
    known = str(tmp_path / "out/.work/known/s.json")
    assert all(Path(p).name.startswith("part-") for p in work - {known})


def test_published_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write_raster(tmp_path / "s.tif", np.ones((1, 64, 64), np.uint8))
    job = make_job(tmp_path / "out")
    (done,) = sweep([scene], job)
    table = Path(done.files["detections"])
    table.write_bytes(table.read_bytes()[:-1])
    hashed = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return manifest.sha256(path)

    monkeypatch.setattr(manifest, "known_sha256", counted)
    prepare(ref_of(scene), job=job)
    assert len(hashed) == len(set(hashed)) == len(done.files)
