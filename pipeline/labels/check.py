"""Check each label of a file: it is an object of a raster, or it is wrong for a named reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.labels.objects import (
    LabelFile,
    LabelReport,
    LabelRows,
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
    "of an image that is not among the rasters": "a label names its raster by file name",
    "too small": "see --min-side-px",
}


def check(
    file: LabelFile, request: LabelRequest, settings: LabelSettings, *, gsd_m: float | None
) -> LabelFile:
    """Return the file with a reason at each wrong label, boxes cut at rasters, points as squares.

    `min_side_px` counts pixels of a grid with a ground sample distance of `gsd_m`, or, without
    `gsd_m`, pixels of each raster.
    """
    rows = file.rows
    fault = rows.fault.astype(object)

    def blame(chosen: NDArray[np.bool_], reason: str) -> None:
        fault[chosen & (fault == "")] = reason

    blame(~np.isfinite(rows.xyxy.sum(axis=1)), "without coordinates that are numbers")
    blame(~np.isin(rows.name, request.classes), _UNKNOWN)
    sizes = _per_row(rows, [(scene.width, scene.height) for scene in request.scenes])
    if file.points:
        (x, y), (width, height) = rows.xyxy[:, :2].T, sizes.T
        blame(~((x >= 0) & (y >= 0) & (x < width) & (y < height)), _OUTSIDE)
        xyxy = rows.xyxy + _half_sides(rows, request, settings) * [-1, -1, 1, 1]
    else:
        sides = rows.xyxy[:, 2:] - rows.xyxy[:, :2]
        blame(~(sides.min(axis=1) > 0), "without area")
        part, share = cut_to(rows.xyxy, np.hstack([np.zeros_like(sizes), sizes]))
        blame(~(share > 0), _OUTSIDE)
        blame(~(share >= settings.min_visible), "mostly outside the raster")
        xyxy = part if settings.clip else rows.xyxy
        on_grid = xyxy / np.tile(_per_row(rows, _scales(request, gsd_m)), 2)
        blame(~long_enough(on_grid, settings.min_side_px), "too small")
    return replace(file, rows=replace(rows, xyxy=xyxy, fault=fault.astype(np.str_)))


def objects_of(file: LabelFile, request: LabelRequest) -> dict[str, Objects]:
    """Return the objects of each raster that a checked file describes, by scene id."""
    good = file.rows.take(file.rows.fault == "")
    order = {name: label for label, name in enumerate(request.classes)}
    labels = np.array([order[name] for name in good.name.tolist()], np.int64)
    objects = {}
    for scene in file.scenes:
        here = good.scene == scene
        objects[request.scenes[scene].id] = Objects(good.xyxy[here], labels[here], file.points)
    return objects


def report_on(path: Path, raw: LabelFile, checked: LabelFile, request: LabelRequest) -> LabelReport:
    """Count the labels that are used and those that are wrong. A label good on one raster is used.

    Raises:
        LabelError: when there are labels but none can be used.
    """
    rows = checked.rows
    good = set(rows.number[rows.fault == ""].tolist())
    numbers, first = np.unique(rows.number, return_index=True)
    tally = Tally()
    for row in first[~np.isin(numbers, list(good))].tolist():
        where, fault, box = str(rows.where[row]), str(rows.fault[row]), raw.rows.xyxy[row]
        if fault == _UNKNOWN:
            where += f": {rows.name[row]}"
        elif np.isfinite(box).all():
            where += f": {measure(box.tolist())}"
        tally.add(fault, where)
    report = LabelReport(len(numbers), len(good), tally.result(), checked.notes)
    if report.labels and not report.used:
        raise LabelError(_no_label_message(path, report, request))
    return report


def _no_label_message(path: Path, report: LabelReport, request: LabelRequest) -> str:
    main = report.wrong[0]
    hint = _HINTS.get(main.reason, "")
    if main.reason == _UNKNOWN:
        hint = f"the card has {', '.join(request.classes)}"
    text = f"{path}: none of {report.labels:,} labels can be used: " + "; ".join(
        str(count) for count in report.wrong
    )
    return f"{text}. {hint[:1].upper()}{hint[1:]}".rstrip(". ")


def _per_row(rows: LabelRows, values: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Return (N, 2) for each row the values of its raster; a row without raster gets ones."""
    pairs = np.array([*values, (1.0, 1.0)], np.float64)
    return pairs[rows.scene]


def _half_sides(
    rows: LabelRows, request: LabelRequest, settings: LabelSettings
) -> NDArray[np.float64]:
    """Return (N, 4): half the width and height of the square around each point, scene pixels."""
    gsds = [scene.gsd_m for scene in request.scenes]
    if settings.box_m is None:
        return np.full((len(rows), 4), 0.5)
    if None in gsds:
        href = request.scenes[gsds.index(None)].href
        raise LabelError(f"{href}: expected a raster with georeference, because --box-m is metres")
    pairs = _per_row(rows, [gsd for gsd in gsds if gsd is not None])
    return np.tile(settings.box_m / pairs / 2, 2)


def _scales(request: LabelRequest, gsd_m: float | None) -> list[tuple[float, float]]:
    """Return for each raster the number of scene pixels per grid pixel, in x and y."""
    if gsd_m is None:
        return [(1.0, 1.0)] * len(request.scenes)
    tolerance = ReadSettings().gsd_tolerance
    return [grid_scale(scene, gsd_m, tolerance=tolerance) for scene in request.scenes]
