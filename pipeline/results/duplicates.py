"""Find the detections of one object in several overlapping scenes of one date.

Definition (`test_compact.py` has it as a slow loop). A detection is cut once by each edge of its
scene that it touches, and once more if it is `truncated`. Order the detections of all scenes by
the number of cuts, then by descending score, then by scene and id. In this order, a detection is
a duplicate of the first earlier detection that is not a duplicate itself, comes from another
scene, has the same class, and either overlaps it with an IoU above the threshold, or has fewer
cuts and contains more than `CONTAINMENT` of its area. So every duplicate names a detection that
is not a duplicate, and one detection per object remains.

The second case is a fragment: a scene's edge cuts an object that the other scene shows more of.
The IoU of fragment and object may be small (`detection.merge` has the same rule for the windows
of one scene). An edge that both scenes share cuts both boxes, and counts for both. The table does
not record where valid pixels end inside the raster (nodata), so a box is not cut there.

IoU is computed from the polygons in degrees. Over the length of a box, degrees are proportional
to metres along each axis, so a ratio of areas is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from scenesweep.pipeline.detection.detect import EDGE_PX
from scenesweep.pipeline.results.tables import SceneTable
from scenesweep.pipeline.storage.location import parquet

CONTAINMENT = 0.5
_EDGES = ("x_min", "y_min", "x_max", "y_max")
_COLUMNS = ["detection_id", "class_name", "score", "geometry", "truncated", *_EDGES]
_NEAR_ANTIMERIDIAN = 179.9
_ROUND_THE_GLOBE = 181.0

Rank = tuple[int, float, str, str]
"""The order of detections: number of cuts, negative score, scene and id."""


@dataclass(frozen=True, slots=True)
class SceneDetections:
    """Detections of one scene, with the columns that the comparison of scenes needs.

    `row` (N,) counts through the rows of all scenes of the date; `cuts` (N,) is the number of
    cuts of each box.
    """

    scene_id: str
    row: NDArray[np.int64]
    score: NDArray[np.float32]
    cuts: NDArray[np.int64]
    detection_id: NDArray[np.object_]
    class_name: NDArray[np.object_]
    polygon: NDArray[np.object_]

    def rank(self, index: int) -> Rank:
        score, name = -float(self.score[index]), str(self.detection_id[index])
        return int(self.cuts[index]), score, self.scene_id, name


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows that are duplicates, ascending, and the ids of what they duplicate."""

    rows: NDArray[np.int64]
    of: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.of)

    @classmethod
    def none(cls) -> Duplicates:
        return cls(np.zeros(0, np.int64), ())


def find_duplicates(scenes: Sequence[SceneTable], iou: float) -> Duplicates:
    """Return the duplicates among the detections of one date.

    Rows count through all scenes in the order given. Two scenes at a time are in memory.
    """
    starts = np.cumsum([0, *(scene.rows for scene in scenes)])
    pairs: list[tuple[Rank, Rank, int]] = []
    for number, others in _neighbours(scenes):
        first = _read(scenes[number], int(starts[number]))
        for other in others:
            pairs += _pairs(first, _read(scenes[other], int(starts[other])), iou)
    settled: set[Rank] = set()
    duplicates: dict[int, str] = {}
    for winner, loser, row in sorted(pairs):
        if winner not in settled and loser not in settled:
            settled.add(loser)
            duplicates[row] = winner[-1]
    rows = sorted(duplicates)
    return Duplicates(np.array(rows, np.int64), tuple(duplicates[row] for row in rows))


def _neighbours(scenes: Sequence[SceneTable]) -> Iterator[tuple[int, list[int]]]:
    """Yield each scene with the later scenes whose detections may overlap its own."""
    numbers = [number for number, scene in enumerate(scenes) if scene.bounds is not None]
    boxes = [shapely.box(*_reach(scene)) for scene in scenes if scene.bounds is not None]
    tree = shapely.STRtree(boxes)
    for index, number in enumerate(numbers):
        near = tree.query(boxes[index], predicate="intersects")
        after = sorted(numbers[other] for other in near if other > index)
        if after:
            yield number, after


def _reach(scene: SceneTable) -> tuple[float, float, float, float]:
    """Return a scene's bounds; near the antimeridian, all longitudes."""
    assert scene.bounds is not None
    west, south, east, north = scene.bounds
    if west < -_NEAR_ANTIMERIDIAN or east > _NEAR_ANTIMERIDIAN:
        return -_ROUND_THE_GLOBE, south, _ROUND_THE_GLOBE, north
    return west, south, east, north


def _read(scene: SceneTable, start: int) -> SceneDetections:
    table = pq.read_table(parquet(scene.path), columns=_COLUMNS, partitioning=None)
    polygons = shapely.from_wkb(_objects(table["geometry"]))
    if _reach(scene)[0] < -180:  # near the antimeridian, longitudes continue beyond 180
        polygons = shapely.transform(polygons, lambda xy: xy + (xy[:, :1] < 0) * [360.0, 0.0])
    return SceneDetections(
        scene.image.scene_id,
        start + np.arange(len(table), dtype=np.int64),
        table["score"].to_numpy(),
        _cuts(table, scene),
        _objects(table["detection_id"]),
        _objects(table["class_name"]),
        polygons,
    )


def _cuts(table: pa.Table, scene: SceneTable) -> NDArray[np.int64]:
    """Count the edges of the scene that each box touches, and the window's that truncated it."""
    x0, y0, x1, y1 = (table[name].to_numpy() for name in _EDGES)
    near_x, near_y = (EDGE_PX * scale for scale in scene.scale)
    right, bottom = scene.image.width - near_x, scene.image.height - near_y
    touched = np.stack([x0 <= near_x, y0 <= near_y, x1 >= right, y1 >= bottom])
    return np.count_nonzero(touched, axis=0) + table["truncated"].to_numpy()


def _pairs(a: SceneDetections, b: SceneDetections, iou: float) -> Iterator[tuple[Rank, Rank, int]]:
    """Yield the ranks of a better and a worse detection of one object, and the worse one's row."""
    first, second = shapely.STRtree(b.polygon).query(a.polygon, predicate="intersects")
    alike = a.class_name[first] == b.class_name[second]
    first, second = first[alike], second[alike]
    one, other = a.polygon[first], b.polygon[second]
    shared = shapely.area(shapely.intersection(one, other))
    areas = np.stack([shapely.area(one), shapely.area(other)])
    same = shared > iou * (areas.sum(axis=0) - shared)
    more_cut = np.sign(a.cuts[first] - b.cuts[second])
    same |= (more_cut > 0) & (shared > CONTAINMENT * areas[0])
    same |= (more_cut < 0) & (shared > CONTAINMENT * areas[1])
    for i, j in zip(first[same].tolist(), second[same].tolist(), strict=True):
        better, worse = (a, i), (b, j)
        if b.rank(j) < a.rank(i):
            better, worse = worse, better
        yield better[0].rank(better[1]), worse[0].rank(worse[1]), int(worse[0].row[worse[1]])


def _objects(column: pa.ChunkedArray) -> NDArray[np.object_]:
    return np.array(column.to_pylist(), object)
