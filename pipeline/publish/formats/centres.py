"""The centres of detections for the low zooms of a tiled map: of neighbours, the best one.

At a zoom, a tile is divided into 64 x 64 cells: four pixels each, where a map shows a tile with 256
pixels. Of the detections of a class in a cell, the one with the highest score stands for all; it
has their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

_CELL_BITS = 6  # of a side of a tile
EXTENT = 16_384
"""Steps of a side of a tile: points of a tile lie on whole steps."""
MOST_LATITUDE = 85.0511
"""Web Mercator ends there: its map is as tall as it is wide."""


@dataclass(frozen=True, slots=True)
class Centres:
    """Centres of detections at one zoom, ordered by class and cell.

    `column` and `row` (int64) are the cell's, counted from the north-west corner of the world.
    `detections` is the number of detections that a row stands for.
    """

    zoom: int
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    score: NDArray[np.float32]
    label: NDArray[np.int16]
    column: NDArray[np.int64]
    row: NDArray[np.int64]
    detections: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lon)

    def table(self, classes: tuple[str, ...]) -> pa.Table:
        """Return the rows as points with `class_name`, `score` and `detections`.

        Points lie at least three quarters of a step from the edge of the world: GDAL would round
        those within half a step to the edge, which is in no tile.
        """
        names = pa.array(classes, pa.string())
        east = 180 - 0.75 * 360 / 2**self.zoom / EXTENT
        north = np.degrees(np.arctan(np.sinh(np.radians(east))))
        lon, lat = np.clip(self.lon, -east, east), np.clip(self.lat, -north, north)
        return pa.table(
            {
                "geometry": shapely.to_wkb(shapely.points(lon, lat)),
                "class_name": names.take(pa.array(self.label)),
                "score": self.score,
                "detections": self.detections.astype(np.int32),
            }
        )


def centres_at(
    zoom: int,
    lonlat: NDArray[np.float64],
    score: NDArray[np.float32],
    label: NDArray[np.int16],
) -> Centres:
    """Return the centres at a zoom for detections at `lonlat` (N, 2) in degrees.

    Of detections with equal scores in a cell, the first stands for all.
    """
    lon, lat = lonlat.T
    side = 2 ** (zoom + _CELL_BITS)
    sine = np.sin(np.radians(np.clip(lat, -MOST_LATITUDE, MOST_LATITUDE)))
    column = np.floor((lon + 180) / 360 * side).astype(np.int64) % side
    row = np.floor((0.5 - np.arctanh(sine) / (2 * np.pi)) * side).astype(np.int64)
    every = Centres(zoom, lon, lat, score, label, column, row, np.ones(len(lon), np.int64))
    return _best(every)


def one_zoom_lower(centres: Centres) -> Centres:
    """Return the centres at the next lower zoom."""
    return _best(
        Centres(
            centres.zoom - 1,
            centres.lon,
            centres.lat,
            centres.score,
            centres.label,
            centres.column >> 1,
            centres.row >> 1,
            centres.detections,
        )
    )


def _best(centres: Centres) -> Centres:
    """Keep the row with the highest score of each class and cell, and add up the detections."""
    cell = centres.row << centres.zoom + _CELL_BITS | centres.column
    order = np.lexsort((-centres.score, cell, centres.label))
    cell, label = cell[order], centres.label[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(cell) != 0) | (np.diff(label) != 0)
    starts = np.flatnonzero(first)
    keep = order[starts]
    total = np.add.reduceat(centres.detections[order], starts) if len(order) else order
    return Centres(
        centres.zoom,
        centres.lon[keep],
        centres.lat[keep],
        centres.score[keep],
        centres.label[keep],
        centres.column[keep],
        centres.row[keep],
        total,
    )
