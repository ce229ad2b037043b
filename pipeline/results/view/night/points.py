"""The detections of the map: one row each, ordered along a Z-order curve, and packed small.

Order and packing serve the page: near detections are near in the arrays, so that their differences
are small numbers, and a block of rows covers a small part of the map.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scenesweep.pipeline.errors import UnreadableScene
from scenesweep.pipeline.publish.formats.centres import MOST_LATITUDE
from scenesweep.pipeline.results.view.night.frame import BITS, UNITS, Frame
from scenesweep.pipeline.results.view.published import PublishedScene

SIDE_STEPS = 4
"""Sides are packed in quarters of a pixel of their scene."""
_COLUMNS = ("center_lon", "center_lat", "score", "class_name", "x_min", "y_min", "x_max", "y_max")
_STEPS = np.arange(1, 101).astype(np.float32) / np.float32(100)
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Points:
    """The detections on the map.

    `columns` are `x`, `y` (int32 units), `scene` (uint32), `label`, `width`, `height` (uint16;
    sides in quarters of a scene pixel) and `score` (uint8: the number of hundredths that the score
    reaches). `by_scene` counts the detections of each scene, also those that are not in `columns`:
    `beyond` have a latitude that the map does not have, the others have the lowest scores.
    """

    columns: Columns
    by_scene: tuple[int, ...]
    beyond: int

    @property
    def total(self) -> int:
        return sum(self.by_scene)

    def __len__(self) -> int:
        return len(self.columns["x"])

    def packed(self) -> dict[str, object]:
        """Return JSON-able values: per column the type and compressed bytes in base64."""
        squeezed = {
            name: _squeezed(column, differences=name in ("x", "y"))
            for name, column in self.columns.items()
        }
        return {
            "rows": len(self),
            "total": self.total,
            "beyond": self.beyond,
            "columns": squeezed,
        }


def read_points(
    scenes: Sequence[PublishedScene], classes: Sequence[str], frame: Frame, *, most: int
) -> Points:
    """Read the detections of scenes; of more than `most`, those with the highest scores are kept.

    Detections without longitude and latitude are left out and not counted.

    Raises:
        UnreadableScene: when a table cannot be read.
    """
    kept: list[Columns] = []
    by_scene: list[int] = []
    rows = beyond = 0
    for number, scene in enumerate(scenes):
        columns, outside = _read(scene, number, classes, frame)
        kept.append(columns)
        by_scene.append(len(columns["x"]) + outside)
        beyond += outside
        rows += len(columns["x"])
        if rows > 2 * most:  # many scenes need not be in memory at once
            kept = [_highest(kept, most)]
            rows = len(kept[0]["x"])
    return Points(_ordered(_highest(kept, most)), tuple(by_scene), beyond)


def z_order(x: NDArray[np.int32], y: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return the position of points along a Z-order curve: the bits of y and x in turn."""
    return _spread(y) << np.uint64(1) | _spread(x)


def _read(
    scene: PublishedScene, number: int, classes: Sequence[str], frame: Frame
) -> tuple[Columns, int]:
    """Return the detections on the map, and the number of those beyond its latitudes."""
    try:
        table = pq.read_table(scene.table, columns=list(_COLUMNS), partitioning=None)
        placed = table.filter(pc.is_finite(table["center_lon"]))
        table = placed.filter(pc.less_equal(pc.abs(placed["center_lat"]), MOST_LATITUDE))
        lonlat = np.stack([table[name].to_numpy() for name in _COLUMNS[:2]], axis=-1)
        label = pc.index_in(table["class_name"], pa.array(classes, pa.string())).to_numpy()
        corners = {name: table[name].to_numpy() for name in _COLUMNS[4:]}
        score = table["score"].to_numpy().astype(np.float32)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UnreadableScene(f"{scene.table}: expected a published table: {error}") from error
    xy = np.clip(np.floor(frame.project(lonlat)), 0, UNITS - 1).astype(np.int32)
    columns = {
        "x": xy[:, 0],
        "y": xy[:, 1],
        "scene": np.full(len(xy), number, np.uint32),
        "label": label.astype(np.uint16),
        "width": _steps(corners["x_max"] - corners["x_min"]),
        "height": _steps(corners["y_max"] - corners["y_min"]),
        "score": np.searchsorted(_STEPS, score, side="right").astype(np.uint8),
    }
    return columns, len(placed) - len(table)


def _steps(sides: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.clip(np.rint(sides * SIDE_STEPS), 1, 2**16 - 1).astype(np.uint16)


def _highest(parts: Sequence[Columns], most: int) -> Columns:
    """Join columns, and keep the rows with the highest scores; of equal ones the first."""
    if not parts:
        return {name: np.zeros(0, kind) for name, kind in _KINDS.items()}
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _KINDS}
    if len(joined["score"]) <= most:
        return joined
    rank = -joined["score"].astype(np.int16)
    keep = np.sort(np.argsort(rank, kind="stable")[:most])
    return {name: column[keep] for name, column in joined.items()}


_KINDS = {
    "x": np.int32,
    "y": np.int32,
    "scene": np.uint32,
    "label": np.uint16,
    "width": np.uint16,
    "height": np.uint16,
    "score": np.uint8,
}


def _ordered(columns: Columns) -> Columns:
    x, y = (columns[name].astype(np.int32) for name in ("x", "y"))
    order = np.argsort(z_order(x, y), kind="stable")
    return {name: column[order] for name, column in columns.items()}


def _spread(values: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Put a zero bit between the bits of integers of up to 30 bits."""
    assert BITS <= 32
    bits = values.astype(np.uint64)
    for shift, mask in _MASKS:
        bits = (bits | bits << np.uint64(shift)) & np.uint64(mask)
    return bits


_MASKS = (
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)


def _squeezed(column: NDArray[np.generic], *, differences: bool) -> dict[str, object]:
    """Compress a column: its differences, if asked for, with all first bytes before all second."""
    kind = column.dtype.newbyteorder("<")
    values = np.diff(column, prepend=column.dtype.type(0)) if differences else column
    planes = values.astype(kind).view(np.uint8).reshape(len(column), kind.itemsize).T
    data = zlib.compress(planes.tobytes(), 6)
    return {
        "type": column.dtype.name,
        "differences": differences,
        "data": b64encode(data).decode(),
    }


def classes_in(scenes: Sequence[PublishedScene], known: Sequence[str]) -> tuple[str, ...]:
    """Return `known` classes, then the other classes of the scenes' tables, sorted.

    Raises:
        UnreadableScene: when a table cannot be read.
    """
    others = {name for scene in scenes for name in _names(scene)} - set(known)
    return (*known, *sorted(others))


def _names(scene: PublishedScene) -> Iterator[str]:
    try:
        column = pq.read_table(scene.table, columns=["class_name"], partitioning=None)
        yield from (name for name in pc.unique(column["class_name"]).to_pylist() if name)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UnreadableScene(f"{scene.table}: expected a published table: {error}") from error
