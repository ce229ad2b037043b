"""Tell labels that are objects of a raster from labels that are wrong, by reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.labels.objects import (
    LabelFile,
    LabelReport,
    Marks,
    Objects,
    cut_to,
    long_enough,
)
from scenesweep.pipeline.labels.raw_labels import Tally, measure
from scenesweep.pipeline.labels.request import LabelRequest
from scenesweep.pipeline.labels.settings import LabelSettings
from scenesweep.pipeline.raster.chips import grid_scale
from scenesweep.pipeline.settings import ReadSettings

_OUTSIDE, _UNKNOWN = "outside the raster", "of an unknown class"
_HINTS = {
    _OUTSIDE: "are these the right rasters?",
    "outside every raster": "is the CRS right?",
    "of an image that is not among the rasters": "labels mean rasters by file name",
    "too small": "see --min-side-px",
}


def check(
    file: LabelFile, wanted: LabelRequest, settings: LabelSettings, *, gsd_m: float | None
) -> LabelFile:
    """Return the file with every fault named, boxes cut by their raster, points as squares.

    `gsd_m` is that of the grid, whose pixels `min_side_px` counts; None: each raster's own.
    """
    marks = file.marks
    fault = marks.fault.astype(object)

    def blame(rows: NDArray[np.bool_], reason: str) -> None:
        fault[rows & (fault == "")] = reason

    blame(~np.isfinite(marks.xyxy.sum(axis=1)), "without coordinates that are numbers")
    blame(~np.isin(marks.name, wanted.classes), _UNKNOWN)
    sizes = _per_mark(marks, [(scene.width, scene.height) for scene in wanted.scenes])
    if file.points:
        (x, y), (width, height) = marks.xyxy[:, :2].T, sizes.T
        blame(~((x >= 0) & (y >= 0) & (x < width) & (y < height)), _OUTSIDE)
        xyxy = marks.xyxy + _half_sides(marks, wanted, settings) * [-1, -1, 1, 1]
    else:
        sides = marks.xyxy[:, 2:] - marks.xyxy[:, :2]
        blame(~(sides.min(axis=1) > 0), "without area")
        part, share = cut_to(marks.xyxy, np.hstack([np.zeros_like(sizes), sizes]))
        blame(~(share > 0), _OUTSIDE)
        blame(~(share >= settings.min_visible), "mostly outside the raster")
        xyxy = part if settings.clip else marks.xyxy
        on_grid = xyxy / np.tile(_per_mark(marks, _scales(wanted, gsd_m)), 2)
        blame(~long_enough(on_grid, settings.min_side_px), "too small")
    return replace(file, marks=replace(marks, xyxy=xyxy, fault=fault.astype(np.str_)))


def objects_of(file: LabelFile, wanted: LabelRequest) -> dict[str, Objects]:
    """Return the objects of each raster that a checked file speaks of, by scene id."""
    good = file.marks.take(file.marks.fault == "")
    order = {name: label for label, name in enumerate(wanted.classes)}
    labels = np.array([order[name] for name in good.name.tolist()], np.int64)
    found = {}
    for scene in file.scenes:
        rows = good.scene == scene
        found[wanted.scenes[scene].id] = Objects(good.xyxy[rows], labels[rows], file.points)
    return found


def report_on(path: Path, raw: LabelFile, checked: LabelFile, wanted: LabelRequest) -> LabelReport:
    """Count what became of the labels; one that is good on some raster is used.

    Raises:
        LabelError: when there are labels and none can be used.
    """
    marks = checked.marks
    good = set(marks.number[marks.fault == ""].tolist())
    every, first = np.unique(marks.number, return_index=True)
    tally = Tally()
    for row in first[~np.isin(every, list(good))].tolist():
        where, fault, box = str(marks.where[row]), str(marks.fault[row]), raw.marks.xyxy[row]
        if fault == _UNKNOWN:
            where += f": {marks.name[row]}"
        elif np.isfinite(box).all():
            where += f": {measure(box.tolist())}"
        tally.add(fault, where)
    report = LabelReport(len(every), len(good), tally.result(), checked.notes)
    if report.labels and not report.used:
        raise LabelError(_nothing_left(path, report, wanted))
    return report


def _nothing_left(path: Path, report: LabelReport, wanted: LabelRequest) -> str:
    main = report.wrong[0]
    hint = _HINTS.get(main.reason, "")
    if main.reason == _UNKNOWN:
        hint = f"the card has {', '.join(wanted.classes)}"
    text = f"{path}: none of {report.labels:,} labels can be used: " + "; ".join(
        str(count) for count in report.wrong
    )
    return f"{text}. {hint[:1].upper()}{hint[1:]}".rstrip(". ")


def _per_mark(marks: Marks, values: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Give each mark the pair of its raster; what is on none gets the last, of no account."""
    pairs = np.array([*values, (1.0, 1.0)], np.float64)
    return pairs[marks.scene]


def _half_sides(marks: Marks, wanted: LabelRequest, settings: LabelSettings) -> NDArray[np.float64]:
    """Return half the width and height of the square round each point (N, 4), scene pixels."""
    gsds = [scene.gsd_m for scene in wanted.scenes]
    if settings.box_m is None:
        return np.full((len(marks), 4), 0.5)
    if None in gsds:
        lost = wanted.scenes[gsds.index(None)].href
        raise LabelError(f"{lost}: a box in metres needs a raster with georeference")
    pairs = _per_mark(marks, [gsd for gsd in gsds if gsd is not None])
    return np.tile(settings.box_m / pairs / 2, 2)


def _scales(wanted: LabelRequest, gsd_m: float | None) -> list[tuple[float, float]]:
    """Return scene pixels per grid pixel of each raster."""
    if gsd_m is None:
        return [(1.0, 1.0)] * len(wanted.scenes)
    tolerance = ReadSettings().gsd_tolerance
    return [grid_scale(scene, gsd_m, tolerance=tolerance) for scene in wanted.scenes]
