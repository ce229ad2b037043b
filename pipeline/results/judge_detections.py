"""Judge published tables: what is in the files, after the merge, against the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pydantic import ValidationError
from shapely import Geometry

from scenesweep.model.boxes import Boxes
from scenesweep.model.evaluate import Comparison, Interval, Rule, pairs_at
from scenesweep.pipeline.errors import SceneError, UsageError
from scenesweep.pipeline.geometry.grid import Grid
from scenesweep.pipeline.labels import Objects
from scenesweep.pipeline.planning.area import area_in_scene
from scenesweep.pipeline.planning.plan import inspect_for
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.settings import SceneSettings, Settings
from scenesweep.pipeline.sources import expand
from scenesweep.pipeline.storage.location import Location, list_matching, parquet
from scenesweep.pipeline.storage.paths import PLAIN

_GRID = ("chip", "margin", "fit")
_WILSON_Z = 1.959964  # 95 %


@dataclass(frozen=True, slots=True)
class PublishedDetections:
    """What was published of a scene, and how it was swept.

    `xyxy` (N, 4) float64 scene pixels, `score` (N,) and `class_name` (N,) are the table's
    rows. `scale` is scene pixels per pixel of `grid`. `classes` are the model's, or empty
    where the table does not say.
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


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    part: int
    whole: int

    @property
    def value(self) -> float | None:
        return self.part / self.whole if self.whole else None

    @property
    def interval(self) -> Interval:
        """Return the 95 % score interval (Wilson 1927): 0 to 1 of nothing."""
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
    """
    tables = {path.stem: path for path in list_matching(out, PLAIN)}
    if not tables:
        raise UsageError(f"{out}: expected the --out folder of a sweep, found no published table")
    first = _provenance(next(iter(tables.values())))
    settings = Settings(scenes=_scene_settings(first, out))
    published = []
    for href in expand(named, settings.scenes.drivers):
        scene = _inspect(href, settings)
        if scene.id not in tables:
            raise UsageError(f"{href}: scene {scene.id!r} has no published table under {out}")
        published.append(_read(tables[scene.id], scene))
    _check_alike(published)
    return published


def class_names(published: Sequence[PublishedDetections]) -> tuple[str, ...]:
    """Return the model's classes; those that were found where the tables do not say.

    Then objects of a class that was never found cannot be counted: give the model.
    """
    if published and published[0].classes:
        return published[0].classes
    return tuple(sorted({str(name) for one in published for name in one.class_name}))


def compare_scene(
    published: PublishedDetections, objects: Objects, classes: Sequence[str], area: Geometry | None
) -> Comparison:
    """Put predictions and truth of a scene together, in scene pixels.

    With an `area` (longitude and latitude), what has its centre outside is left out of both.

    Raises:
        UsageError: when a published class is not among `classes`.
    """
    number = {name: i for i, name in enumerate(classes)}
    strangers = sorted({str(name) for name in published.class_name} - number.keys())
    if strangers:
        raise UsageError(
            f"scene {published.scene.id}: classes {', '.join(strangers)} were published, but the "
            f"model has {', '.join(classes)}: is it the one that was run?"
        )
    label = np.array([number[str(name)] for name in published.class_name], np.int16)
    chip = np.zeros(len(label), np.int32)
    found = Boxes(published.xyxy, published.score, label, chip)
    sample = Comparison(published.scene.id, found, objects.xyxy, objects.label)
    return sample if area is None else _inside(sample, area_in_scene(area, published.scene))


def in_metres(sample: Comparison, scene: Scene) -> Comparison:
    """Scale a sample from scene pixels to metres, by the scene's ground sample distance.

    Raises:
        UsageError: when the scene has none.
    """
    if scene.gsd_m is None:
        raise UsageError(f"{scene.href}: distances in metres need a georeferenced scene")
    metres = np.array(scene.gsd_m * 2)
    found = replace(sample.predicted, xyxy=sample.predicted.xyxy * metres)
    return replace(sample, predicted=found, xyxy=sample.xyxy * metres)


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

    `samples` are in scene pixels, a radius of the `rule` in metres. Matching is done over whole
    scenes; then objects and predictions are told apart by their own centres.
    """
    counts = np.zeros((2, 4), np.int64)  # elsewhere, near; matched and all objects, predictions
    for one, sample in zip(published, samples, strict=True):
        judged = sample if rule.radius is None else in_metres(sample, one.scene)
        predicted, true = pairs_at(judged, rule, threshold)
        objects = near_seams(sample.centres(), one).astype(np.intp)
        found = near_seams(sample.predicted.centres(), one).astype(np.intp)
        reaching = found[sample.predicted.score >= np.float32(threshold)]
        kinds = objects[true], objects, found[predicted], reaching
        counts += np.stack([np.bincount(kind, minlength=2) for kind in kinds], axis=1)
    elsewhere, near = (
        Zone(Share(int(a), int(b)), Share(int(c), int(d))) for a, b, c, d in counts.tolist()
    )
    return SeamScores(published[0].grid.margin, near, elsewhere)


