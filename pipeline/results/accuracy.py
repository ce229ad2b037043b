"""Compare published tables, the result of the merge, with labelled objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pydantic import ValidationError
from shapely import Geometry

from scenesweep.model.boxes import Boxes
from scenesweep.model.evaluate import Comparison, Interval, Rule, pairs_at
from scenesweep.pipeline.errors import SceneError, UnreadableOutput, UsageError
from scenesweep.pipeline.geometry.grid import Grid
from scenesweep.pipeline.labels import Objects
from scenesweep.pipeline.planning.area import area_in_scene
from scenesweep.pipeline.planning.plan import inspect_for
from scenesweep.pipeline.publish.provenance import Provenance, read_provenance
from scenesweep.pipeline.scene import Scene, SceneRef
from scenesweep.pipeline.settings import SceneSettings
from scenesweep.pipeline.sources import expand
from scenesweep.pipeline.sources.ids import identified
from scenesweep.pipeline.storage.location import Location, parquet
from scenesweep.pipeline.storage.paths import Output

_GRID = ("chip", "margin", "fit")
_WILSON_Z = 1.959964  # 95 %


@dataclass(frozen=True, slots=True)
class PublishedDetections:
    """The published detections of a scene, and how it was swept.

    `xyxy` (N, 4) float64 scene pixels, `score` (N,) and `class_name` (N,) are the table's
    rows. `scale` is scene pixels per pixel of `grid`. `classes` are the model's, or empty
    where the table does not record them. `area_px` is the part inside the area of interest of the
    sweep, in scene pixels; None if the whole scene was swept.
    """

    scene: Scene
    xyxy: NDArray[np.float64]
    score: NDArray[np.float32]
    class_name: NDArray[np.object_]
    grid: Grid
    scale: tuple[float, float]
    threshold: float
    model: str
    classes: tuple[str, ...]
    area_px: Geometry | None


@dataclass(frozen=True, slots=True)
class Share:
    """A number of cases, `part`, out of a total, `whole`."""

    part: int
    whole: int

    @property
    def value(self) -> float | None:
        return self.part / self.whole if self.whole else None

    @property
    def interval(self) -> Interval:
        """Return the 95 % score interval (Wilson 1927); of a total of 0 it is 0 to 1."""
        n, z = self.whole, _WILSON_Z
        middle = (self.part + z**2 / 2) / (n + z**2)
        half = z / (n + z**2) * np.sqrt(self.part * (n - self.part) / max(n, 1) + z**2 / 4)
        return Interval(float(max(0, middle - half)), float(min(1, middle + half)))


@dataclass(frozen=True, slots=True)
class Zone:
    """Recall and precision of one kind of ground."""

    recall: Share
    precision: Share


@dataclass(frozen=True, slots=True)
class SeamScores:
    """Figures within `margin_px` grid pixels of a seam between windows, and elsewhere."""

    margin_px: int
    near: Zone
    elsewhere: Zone


def open_published(out: Location, named: Sequence[str]) -> list[PublishedDetections]:
    """Read the published tables of scenes, which are `named` as for `scenesweep detect`.

    Raises:
        UsageError: when a scene has no table under `out` or another size, or when the tables come
            from several models, score thresholds or margins.
        UnreadableOutput: when a table has no valid record of how it was made.
    """
    tables = {path.stem: path for path in Output(out).tables()}
    if not tables:
        raise UsageError(
            f"{out}: expected the --out folder of scenesweep detect, found no published table"
        )
    first = next(iter(tables.values()))
    settings = _scene_settings(read_provenance(first), first)
    published = []
    for href in expand(named, settings.drivers):
        scene = _inspect(href, settings)
        if scene.id not in tables:
            raise UsageError(f"{href}: scene {scene.id!r} has no published table under {out}")
        published.append(_read(tables[scene.id], scene))
    _check_alike(published)
    return published


def class_names(published: Sequence[PublishedDetections]) -> tuple[str, ...]:
    """Return the model's classes; where the tables do not record them, the detected classes.

    In the second case objects of a class that was never detected cannot be counted: name the
    model.
    """
    if published and published[0].classes:
        return published[0].classes
    return tuple(sorted({str(name) for table in published for name in table.class_name}))


def compare_scene(
    published: PublishedDetections, objects: Objects, classes: Sequence[str], area: Geometry | None
) -> Comparison:
    """Return the predictions and the labelled objects of a scene, in scene pixels.

    With an `area` (longitude and latitude), boxes with a centre outside are dropped from both.

    Raises:
        UsageError: when a published class is not among `classes`.
    """
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted({str(name) for name in published.class_name} - number.keys())
    if unknown:
        raise UsageError(
            f"scene {published.scene.id}: classes {', '.join(unknown)} were published, but the "
            f"model has {', '.join(classes)}: name the model that the scene was swept with"
        )
    label = np.array([number[str(name)] for name in published.class_name], np.int16)
    chip = np.zeros(len(label), np.int32)
    predicted = Boxes(published.xyxy, published.score, label, chip)
    sample = Comparison(published.scene.id, predicted, objects.xyxy, objects.label)
    return sample if area is None else _inside(sample, area_in_scene(area, published.scene))


def inside_swept_area(sample: Comparison, published: PublishedDetections) -> Comparison:
    """Drop boxes with a centre where the sweep did not look: such objects are not missed.

    The table records its area of interest to 0.5 pixels.
    """
    return sample if published.area_px is None else _inside(sample, published.area_px)


def in_metres(sample: Comparison, scene: Scene) -> Comparison:
    """Scale a sample from scene pixels to metres, by the scene's ground sample distance.

    Raises:
        UsageError: when the scene has none.
    """
    if scene.gsd_m is None:
        raise UsageError(f"{scene.href}: distances in metres need a georeferenced scene")
    metres = np.array(scene.gsd_m * 2)
    predicted = replace(sample.predicted, xyxy=sample.predicted.xyxy * metres)
    return replace(sample, predicted=predicted, xyxy=sample.xyxy * metres)


def near_seams(points: NDArray[np.float64], published: PublishedDetections) -> NDArray[np.bool_]:
    """Say which points (N, 2), scene pixels, are within the margin of a border between cores."""
    grid = published.grid
    x, y = (points / np.array(published.scale)).T
    across = _distance(x, grid.columns.core_starts[1:])
    down = _distance(y, grid.rows.core_starts[1:])
    near: NDArray[np.bool_] = np.minimum(across, down) <= grid.margin
    return near


def seam_scores(
    published: Sequence[PublishedDetections],
    samples: Sequence[Comparison],
    rule: Rule,
    *,
    threshold: float,
) -> SeamScores:
    """Compare recall and precision near the seams with those elsewhere.

    `samples` are in scene pixels, a radius of the `rule` in metres. Boxes are matched over
    complete scenes; then each object and each prediction is counted where its own centre lies.
    """
    counts = np.zeros((2, 4), np.int64)  # elsewhere, near; matched and all objects, predictions
    for table, sample in zip(published, samples, strict=True):
        compared = sample if rule.radius is None else in_metres(sample, table.scene)
        predicted, true = pairs_at(compared, rule, threshold)
        objects = near_seams(sample.centres(), table).astype(np.intp)
        predictions = near_seams(sample.predicted.centres(), table).astype(np.intp)
        counted = predictions[sample.predicted.score >= np.float32(threshold)]
        kinds = objects[true], objects, predictions[predicted], counted
        counts += np.stack([np.bincount(kind, minlength=2) for kind in kinds], axis=1)
    elsewhere, near = (
        Zone(Share(int(a), int(b)), Share(int(c), int(d))) for a, b, c, d in counts.tolist()
    )
    return SeamScores(published[0].grid.margin, near, elsewhere)


def _read(path: Location, scene: Scene) -> PublishedDetections:
    provenance = read_provenance(path)
    (scale_x, scale_y), (width, height) = provenance.grid_scale, provenance.grid_size
    if (round(scene.width / scale_x), round(scene.height / scale_y)) != (width, height):
        raise UsageError(f"{scene.href}: has another size than the scene that was swept")
    columns = ["x_min", "y_min", "x_max", "y_max", "score", "class_name"]
    table = pq.ParquetFile(parquet(path)).read(columns)
    try:
        tiling, detect = provenance.settings["tiling"], provenance.settings["detect"]
        grid = Grid(width, height, side=1, **{name: tiling[name] for name in _GRID})
        threshold = float(detect["score_threshold"])
    except (KeyError, TypeError) as error:
        raise _of_another_version(path) from error
    return PublishedDetections(
        scene,
        np.stack([table[name].to_numpy() for name in columns[:4]], axis=1),
        table["score"].to_numpy(),
        np.array(table["class_name"].to_pylist(), dtype=object),
        grid,
        (scale_x, scale_y),
        threshold,
        provenance.model.sha256,
        provenance.model.classes,
        None if provenance.area is None else provenance.area.outline_px(),
    )


def _scene_settings(provenance: Provenance, path: Location) -> SceneSettings:
    try:
        return SceneSettings.model_validate(provenance.settings["scenes"])
    except (KeyError, ValidationError) as error:
        raise _of_another_version(path) from error


def _of_another_version(path: Location) -> UnreadableOutput:
    return UnreadableOutput(
        f"{path}: another version of scenesweep wrote its settings; sweep the scene again"
    )


def _inspect(href: str, settings: SceneSettings) -> Scene:
    try:
        return inspect_for(identified(SceneRef.of_file(href), settings.ids), settings)
    except SceneError as error:
        raise UsageError(str(error)) from error


def _check_alike(published: Sequence[PublishedDetections]) -> None:
    for kind, values in (
        ("models", {table.model for table in published}),
        ("score thresholds", {table.threshold for table in published}),
        ("margins", {table.grid.margin for table in published}),
    ):
        if len(values) > 1:
            raise UsageError(
                f"the scenes were swept with {len(values)} different {kind}: "
                "evaluate them separately"
            )


def _inside(sample: Comparison, area_px: Geometry) -> Comparison:
    shapely.prepare(area_px)
    predicted = np.asarray(shapely.intersects_xy(area_px, sample.predicted.centres()))
    true = np.asarray(shapely.intersects_xy(area_px, sample.centres()))
    return Comparison(
        sample.name, sample.predicted.take(predicted), sample.xyxy[true], sample.label[true]
    )


def _distance(values: NDArray[np.float64], borders: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how far each value is from the nearest of the ascending borders."""
    edges = np.concatenate([[-np.inf], borders, [np.inf]])
    after = np.searchsorted(borders, values) + 1
    nearest: NDArray[np.float64] = np.minimum(values - edges[after - 1], edges[after] - values)
    return nearest
