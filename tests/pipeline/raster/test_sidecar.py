"""The georeference in an `.aux.xml`."""

from __future__ import annotations

from pathlib import Path

import pytest
import rasterio
from rasterio.shutil import copy
from rasterio.transform import from_origin

from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.raster.sidecar import georeference_beside
from tests.chips import noise
from tests.rasters import write_raster

PLACE = from_origin(430_000, 3_775_000, 0.6, 0.6)


def test_a_raster_is_placed_as_gdal_itself_would_place_it(tmp_path: Path) -> None:
    """PNG has no room for a georeference: GDAL writes it beside."""
    whole = write_raster(tmp_path / "whole.tif", noise(1, 40, 30), transform=PLACE)
    copy(whole, tmp_path / "s.png", driver="PNG")
    with rasterio.open(tmp_path / "s.png") as dataset:
        assert dataset.crs is not None
        placed, size = (dataset.crs.to_wkt(), dataset.transform), dataset.shape
    scene = inspect(str(tmp_path / "s.png"))
    assert (scene.crs, scene.transform) == placed
    assert (scene.height, scene.width) == size


def test_a_scene_is_another_one_when_it_is_placed_elsewhere(tmp_path: Path) -> None:
    whole = write_raster(tmp_path / "whole.tif", noise(1, 40, 30), transform=PLACE)
    copy(whole, tmp_path / "s.png", driver="PNG")
    before = inspect(str(tmp_path / "s.png"))
    beside = tmp_path / "s.png.aux.xml"
    beside.write_text(beside.read_text().replace("4.3", "4.4"))
    assert inspect(str(tmp_path / "s.png")).fingerprint != before.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<PAMDataset>",
        "<PAMDataset><SRS>nowhere</SRS><GeoTransform>1, 2</GeoTransform></PAMDataset>",
        "<PAMDataset><SRS> </SRS><GeoTransform>a, b, c, d, e, f</GeoTransform></PAMDataset>",
        '<!DOCTYPE d [<!ENTITY a "1, 1, 0, 1, 0, -1">]>'
        "<PAMDataset><GeoTransform>&a;</GeoTransform></PAMDataset>",
    ],
)
def test_what_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.tif.aux.xml").write_text(text)
    assert georeference_beside(str(tmp_path / "s.tif")) == (None, None)
