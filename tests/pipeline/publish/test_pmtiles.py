"""PMTiles, read back by GDAL: a driver that did not pack them."""

from __future__ import annotations

import errno
import gzip
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pmtiles.reader import MmapSource, Reader, all_tiles
from pyproj import Transformer

from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.publish.formats import pmtiles
from scenesweep.pipeline.publish.formats.centres import (
    EXTENT,
    MOST_LATITUDE,
    Centres,
    centres_at,
    one_zoom_lower,
)
from scenesweep.pipeline.publish.formats.pmtiles import (
    BOXES_AT,
    CENTRES_TO,
    read_metadata,
    write_tiles,
)
from tests.nights import night_job, objects, publish_scene, seen

TILED = "publish.formats=[pmtiles]"


def read(path: Path, layer: str, zoom: int) -> gpd.GeoDataFrame:
    return pyogrio.read_dataframe(path, layer=layer, ZOOM_LEVEL=zoom)


def rows(lonlat: NDArray[np.float64], names: list[str], score: NDArray[np.float64]) -> pa.Table:
    low, high = lonlat - 1e-4, lonlat + 1e-4
    return pa.table(
        {
            "geometry": shapely.to_wkb(shapely.box(*low.T, *high.T)),
            "detection_id": [f"{number:016x}" for number in range(len(lonlat))],
            "scene_id": ["s"] * len(lonlat),
            "class_name": names,
            "score": score.astype(np.float32),
            "center_lon": lonlat[:, 0],
            "center_lat": lonlat[:, 1],
        }
    )


def test_boxes_are_those_of_the_table(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", TILED)
    files = publish_scene(tmp_path, job, "scene", seen(objects(150), 0, 1))
    table = gpd.read_parquet(files["detections"]).set_index("detection_id").to_crs(3857)
    boxes = read(Path(str(files["pmtiles"])), "boxes", BOXES_AT)
    assert boxes.crs == table.crs
    # A box on the edge of tiles is in each of them, cut there.
    boxes = boxes.dissolve(by="detection_id", aggfunc="first").loc[table.index]
    step = 2 * np.pi * 6378137 / 2**BOXES_AT / 16384
    np.testing.assert_allclose(boxes.bounds, table.bounds, rtol=0, atol=2 * step)
    assert boxes.class_name.tolist() == table.class_name.tolist()
    assert set(boxes.scene_id) == {"scene"}
    np.testing.assert_allclose(boxes.score, table.score, atol=0.0005)


def test_low_zooms_have_centres_and_no_boxes(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", TILED)
    files = publish_scene(tmp_path, job, "scene", seen(objects(150), 0, 1))
    table = gpd.read_parquet(files["detections"])
    path = Path(str(files["pmtiles"]))
    for zoom in (0, 5, CENTRES_TO):
        assert len(read(path, "boxes", zoom)) == 0
        centres = read(path, "centres", zoom)
        places = centres.assign(x=centres.geometry.x.round(2), y=centres.geometry.y.round(2))
        # A point near the edge of tiles is in each of them.
        centres = places.drop_duplicates(["class_name", "x", "y"])
        by_class = centres.groupby("class_name").detections.sum().to_dict()
        assert by_class == table.class_name.value_counts().to_dict()
    assert len(read(path, "centres", BOXES_AT)) == 0
    assert len(read(path, "centres", 0)) == 2  # one of each class


def by_definition(points: list[tuple[int, int, int, float]], zoom: int) -> dict[Any, Any]:
    """Return the best score and the number of each class and cell, by a slow loop."""
    cells: dict[Any, Any] = {}
    for x, y, label, score in points:
        key = (label, x >> 12 - zoom, y >> 12 - zoom)
        best, count = cells.get(key, (0.0, 0))
        cells[key] = (max(best, score), count + 1)
    return cells


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            *(st.integers(0, 2**18 - 1), st.integers(0, 2**18 - 1)),
            *(st.integers(0, 2), st.sampled_from([0.25, 0.5, 0.75])),
        ),
        max_size=30,
    ),
    st.integers(0, 12),
)
def test_of_a_cell_the_best_stands_for_all(
    points: list[tuple[int, int, int, float]], zoom: int
) -> None:
    x, y, label, score = np.array(points or np.zeros((0, 4))).T
    lat = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * (y + 0.5) / 2**18))))
    lonlat = np.stack([(x + 0.5) / 2**18 * 360 - 180, lat], axis=-1)
    centres: Centres = centres_at(12, lonlat, score.astype(np.float32), label.astype(np.int16))
    while centres.zoom > zoom:
        centres = one_zoom_lower(centres)
    mine = {
        (int(k), int(c), int(r)): (float(s), int(n))
        for k, c, r, s, n in zip(
            *(centres.label, centres.column, centres.row, centres.score, centres.detections),
            strict=True,
        )
    }
    assert len(mine) == len(centres)
    assert mine == by_definition(points, zoom)


