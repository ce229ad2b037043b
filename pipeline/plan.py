"""Plan a scene: what will be read and detected, before any full-resolution read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Geometry

from model.card import ModelCard
from pipeline.area import area_in_scene
from pipeline.grid import Axis, Grid
from pipeline.read import Source, band_indexes, grid_scale, scene_stretch
from pipeline.scene import Scene, inspect, open_raster
from pipeline.settings import Settings, fingerprint

STAGE_VERSION = 1
"""Raised when the same inputs give other candidates than before: parts are then redone."""
PUBLISH_VERSION = 2
"""Raised when the same candidates give other files than before: scenes are then republished."""

_MASK_STEP_PX = 16
_MASK_SAMPLES = 64_000_000


@dataclass(frozen=True, slots=True)
class Job:
    """What a run is asked to do with every scene. `settings` are resolved against `card`."""

    card: ModelCard
    model_sha256: str
    settings: Settings
    out: str
    area: Geometry | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One scene, ready to be swept.

    `kept` is (rows, columns) bool over the grid's windows. `area_px` is the area of interest
    in scene pixels. `stage_id` names what the candidates depend on, `fingerprint` what the
    published files depend on.
    """

    source: Source
    grid: Grid
    kept: NDArray[np.bool_]
    area_px: Geometry | None
    stage_id: str
    fingerprint: str

    @property
    def scene(self) -> Scene:
        return self.source.scene

    @property
    def skipped_windows(self) -> int:
        return int(self.kept.size - self.kept.sum())


def plan_scene(href: str, job: Job) -> Plan:
    """Inspect a raster and decide how it is read, cut and named.

    Raises:
        SceneError: when the scene cannot be swept with this model.
    """
    settings = job.settings
    scene = inspect_for(href, settings)
    source = make_source(scene, job.card, settings)
    grid = make_grid(source, settings)
    area_px = None if job.area is None else area_in_scene(job.area, scene)
    stage_id = _stage_id(source, job, area_px)
    return Plan(
        source,
        grid,
        kept_windows(source, grid, area_px, slack=settings.tiling.slack),
        area_px,
        stage_id,
        fingerprint(
            stage_id,
            PUBLISH_VERSION,
            scene.id,
            str(scene.acquired_at),
            settings.merge.model_dump(),
            settings.publish.model_dump(),
        ),
    )


def inspect_for(href: str, settings: Settings) -> Scene:
    """Inspect a raster as the settings say; `plan_scene` is this and more."""
    scenes = settings.scenes
    scene = inspect(href, drivers=scenes.drivers, pixel_coordinates=scenes.pixel_coordinates)
    changes: dict[str, Any] = {}
    if scenes.ids == "path":
        changes["id"] = f"{scene.id}-{fingerprint(href)[:8]}"
    if scene.acquired_at is None and scenes.acquired_at is not None:
        changes["acquired_at"] = scenes.acquired_at
    return replace(scene, **changes)


def make_source(scene: Scene, card: ModelCard, settings: Settings) -> Source:
    """Return how a scene is read for a model: `settings` must be resolved.

    Raises:
        WrongBands: when the scene lacks a band that the model cannot do without.
    """
    reading = settings.read
    wanted = reading.bands or card.bands
    bands = band_indexes(scene, wanted, missing_ok=card.missing_bands_ok)
    return Source(
        scene,
        settings.scenes.drivers,
        bands,
        grid_scale(scene, card.gsd_m, tolerance=reading.gsd_tolerance),
        scene_stretch(
            scene,
            bands,
            source_range=reading.source_range,
            percentiles=card.scaling.percentiles,
            drivers=settings.scenes.drivers,
        ),
        _fill(card) if 0 in bands else (),
    )


def _fill(card: ModelCard) -> tuple[int, ...]:
    """Return the mean of each band: what the network takes for nothing there."""
    means = card.scaling.mean or (0.5,) * len(card.bands)
    return tuple(round(255 * mean) for mean in means)


