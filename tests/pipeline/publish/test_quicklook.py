"""The quicklook: each cell is the mean of its valid pixels, in any strips."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenesweep.pipeline.publish.quicklook import cell_means, picture_rows, scene_picture
from scenesweep.pipeline.raster.inspect import inspect
from tests.rasters import write_raster


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "uint32"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_cell_is_the_mean_of_its_valid_pixels(dtype: str, masked: bool) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(-30_000 if dtype == "int16" else 0, 250, (2, 37, 611)).astype(dtype)
    valid = draw.random((37, 611)) < 0.3 if masked else None
    edges = np.array([0, 5, 6, 20, 37]), np.array([0, 300, 303, 304, 611])
    means = cell_means(pixels, valid, edges)
    assert means.dtype == pixels.dtype
    np.testing.assert_allclose(means, _slow_means(pixels, valid, edges), rtol=1e-6)


def _slow_means(
    pixels: NDArray[Any], valid: NDArray[np.bool_] | None, edges: tuple[NDArray[Any], ...]
) -> NDArray[np.float64]:
    means = np.zeros((len(pixels), len(edges[0]) - 1, len(edges[1]) - 1))
    for band, row, column in np.ndindex(*means.shape):
        cell = tuple(
            slice(edge[i], edge[i + 1]) for edge, i in zip(edges, (row, column), strict=True)
        )
        values = pixels[band][cell] if valid is None else pixels[band][cell][valid[cell]]
        if values.size:
            mean = values.astype(np.float64).mean()
            means[band, row, column] = mean if pixels.dtype.kind == "f" else np.floor(mean + 0.5)
    return means


@pytest.mark.parametrize("nodata", [None, 0])
def test_rows_of_a_picture_are_those_of_the_whole(tmp_path: Path, nodata: int | None) -> None:
    draw = np.random.default_rng(2)
    pixels = draw.integers(0, 3, (3, 401, 307)).astype(np.uint8) * 80
    pixels[:, 200:] = 0
    scene = inspect(str(write_raster(tmp_path / "s.tif", pixels, nodata=nodata)))
    size = (100, 131)
    whole = scene_picture(scene, size)
    cuts = [0, 17, 64, 65, 131]
    strips = [picture_rows(scene, size, slice(first, last)) for first, last in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(strips), whole)
