"""Hold chips out by place: never ground that training has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import STRtree

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.geometry.georef import corners, to_lonlat, to_map
from scenesweep.pipeline.labels.label_chips import Cut, ground

_SAME_COLUMN = 0.05
"""Chips belong to one column when their centres are nearer, in widths of a chip."""
_TOUCHING = 0.001
"""Chips of neighbouring rasters may overlap by so much of their area and still only touch."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two sets of chips that share no ground; `dropped` chips of training overlapped the other."""

    training: tuple[Cut, ...]
    held_out: tuple[Cut, ...]
    dropped: int


def split_east(cuts: Sequence[Cut], share: float) -> Split:
    """Hold out the easternmost share of the chips.

    East is where the x of the rasters' CRS grows, or the longitude where they have several.
    Whole columns are held out: as many as bring the share nearest. Rasters without
    georeference lie side by side, in the order given. Training chips that overlap a held-out
    chip on the ground are dropped.

    Raises:
        LabelError: when one of the sets would be empty.
    """
    places = _places(cuts)
    held = _easternmost(places, share)
    near = _overlapping(places, held)
    training = ~held & ~near
    if not held.any() or not training.any():
        raise LabelError(
            f"expected chips on both sides of the split, found {len(held)} chips of which a "
            f"share of {share} leaves {int(training.sum())} to train on and {int(held.sum())} to "
            "hold out"
        )
    return Split(_keep(cuts, training), _keep(cuts, held), int(near.sum()))


def _places(cuts: Sequence[Cut]) -> NDArray[np.float64]:
    """Return the corners (N, 4, 2) of all chips in one frame in which x grows to the east."""
    systems = {cut.scene.crs for cut in cuts}
    places = [np.zeros((0, 4, 2))]
    offset = 0.0
    for cut in cuts:
        quads = corners(ground(cut))
        crs, transform = cut.scene.crs, cut.scene.transform
        if None in systems or crs is None or transform is None:
            places.append(quads + np.array([offset, 0.0]))
            offset += cut.scene.width
        else:
            mapped = to_map(quads, transform)
            places.append(mapped if len(systems) == 1 else to_lonlat(mapped, crs))
    return np.concatenate(places)


def _easternmost(places: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    x = places[..., 0].mean(axis=1)
    if not len(x):
        return np.zeros(0, np.bool_)
    order = np.argsort(-x, kind="stable")
    ends = _column_ends(x[order], float(np.median(np.ptp(places[..., 0], axis=1))))
    count = ends[np.argmin(np.abs(ends - share * len(x)))]
    held = np.zeros(len(x), np.bool_)
    held[order[:count]] = True
    return held


def _column_ends(x: NDArray[np.float64], width: float) -> NDArray[np.intp]:
    """Return how many chips the first one, two, ... columns hold; `x` descends.

    Not all of them: some chips must remain. A single column has no end.
    """
    ends, start = [], x[0]
    for row, here in enumerate(x.tolist()):
        if start - here > _SAME_COLUMN * width:
            ends.append(row)
            start = here
    return np.array(ends or [len(x)], np.intp)


def _overlapping(places: NDArray[np.float64], held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say which chips that are not held out share ground with one that is."""
    quads = np.array([shapely.Polygon(place) for place in places], object)
    others = np.flatnonzero(~held)
    chip, other = STRtree(quads[held]).query(quads[others], predicate="intersects")
    common = shapely.area(shapely.intersection(quads[others[chip]], quads[held][other]))
    shared = common > _TOUCHING * shapely.area(quads[others[chip]])
    near = np.zeros(len(held), np.bool_)
    near[others[chip[shared]]] = True
    return near


def _keep(cuts: Sequence[Cut], rows: NDArray[np.bool_]) -> tuple[Cut, ...]:
    """Return the cuts with only some of their chips; `rows` is over the chips of all, in order."""
    parts, start = [], 0
    for cut in cuts:
        kept = np.zeros_like(cut.kept)
        here = rows[start : start + len(cut)]
        start += len(cut)
        kept[_in_order(cut)[0][here], _in_order(cut)[1][here]] = True
        if kept.any():
            parts.append(replace(cut, kept=kept))
    return tuple(parts)


def _in_order(cut: Cut) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return row and column of a raster's chips in the order in which they are read."""
    rows, columns = np.nonzero(cut.kept)
    side = cut.grid.side
    shard = (rows // side) * (-(-cut.grid.shape[1] // side)) + columns // side
    order = np.argsort(shard, kind="stable")
    return rows[order], columns[order]
