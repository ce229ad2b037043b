"""CSV files: DeepForest's boxes and geometries, and points. All in pixels of an image."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.labels.names import read_text
from scenesweep.pipeline.labels.objects import LabelFile, Marks
from scenesweep.pipeline.labels.raw_labels import NOWHERE, Gathered, Tally, choose_class_column
from scenesweep.pipeline.labels.request import LabelRequest

_IMAGE_COLUMNS = ("image_path", "image")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_NO_PLACE = "without coordinates that are numbers"


@dataclass(frozen=True, slots=True)
class _Form:
    """Which columns a CSV file has: of the image, of the place and, perhaps, of the class."""

    image: str
    place: tuple[str, ...]
    name: str | None


def read_table(
    path: Path, wanted: LabelRequest, *, points: bool, class_column: str | None
) -> LabelFile:
    """Read boxes, WKT geometries or points.

    Boxes and geometries are in pixels from the image's top left corner, whole numbers being
    pixel edges. Points x, y are indices of pixels, and mean their centres, when every number
    in the file is whole; else they are coordinates like those of boxes. An image without rows
    has no objects; neither has one with a row of zeros or blanks.

    Raises:
        LabelError: when columns are missing, or points and boxes are mixed.
    """
    lines = csv.DictReader(read_text(path).splitlines(), skipinitialspace=True)
    form = _form(path, lines, wanted.classes, points=points, class_column=class_column)
    gathered, notes = Gathered(), Tally()
    for number, row in enumerate(lines):
        where = f"line {lines.line_num}"
        image = row[form.image] or ""
        scene = wanted.find(image)
        if scene == -1 and wanted.is_elsewhere(image):
            notes.add("of images not asked for")
            continue
        values = [(row[column] or "").strip() for column in form.place]
        if len(values) == len(_EDGES) and all(value in ("", "0", "0.0") for value in values):
            notes.add("rows that say an image has no objects", where)
            continue
        xyxy = _geometry(values[0]) if len(values) == 1 else _numbers(values)
        fault = "" if scene >= 0 else "of an image that is not among the rasters"
        if xyxy is NOWHERE:
            fault = _NO_PLACE
        name = wanted.classes[0] if form.name is None else (row[form.name] or "").strip()
        gathered.add(number, scene, xyxy, name=name, where=f"{where} ({image})", fault=fault)
    marks = gathered.marks()
    if len(form.place) == 2:
        marks = _at_centres(marks)
    scenes = tuple(range(len(wanted.scenes)))
    dots = len(form.place) == 2 or (len(form.place) == 1 and _are_points(marks))
    return LabelFile(marks, scenes, dots, notes.result())


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
    wishes = (("x", "y"),) if points else (_EDGES, ("geometry",))
    place = next((wish for wish in wishes if set(wish) <= set(columns)), None)
    if image is None or place is None:
        forms = " or ".join(",".join(wish) for wish in wishes)
        raise LabelError(
            f"{path}: expected the columns {' or '.join(_IMAGE_COLUMNS)}, and {forms}; found "
            f"{','.join(columns) or 'none'}"
        )
    name = choose_class_column(columns, classes, wanted=class_column, origin=str(path))
    return _Form(image, place, name)


def _columns(lines: csv.DictReader[str]) -> list[str]:
    lines.fieldnames = [name.strip() for name in lines.fieldnames or ()]
    return list(lines.fieldnames)


def _numbers(values: list[str]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except ValueError:
        return NOWHERE
    return numbers * (4 // len(numbers)) if np.isfinite(numbers).all() else NOWHERE


def _geometry(text: str) -> tuple[float, ...]:
    shape = shapely.from_wkt(text, on_invalid="ignore")
    if shape is None or shape.is_empty:
        return NOWHERE
    return tuple(float(edge) for edge in shape.bounds)


def _at_centres(marks: Marks) -> Marks:
    placed = marks.xyxy[np.isfinite(marks.xyxy).all(axis=1)]
    if len(placed) and not (placed == np.floor(placed)).all():
        return marks
    return Marks(marks.number, marks.scene, marks.xyxy + 0.5, marks.name, marks.where, marks.fault)


def _are_points(marks: Marks) -> bool:
    placed = marks.xyxy[np.isfinite(marks.xyxy).all(axis=1)]
    dots = (placed[:, :2] == placed[:, 2:]).all(axis=1)
    return bool(len(dots)) and bool(dots.all())
