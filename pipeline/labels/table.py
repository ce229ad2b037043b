"""CSV files in pixels of an image: DeepForest's boxes and geometries, and points."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.labels.names import read_text
from scenesweep.pipeline.labels.objects import LabelFile, LabelRows
from scenesweep.pipeline.labels.raw_labels import (
    NO_BOX,
    LabelRowBuilder,
    Tally,
    choose_class_column,
)
from scenesweep.pipeline.labels.request import LabelRequest

_IMAGE_COLUMNS = ("image_path", "image")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_NO_COORDINATES = "without coordinates that are numbers"


@dataclass(frozen=True, slots=True)
class _Form:
    """The columns of a CSV file: image, coordinates and, if there is one, class."""

    image: str
    coordinates: tuple[str, ...]
    name: str | None


def read_table(
    path: Path, request: LabelRequest, *, points: bool, class_column: str | None
) -> LabelFile:
    """Read boxes, WKT geometries or points.

    Boxes and geometries are in pixels from the top left corner of the image; whole numbers are
    pixel edges. If all x and y of points in the file are whole numbers, they are pixel indices and
    mean pixel centres; otherwise they are coordinates like those of boxes. An image without rows,
    or with a row of zeros or blanks, has no objects.

    Raises:
        LabelError: when columns are missing, or points and boxes are mixed.
    """
    lines = csv.DictReader(read_text(path).splitlines(), skipinitialspace=True)
    form = _form(path, lines, request.classes, points=points, class_column=class_column)
    builder, notes = LabelRowBuilder(), Tally()
    for number, row in enumerate(lines):
        where = f"line {lines.line_num}"
        image = row[form.image] or ""
        scene = request.find(image)
        if scene == -1 and request.is_other_image(image):
            notes.add("of images not asked for")
            continue
        values = [(row[column] or "").strip() for column in form.coordinates]
        if len(values) == len(_EDGES) and all(value in ("", "0", "0.0") for value in values):
            notes.add("rows that say an image has no objects", where)
            continue
        xyxy = _geometry(values[0]) if len(values) == 1 else _numbers(values)
        fault = "" if scene >= 0 else "of an image that is not among the rasters"
        if xyxy is NO_BOX:
            fault = _NO_COORDINATES
        name = request.classes[0] if form.name is None else (row[form.name] or "").strip()
        builder.add(number, scene, xyxy, name=name, where=f"{where} ({image})", fault=fault)
    rows = builder.build()
    if len(form.coordinates) == 2:
        rows = _at_centres(rows)
    scenes = tuple(range(len(request.scenes)))
    points = len(form.coordinates) == 2 or (len(form.coordinates) == 1 and _are_points(rows))
    return LabelFile(rows, scenes, points, notes.result())


def has_points(path: Path) -> bool:
    """Say whether a CSV file has points rather than boxes: columns x and y, and no xmin."""
    columns = _columns(csv.DictReader(read_text(path).splitlines()[:1], skipinitialspace=True))
    return {"x", "y"} <= set(columns) and not set(_EDGES) <= set(columns)


def _form(
    path: Path,
    lines: csv.DictReader[str],
    classes: tuple[str, ...],
    *,
    points: bool,
    class_column: str | None,
) -> _Form:
    columns = _columns(lines)
    image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    options = (("x", "y"),) if points else (_EDGES, ("geometry",))
    coordinates = next((option for option in options if set(option) <= set(columns)), None)
    if image is None or coordinates is None:
        forms = " or ".join(",".join(option) for option in options)
        raise LabelError(
            f"{path}: expected the columns {' or '.join(_IMAGE_COLUMNS)}, and {forms}; found "
            f"{','.join(columns) or 'none'}"
        )
    name = choose_class_column(columns, classes, chosen=class_column, origin=str(path))
    return _Form(image, coordinates, name)


def _columns(lines: csv.DictReader[str]) -> list[str]:
    lines.fieldnames = [name.strip() for name in lines.fieldnames or ()]
    return list(lines.fieldnames)


def _numbers(values: list[str]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except ValueError:
        return NO_BOX
    if not np.isfinite(numbers).all():
        return NO_BOX
    return numbers + numbers if len(numbers) == 2 else numbers  # a point is a box of size 0


def _geometry(text: str) -> tuple[float, ...]:
    shape = shapely.from_wkt(text, on_invalid="ignore")
    if shape is None or shape.is_empty:
        return NO_BOX
    return tuple(float(edge) for edge in shape.bounds)


def _at_centres(rows: LabelRows) -> LabelRows:
    located = rows.xyxy[np.isfinite(rows.xyxy).all(axis=1)]
    if len(located) and not (located == np.floor(located)).all():
        return rows
    return LabelRows(rows.number, rows.scene, rows.xyxy + 0.5, rows.name, rows.where, rows.fault)


def _are_points(rows: LabelRows) -> bool:
    located = rows.xyxy[np.isfinite(rows.xyxy).all(axis=1)]
    same = (located[:, :2] == located[:, 2:]).all(axis=1)
    return bool(len(same)) and bool(same.all())