def test_equal_rows_give_equal_bytes_in_however_many_pieces(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lonlat = rng.uniform([10, 50], [10.2, 50.1], (3000, 2))
    table = rows(lonlat, ["a", "b", "c"] * 1000, rng.random(3000))

    def pieces() -> Iterator[pa.Table]:
        return (table.slice(first, 700) for first in range(0, 3000, 700))

    written = []
    for name, tables in (("a", lambda: iter([table])), ("b", pieces)):
        write_tiles(tables, tmp_path / name, name="n", facts={"k": "v"})
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_archive_describes_itself_and_its_tiles_are_in_order(tmp_path: Path) -> None:
    lonlat = np.array([[-117.76, 34.11], [-117.70, 34.15]])
    path = tmp_path / "x.pmtiles"
    table = rows(lonlat, ["a", "b"], np.array([0.5, 0.75]))
    write_tiles(lambda: iter([table]), path, name="n", facts={"k": "v"})
    metadata = read_metadata(path)
    assert (metadata["name"], metadata["k"]) == ("n", "v")
    layers = [(one["id"], one["minzoom"], one["maxzoom"]) for one in metadata["vector_layers"]]
    assert layers == [("centres", 0, 12), ("boxes", 13, 13)]
    with path.open("rb") as file:
        source = MmapSource(file)
        header = Reader(source).header()
        zooms = [z for (z, _, _), _ in all_tiles(source)]
    assert header["clustered"]
    assert (header["min_zoom"], header["max_zoom"]) == (0, 13)
    assert zooms == sorted(zooms)
    bounds = [header[f"{k}_e7"] / 1e7 for k in ("min_lon", "min_lat", "max_lon", "max_lat")]
    corners = [*lonlat.min(axis=0) - 1e-4, *lonlat.max(axis=0) + 1e-4]  # of the boxes
    np.testing.assert_allclose(bounds, corners, atol=2e-7)


def test_a_box_on_the_antimeridian_is_on_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "x.pmtiles"
    table = rows(np.array([[179.99995, 10.0]]), ["a"], np.array([0.5]))
    write_tiles(lambda: iter([table]), path, name="n")
    boxes = read(path, "boxes", BOXES_AT)
    half = np.pi * 6378137
    assert boxes.total_bounds[0] == pytest.approx(-half, abs=20)
    assert boxes.total_bounds[2] == pytest.approx(half, abs=20)


@pytest.mark.parametrize("lon", [-179.99999, 179.99999])
@pytest.mark.parametrize("lat", [-MOST_LATITUDE, 10.0, MOST_LATITUDE])
def test_a_detection_at_the_edge_of_the_world_has_centres(
    tmp_path: Path, lon: float, lat: float
) -> None:
    """In the tile itself: GDAL's driver for PMTiles does not return all points at the corners."""
    path, tile = tmp_path / "x.pmtiles", tmp_path / "tile.pbf"
    table = rows(np.array([[lon, lat]]), ["a"], np.array([0.5]))
    write_tiles(lambda: iter([table]), path, name="n")
    for zoom in (0, 1, 6, CENTRES_TO):
        with path.open("rb") as file:
            found = {place: data for place, data in all_tiles(MmapSource(file)) if place[0] == zoom}
        (((_, column, row), data),) = found.items()
        tile.write_bytes(gzip.decompress(data))
        (centre,) = pyogrio.read_dataframe(tile).geometry
        # The driver for tiles counts y from the bottom.
        assert (0 <= centre.x < EXTENT, 0 < centre.y <= EXTENT) == (True, True)
        at = np.array([column + centre.x / EXTENT, row + 1 - centre.y / EXTENT]) / 2**zoom - 0.5
        x, y = Transformer.from_crs("OGC:CRS84", 3857, always_xy=True).transform(lon, lat)
        expected = np.array([x, -y]) / (2 * np.pi * 6378137)
        np.testing.assert_allclose(at, expected, rtol=0, atol=1.5 / EXTENT / 2**zoom)


def test_detections_beyond_web_mercator_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also from the cells of their neighbours, whose best they would be."""
    path = tmp_path / "x.pmtiles"
    lonlat = np.array([[10, 85.051], [10, 85.0512], [10, 89.0], [10, -88.0]])
    table = rows(lonlat, ["a"] * 4, np.array([0.3, 0.9, 0.8, 0.7]))
    write_tiles(lambda: iter([table]), path, name="polar")
    assert read(path, "boxes", BOXES_AT).detection_id.nunique() == 1
    for zoom in (0, CENTRES_TO):
        assert read(path, "centres", zoom).score.tolist() == pytest.approx([0.3])
    assert "polar: 3 detections beyond 85.0511 degrees of latitude" in caplog.text
    with path.open("rb") as file:
        header = Reader(MmapSource(file)).header()
    assert header["max_lat_e7"] == 850511000
    assert header["min_lat_e7"] == pytest.approx(850509000, abs=2)


def test_an_error_of_the_rows_comes_out_as_it_is(tmp_path: Path) -> None:
    table = rows(np.array([[1.0, 2.0]]), ["a"], np.array([0.5]))

    def broken() -> Iterator[pa.Table]:
        yield table
        raise LookupError("the second piece")

    with pytest.raises(LookupError, match="the second piece"):
        write_tiles(broken, tmp_path / "x.pmtiles", name="n")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_an_archive_too(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", TILED)
    files = publish_scene(tmp_path, job, "scene", Candidates.none())
    path = Path(str(files["pmtiles"]))
    with path.open("rb") as file:
        assert len(list(all_tiles(MmapSource(file)))) == 1
    assert read_metadata(path)["name"] == "scene"


def test_the_item_links_the_map(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", TILED)
    files = publish_scene(tmp_path, job, "scene", seen(objects(20), 0, 1))
    item = json.loads(files["item"].read_text(encoding="utf-8"))
    assert item["assets"]["pmtiles"]["type"] == "application/vnd.pmtiles"
    (link,) = [link for link in item["links"] if link["rel"] == "pmtiles"]
    assert link["type"] == "application/vnd.pmtiles"
    assert link["pmtiles:layers"] == ["centres", "boxes"]
    assert (tmp_path / "out" / "items" / link["href"]).resolve() == files["pmtiles"]
    assert [uri for uri in item["stac_extensions"] if "web-map-links" in uri]
    job = night_job(tmp_path / "plain", "publish.formats=[]")
    files = publish_scene(tmp_path, job, "scene", seen(objects(20), 0, 1))
    assert "web-map-links" not in files["item"].read_text(encoding="utf-8")


def test_what_gdal_did_not_finish_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pmtiles, "_is_complete", lambda _: False)
    table = rows(np.array([[1.0, 2.0]]), ["a"], np.array([0.5]))
    with pytest.raises(OSError, match=r"boxes\.mbtiles was not written completely") as caught:
        write_tiles(lambda: iter([table]), tmp_path / "x.pmtiles", name="n")
    assert caught.value.errno != errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_archive_has_no_metadata(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for content in (b"", b"PMTiles\x03" + bytes(200), b"no archive" * 20):
        (tmp_path / "x").write_bytes(content)
        assert read_metadata(tmp_path / "x") == {}
    assert caplog.text.count("expected PMTiles") == 3
