"""Pack a published table into a page: columns as typed arrays in base64."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scenesweep.pipeline.errors import UnreadableScene

_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_GEOGRAPHIC = ("center_lon", "center_lat", "width_m", "height_m")
_COLUMNS = ("detection_id", "class_name", "score", *_CORNERS, *_GEOGRAPHIC, "truncated")
DEGREE = 10_000_000
"""Degrees are packed as integers of 1e-7: precise to a centimetre, where float32 has a metre."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Detections as a page shows them, in ascending order of score.

    `xyxy` is (N, 4) float32 scene pixels, `label` indexes `classes`, `identity` is (N, 8)
    bytes. `lonlat` is (N, 2) int32 longitude and latitude in 1e-7 degrees and `size_m` (N, 2)
    float32; both are None without georeference. `total` also counts the dropped rows.
    """

    classes: tuple[str, ...]
    xyxy: NDArray[np.float32]
    score: NDArray[np.float32]
    label: NDArray[np.uint16]
    truncated: NDArray[np.uint8]
    identity: NDArray[np.uint8]
    lonlat: NDArray[np.int32] | None
    size_m: NDArray[np.float32] | None
    total: int

    def __len__(self) -> int:
        return len(self.score)

    def packed(self) -> dict[str, dict[str, str]]:
        """Return the columns as JSON-able values: the type's name, and the bytes in base64."""
        names = ("xyxy", "score", "label", "truncated", "identity", "lonlat", "size_m")
        columns = {name: getattr(self, name) for name in names}
        return {name: packed(column) for name, column in columns.items() if column is not None}


def read_detections(path: Path, *, classes: Sequence[str] = (), most: int) -> Detections:
    """Read a published table; of more than `most` rows, those with the highest scores are kept.

    `classes` come first and keep their order, so that a class has the same colour in all scenes.

    Raises:
        UnreadableScene: when the file is not a published table.
    """
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise UnreadableScene(f"{path}: expected a published table: {error}") from error
    if table.num_columns != len(_COLUMNS):
        missing = sorted(set(_COLUMNS) - set(table.column_names))
        raise UnreadableScene(
            f"{path}: expected a published table; missing columns: {', '.join(missing)}"
        )
    order: NDArray[np.intp] = np.zeros(0, np.intp)
    if len(table):
        order = np.argsort(table["score"].to_numpy(), kind="stable")[-most:]
    return _detections(table.take(pa.array(order, pa.int64())), classes, len(table))


def _detections(table: pa.Table, classes: Sequence[str], total: int) -> Detections:
    names = table["class_name"].combine_chunks()
    others = sorted(set(pc.unique(names).to_pylist()) - set(classes))
    every = (*classes, *others)
    label = pc.index_in(names, pa.array(every, pa.string())).to_numpy(zero_copy_only=False)
    identity = b"".join(bytes.fromhex(name) for name in table["detection_id"].to_pylist())
    lonlat, size_m = _stacked(table, _GEOGRAPHIC[:2]), _stacked(table, _GEOGRAPHIC[2:])
    geographic = not np.isnan(lonlat).any()
    return Detections(
        classes=every,
        xyxy=_stacked(table, _CORNERS).astype(np.float32),
        score=table["score"].to_numpy().astype(np.float32),
        label=label.astype(np.uint16),
        truncated=table["truncated"].to_numpy().astype(np.uint8),
        identity=np.frombuffer(identity, np.uint8).reshape(-1, 8),
        lonlat=np.rint(lonlat * DEGREE).astype(np.int32) if geographic else None,
        size_m=size_m.astype(np.float32) if geographic else None,
        total=total,
    )


def _stacked(table: pa.Table, names: Sequence[str]) -> NDArray[np.float64]:
    return np.stack([table[name].to_numpy().astype(np.float64) for name in names], axis=1)


def packed(column: NDArray[np.generic]) -> dict[str, str]:
    """Return an array as JSON-able values: the type's name, and the bytes in base64."""
    little = np.ascontiguousarray(column, column.dtype.newbyteorder("<"))
    return {"type": column.dtype.name, "data": b64encode(little.tobytes()).decode()}