def make_grid(source: Source, settings: Settings) -> Grid:
    """Return the grid of a scene: `settings` must be resolved."""
    tiling = settings.tiling
    assert tiling.chip is not None
    assert tiling.margin is not None
    sx, sy = source.scale
    width, height = round(source.scene.width / sx), round(source.scene.height / sy)
    return Grid(width, height, tiling.chip, tiling.margin, tiling.shard)


def kept_windows(
    source: Source, grid: Grid, area_px: Geometry | None, *, slack: float
) -> NDArray[np.bool_]:
    """Say which windows to look at: (rows, columns) bool.

    Dropped are windows whose core is outside the area of interest, and windows whose core,
    grown by the slack, has no valid pixel: what they report is centred there or dropped. The
    mask is decimated, sampled every 16 px or so: an island of valid pixels narrower than that
    may be missed.
    """
    kept = np.ones(grid.shape, np.bool_)
    if area_px is not None:
        kept &= _cores_touching(source, grid, area_px)
    if source.scene.masked and kept.any():
        kept &= _cores_with_pixels(source, grid, slack)
    return kept


def _cores_touching(source: Source, grid: Grid, area_px: Geometry) -> NDArray[np.bool_]:
    sx, sy = source.scale
    x, y = grid.columns, grid.rows
    boxes = shapely.box(
        (x.core_starts * sx)[None, :],
        (y.core_starts * sy)[:, None],
        (x.core_stops * sx)[None, :],
        (y.core_stops * sy)[:, None],
    )
    shapely.prepare(area_px)
    touching: NDArray[np.bool_] = shapely.intersects(area_px, boxes)
    return touching


def valid_share(scene: Scene, drivers: tuple[str, ...]) -> float:
    """Return the share of valid pixels, estimated from the decimated mask."""
    return float(_decimated_mask(scene, drivers).mean()) if scene.masked else 1.0


def _decimated_mask(scene: Scene, drivers: tuple[str, ...]) -> NDArray[np.bool_]:
    step = max(_MASK_STEP_PX, math.ceil(math.sqrt(scene.width * scene.height / _MASK_SAMPLES)))
    shape = math.ceil(scene.height / step), math.ceil(scene.width / step)
    with open_raster(scene.href, drivers) as dataset:
        valid: NDArray[np.bool_] = dataset.dataset_mask(out_shape=shape) > 0
    return valid


def _cores_with_pixels(source: Source, grid: Grid, slack: float) -> NDArray[np.bool_]:
    """Look the cores up in the summed-area table of a decimated mask."""
    scene = source.scene
    valid = _decimated_mask(scene, source.drivers)
    rows, columns = valid.shape
    table = np.zeros((rows + 1, columns + 1), np.int64)
    table[1:, 1:] = valid.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    sx, sy = source.scale
    top, bottom = _sample_span(grid.rows, slack, samples_per_px=sy * rows / scene.height)
    left, right = _sample_span(grid.columns, slack, samples_per_px=sx * columns / scene.width)
    bottom, right = np.minimum(bottom, rows), np.minimum(right, columns)
    counts = (
        table[np.ix_(bottom, right)]
        - table[np.ix_(top, right)]
        - table[np.ix_(bottom, left)]
        + table[np.ix_(top, left)]
    )
    return counts > 0


def _sample_span(
    axis: Axis, slack: float, *, samples_per_px: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the half-open span of mask samples under each core, one sample wider."""
    first = np.floor((axis.core_starts - slack) * samples_per_px).astype(np.intp) - 1
    last = np.ceil((axis.core_stops + slack) * samples_per_px).astype(np.intp) + 1
    return np.maximum(first, 0), last


def _stage_id(source: Source, job: Job, area_px: Geometry | None) -> str:
    settings = job.settings
    scene = source.scene
    return fingerprint(
        STAGE_VERSION,
        scene.fingerprint,
        (scene.width, scene.height, scene.dtype, scene.crs, scene.transform, scene.nodata),
        (source.bands, source.scale),
        None if source.stretch is None else asdict(source.stretch),
        job.model_sha256,
        settings.tiling.model_dump(),
        settings.detect.model_dump(),
        None if area_px is None else shapely.to_wkb(area_px, hex=True),
    )
