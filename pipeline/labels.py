"""Read labelled chips: rasters of one size with points drawn on them."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.card import ModelCard
from model.train import TrainingSet
from pipeline.errors import LabelError
from pipeline.read import band_indexes, read_bands
from pipeline.scene import inspect


@dataclass(frozen=True, slots=True)
class PointChips:
    """Chips (N, bands, S, S) uint8 with the true points (T, 2) of each, in pixels.

    Pixel edges are whole numbers: the centre of pixel (x, y) is (x + 0.5, y + 0.5).
    """

    names: tuple[str, ...]
    chips: NDArray[np.uint8]
    points: list[NDArray[np.float64]]


def read_point_chips(folder: Path, labels: Path, names: Path, card: ModelCard) -> PointChips:
    """Read the chips named in the text file `names`, with the bands that `card` asks for.

    `labels` is a CSV with the columns image, x, y in whole pixel indices. A chip that is not in
    it has no objects.

    Raises:
        LabelError: for a missing chip, chips of several sizes, or a point outside its chip.
    """
    points = _read_points(labels)
    wanted = tuple(line.strip() for line in _lines(names) if line.strip())
    if not wanted:
        raise LabelError(f"{names}: expected one chip name a line, found none")
    chips, found = [], []
    for name in wanted:
        path = folder / f"{name}.tif"
        if not path.is_file():
            raise LabelError(f"{path}: named in {names}, but there is no such file")
        scene = inspect(str(path))
        chip = read_bands(scene, band_indexes(scene, card.bands))
        inside = np.array(points.get(name, []), np.float64).reshape(-1, 2)
        if (inside < 0).any() or (inside > (scene.width, scene.height)).any():
            raise LabelError(f"{labels}: a point of {name} lies outside its chip")
        chips.append(chip)
        found.append(inside)
    sizes = {chip.shape for chip in chips}
    if len(sizes) != 1:
        raise LabelError(f"{folder}: expected chips of one size, found {sorted(sizes)}")
    return PointChips(wanted, np.stack(chips), found)


def as_boxes(data: PointChips, *, side_px: float) -> TrainingSet:
    """Draw a square of `side_px` round every point, as a box of the first class."""
    half = side_px / 2
    boxes = [np.hstack([p - half, p + half]).astype(np.float32) for p in data.points]
    labels = [np.zeros(len(p), np.int64) for p in data.points]
    return TrainingSet(data.chips, boxes, labels)


def _read_points(labels: Path) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    rows = csv.DictReader(_lines(labels))
    if not {"image", "x", "y"} <= set(rows.fieldnames or ()):
        raise LabelError(f"{labels}: expected the columns image,x,y, found {rows.fieldnames}")
    for number, row in enumerate(rows, start=2):
        try:
            points[row["image"]].append((float(row["x"]) + 0.5, float(row["y"]) + 0.5))
        except (TypeError, ValueError) as error:
            raise LabelError(f"{labels}, line {number}: x and y must be numbers") from error
    return points


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: cannot be read: {error}") from error
