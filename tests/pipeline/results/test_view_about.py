"""What pages say besides detections: the model, the place, and a picture that is too coarse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from pyproj import Transformer
from rasterio.transform import from_origin
from scipy import ndimage

from scenesweep.pipeline.publish.stac.model_item import SIZES_MEANINGFUL
from scenesweep.pipeline.results.view import (
    PageSettings,
    PublishedScene,
    find_published,
    write_page,
)
from scenesweep.pipeline.results.view.about import (
    LATTICE,
    coarse_picture,
    lattice,
    model_facts,
    thresholds,
)
from scenesweep.pipeline.results.view.pack import read_detections
from tests.pages import Parsed, describe, published


def only(out: Path) -> PublishedScene:
    (one,) = find_published(out).values()
    return one


def test_a_page_knows_its_model_as_it_is_published(tmp_path: Path) -> None:
    out = tmp_path / "out"
    published(out, settings=("detect.score_threshold=0.2",))
    assert model_facts(only(out)) == {}
    assert thresholds(only(out)) == (0.2, None)
    validation = {"true_positives": 60, "false_positives": 20, "false_negatives": 40, "chips": 8}
    described = {
        "training": {"validation": validation | {"threshold": 0.36}},
        "inference": {"score_threshold": 0.36},
    }
    describe(out, description="Squares of one town", **{"mlm:hyperparameters": described})
    assert thresholds(only(out)) == (0.2, 0.36)
    assert model_facts(only(out)) == {
        "description": "Squares of one town",
        "figures": "precision 0.75, recall 0.60, F 0.67 at score 0.36 and above, on 8 "
        "validation chips; results elsewhere may be worse",
    }
    describe(out, **{"mlm:hyperparameters": {"training": {"validation": "good"}}})
    assert model_facts(only(out)) == {}


@pytest.mark.parametrize("meaningful", [True, False])
def test_a_page_knows_whether_sizes_mean_something(tmp_path: Path, meaningful: bool) -> None:
    out = tmp_path / "out"
    published(out)
    describe(out, **({} if meaningful else {SIZES_MEANINGFUL: False}))
    write_page(only(out), None, tmp_path / "p.html", PageSettings())
    data = Parsed((tmp_path / "p.html").read_text()).data
    assert data["scene"]["sizes_meaningful"] is meaningful


def test_scores_that_no_class_keeps_are_not_offered(tmp_path: Path) -> None:
    least = "merge.min_scores={square: 0.5, circle: 0.4}"
    published(tmp_path / "out", classes=("square", "circle"), settings=(least,))
    assert thresholds(only(tmp_path / "out"))[0] == 0.4


@pytest.mark.parametrize("east", [False, True])
def test_a_page_knows_where_its_scene_lies(tmp_path: Path, east: bool) -> None:
    """Between the points of the lattice too, and across the antimeridian."""
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:32660", always_xy=True).transform(180, 10)
    place = {"crs": "EPSG:32660", "transform": from_origin(x - 900, y, 6, 6)} if east else {}
    published(tmp_path / "out", settings=("read.max_coarser=10",), **place)
    points = lattice(only(tmp_path / "out"))
    assert points is not None
    assert points.shape == (LATTICE, LATTICE, 2)
    table = gpd.read_parquet(only(tmp_path / "out").table)
    centres = np.stack([table.y_min + table.y_max, table.x_min + table.x_max]) / 2
    at = centres * (LATTICE - 1) / 300
    lonlat = np.stack([ndimage.map_coordinates(points[..., k], at, order=1) for k in (0, 1)])
    wrong = lonlat - table[["center_lon", "center_lat"]].to_numpy().T
    wrong[0] -= 360 * np.round(wrong[0] / 360)
    assert np.abs(wrong).max() < 1e-7
    assert np.ptp(points[..., 0]) < 1


def test_a_scene_in_pixels_lies_nowhere(tmp_path: Path) -> None:
    published(tmp_path / "out", settings=("scenes.pixel_coordinates=true",))
    assert lattice(only(tmp_path / "out")) is None


@pytest.mark.parametrize(
    ("px", "limit", "said"),
    [
        (300, None, None),
        (150, None, None),
        (90, None, "run scenesweep view OUT scene.tif"),
        (90, (300, 300), "add --page-mb to scenesweep view"),
        (90, (90, 90), "look at the scene in QGIS"),
    ],
)
def test_a_coarse_picture_says_how_to_get_a_finer_one(
    tmp_path: Path, px: int, limit: tuple[int, int] | None, said: str | None
) -> None:
    """Boxes are 9 px wide at the median, so 2.7 px of a picture of 90 px."""
    published(tmp_path / "out")
    one = only(tmp_path / "out")
    detections = read_detections(one.table, most=1000)
    text = coarse_picture(one, detections, (px, px), limit=limit)
    assert (text is None) == (said is None)
    assert text is None or (said or "") in text
    made = one.provenance
    assert made is not None
    for name, command in (
        ("my $(scene).vrt", "scenesweep view OUT 'my $(scene).vrt' --driver VRT"),
        ("a.tif", "scenesweep view OUT a.tif"),
    ):
        other = replace(one, provenance=replace(made, source=replace(made.source, name=name)))
        assert (coarse_picture(other, detections, (90, 90), limit=None) or "").endswith(command)


def test_a_page_is_written_again_when_the_code_that_makes_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path / "out")
    one, path = only(tmp_path / "out"), tmp_path / "page.html"
    assert write_page(one, None, path, PageSettings())
    assert not write_page(one, None, path, PageSettings())
    describe(tmp_path / "out", description="another")
    assert write_page(only(tmp_path / "out"), None, path, PageSettings())
    monkeypatch.setattr("scenesweep.pipeline.results.view.page._makers", lambda: ["another way"])
    assert write_page(only(tmp_path / "out"), None, path, PageSettings())
