"""Hold out chips by location, so that validation never sees ground of the training chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import STRtree

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.geometry.georef import corners, to_lonlat, to_map
from scenesweep.pipeline.labels.label_chips import ChipPlan, chip_footprints

_SAME_COLUMN = 0.05
"""Chips are in one column when their centres are closer than this, in widths of a chip."""
_TOUCHING = 0.001
"""Chips that overlap by no more than this share of their area are considered as not overlapping."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two sets of chips without common ground.

    `dropped` counts chips that overlapped held-out ones.
    """

    training: tuple[ChipPlan, ...]
    held_out: tuple[ChipPlan, ...]
    dropped: int


def split_east(plans: Sequence[ChipPlan], share: float) -> Split:
    """Hold out the easternmost share of the chips.

    East is the direction in which x of the rasters' CRS grows, or the longitude if the rasters
    have several CRSs. Complete columns are held out, as many as come closest to the share. Rasters
    without georeference are placed side by side, in the given order. Training chips that overlap a
    held-out chip on the ground are dropped.

    Raises:
        LabelError: when one of the sets would be empty.
    """
    footprints = _quads(plans)
    held = _easternmost(footprints, share)
    near = _overlapping(footprints, held)
    training = ~held & ~near
    if not held.any() or not training.any():
        raise LabelError(
            f"expected chips on both sides of the split: of {len(held)} chips, a share of "
            f"{share} leaves {int(training.sum())} to train on and {int(held.sum())} to "
            "hold out"
        )
    return Split(_keep(plans, training), _keep(plans, held), int(near.sum()))


def _quads(plans: Sequence[ChipPlan]) -> NDArray[np.float64]:
    """Return the corners (N, 4, 2) of all chips, in one frame in which x grows to the east."""
    systems = {plan.scene.crs for plan in plans}
    footprints = [np.zeros((0, 4, 2))]
    offset = 0.0
    for plan in plans:
        quads = corners(chip_footprints(plan))
        crs, transform = plan.scene.crs, plan.scene.transform
        if None in systems or crs is None or transform is None:
            footprints.append(quads + np.array([offset, 0.0]))
            offset += plan.scene.width
        else:
            mapped = to_map(quads, transform)
            footprints.append(mapped if len(systems) == 1 else to_lonlat(mapped, crs))
    return np.concatenate(footprints)


def _easternmost(footprints: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    x = footprints[..., 0].mean(axis=1)
    if not len(x):
        return np.zeros(0, np.bool_)
    order = np.argsort(-x, kind="stable")
    ends = _column_ends(x[order], float(np.median(np.ptp(footprints[..., 0], axis=1))))
    count = ends[np.argmin(np.abs(ends - share * len(x)))]
    held = np.zeros(len(x), np.bool_)
    held[order[:count]] = True
    return held


def _column_ends(x: NDArray[np.float64], width: float) -> NDArray[np.intp]:
    """Return the numbers of chips in the first one, two, ... columns; `x` is descending.

    The number of all chips is not included, because some must remain for training. Exception: with
    a single column it is the only number.
    """
    ends, start = [], x[0]
    for row, here in enumerate(x.tolist()):
        if start - here > _SAME_COLUMN * width:
            ends.append(row)
            start = here
    return np.array(ends or [len(x)], np.intp)


def _overlapping(footprints: NDArray[np.float64], held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (N,): the chips that are not held out and overlap a held-out one."""
    quads = np.array([shapely.Polygon(corners_of_chip) for corners_of_chip in footprints], object)
    others = np.flatnonzero(~held)
    chip, other = STRtree(quads[held]).query(quads[others], predicate="intersects")
    common = shapely.area(shapely.intersection(quads[others[chip]], quads[held][other]))
    shared = common > _TOUCHING * shapely.area(quads[others[chip]])
    near = np.zeros(len(held), np.bool_)
    near[others[chip[shared]]] = True
    return near


def _keep(plans: Sequence[ChipPlan], rows: NDArray[np.bool_]) -> tuple[ChipPlan, ...]:
    """Keep only some chips of the plans; `rows` is (N,) bool over the chips of all, in order."""
    parts, start = [], 0
    for plan in plans:
        kept = np.zeros_like(plan.kept)
        here = rows[start : start + len(plan)]
        start += len(plan)
        kept[_in_order(plan)[0][here], _in_order(plan)[1][here]] = True
        if kept.any():
            parts.append(replace(plan, kept=kept))
    return tuple(parts)


def _in_order(plan: ChipPlan) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of a raster's chips, in the order in which they are read."""
    rows, columns = np.nonzero(plan.kept)
    side = plan.grid.side
    shard = (rows // side) * (-(-plan.grid.shape[1] // side)) + columns // side
    order = np.argsort(shard, kind="stable")
    return rows[order], columns[order]