def _read(path: Location, scene: Scene) -> PublishedDetections:
    provenance = _provenance(path)
    columns = ["x_min", "y_min", "x_max", "y_max", "score", "class_name"]
    table = pq.ParquetFile(parquet(path)).read(columns)
    try:
        scale, size = provenance["grid"]["scale"], provenance["grid"]["size"]
        if [round(scene.width / scale[0]), round(scene.height / scale[1])] != size:
            raise UsageError(f"{scene.href}: has another size than the scene that was swept")
        tiling, model = provenance["settings"]["tiling"], provenance["model"]
        return PublishedDetections(
            scene,
            np.stack([table[name].to_numpy() for name in columns[:4]], axis=1),
            table["score"].to_numpy(),
            np.array(table["class_name"].to_pylist(), dtype=object),
            Grid(size[0], size[1], side=1, **{name: tiling[name] for name in _GRID}),
            (scale[0], scale[1]),
            float(provenance["settings"]["detect"]["score_threshold"]),
            str(model["sha256"]),
            tuple(model.get("classes", ())),
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: its provenance lacks {error}: sweep the scene again") from error


def _provenance(path: Location) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(parquet(path)).metadata or {}
        return dict(json.loads(metadata[b"scenesweep"]))
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise UsageError(f"{path}: not a table published by scenesweep") from error


def _scene_settings(provenance: Mapping[str, Any], out: Location) -> SceneSettings:
    try:
        return SceneSettings.model_validate(provenance["settings"]["scenes"])
    except (KeyError, ValidationError) as error:
        raise UsageError(f"{out}: tables of another version: sweep the scenes again") from error


def _inspect(href: str, settings: Settings) -> Scene:
    try:
        return inspect_for(href, settings)
    except SceneError as error:
        raise UsageError(str(error)) from error


def _check_alike(published: Sequence[PublishedDetections]) -> None:
    for what, values in (
        ("models", {one.model for one in published}),
        ("score thresholds", {one.threshold for one in published}),
        ("margins", {one.grid.margin for one in published}),
    ):
        if len(values) > 1:
            raise UsageError(
                f"the scenes were swept with {len(values)} different {what}: judge them apart"
            )


def _inside(sample: Comparison, area_px: Geometry) -> Comparison:
    shapely.prepare(area_px)
    found = np.asarray(shapely.intersects_xy(area_px, sample.predicted.centres()))
    true = np.asarray(shapely.intersects_xy(area_px, sample.centres()))
    return Comparison(
        sample.name, sample.predicted.take(found), sample.xyxy[true], sample.label[true]
    )


def _distance(values: NDArray[np.float64], borders: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how far each value is from the nearest of the ascending borders."""
    edges = np.concatenate([[-np.inf], borders, [np.inf]])
    after = np.searchsorted(borders, values) + 1
    nearest: NDArray[np.float64] = np.minimum(values - edges[after - 1], edges[after] - values)
    return nearest
