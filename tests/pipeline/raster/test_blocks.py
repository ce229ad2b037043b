"""Where the blocks of a TIFF lie, against GDAL's own word for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from scenesweep.pipeline.raster.blocks import read_blocks
from tests.rasters import write_raster


@pytest.mark.parametrize(
    "profile",
    [
        {"tiled": True, "blockxsize": 32, "blockysize": 48},
        {"tiled": True, "blockxsize": 32, "blockysize": 32, "interleave": "band"},
        {"blockysize": 7, "compress": "deflate"},
        {"blockysize": 7, "interleave": "band", "endianness": "BIG"},
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "bigtiff": "YES"},
        {"bigtiff": "YES", "endianness": "BIG", "blockysize": 40},
    ],
)
def test_places_and_windows_are_those_of_gdal(tmp_path: Path, profile: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    path = write_raster(tmp_path / "s.tif", rng.integers(0, 9, (2, 90, 110), np.uint8), **profile)
    blocks = read_blocks(path)
    assert blocks is not None
    with rasterio.open(path) as dataset:
        planes = 2 if profile.get("interleave") == "band" else 1
        expected = []
        for band in range(1, planes + 1):
            for (row, column), window in dataset.block_windows(band):
                name = f"{column}_{row}"
                told = [
                    int(dataset.get_tag_item(f"BLOCK_{what}_{name}", "TIFF", bidx=band))
                    for what in ("OFFSET", "SIZE")
                ]
                expected.append((*told, *window.flatten()))
    found = []
    for index, (offset, length) in enumerate(zip(blocks.offset, blocks.length, strict=True)):
        window = blocks.window(index)
        place = (window.col_off, window.row_off, window.width, window.height)
        found.append((int(offset), int(length), *place))
    assert found == expected


def test_any_bytes_have_blocks_or_none(tmp_path: Path) -> None:
    """500 damaged headers: never an error, for GDAL has the say about them."""
    path = write_raster(tmp_path / "s.tif", np.ones((1, 90, 110), np.uint8), blockysize=7)
    content, rng = path.read_bytes()[:600], np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(content[: int(rng.integers(8, 600))])
        for at in rng.integers(0, len(damaged), 4):
            damaged[at] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        blocks = read_blocks(path)
        assert blocks is None or len(blocks.offset) == len(blocks.length)
