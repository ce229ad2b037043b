"""The rasters of `python -m benchmarks.planning`: small files that read as large ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from benchmarks import planning
from benchmarks.planning import Case, measured, painted, write
from benchmarks.repeated_tiles import ACROSS, TILE_PX


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make noise in place of a painted suburb."""
    side = TILE_PX * ACROSS
    noise = np.random.default_rng(0).integers(1, 255, (4, side, side), dtype=np.uint8)
    monkeypatch.setattr(planning, "suburb", lambda: noise)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_raster_repeats_its_first_tiles(tmp_path: Path, sparse: bool) -> None:
    path, case = tmp_path / "s.tif", Case("DEFLATE + predictor", "uint16", sparse)
    write(path, 20_000, case)
    assert path.stat().st_size < 45_000_000
    tiles = painted(case)
    with rasterio.open(path) as dataset:
        for row, column in ((0, 0), (4, 8), (17, 30)):
            y, x = TILE_PX * (row % ACROSS), TILE_PX * (column % ACROSS)
            read = dataset.read(window=Window(TILE_PX * column, TILE_PX * row, TILE_PX, TILE_PX))
            np.testing.assert_array_equal(read, tiles[:, y : y + TILE_PX, x : x + TILE_PX])


def test_all_sizes_are_measured(tmp_path: Path) -> None:
    case = Case("uncompressed", "uint16", sparse=True)
    names = [f.what for f in measured(tmp_path, case, giant=8192, full=2048)]
    assert names == [
        f"{case.name}, 2,048 px",
        "  full pass, 2,048 px",
        "  full pass, 8,192 px, computed",
        "  with overviews, 2,048 px",
        f"{case.name}, 8,192 px",
    ]
