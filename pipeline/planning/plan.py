"""Plan a scene: decide what is read and detected.

Planning decodes a bounded number of pixels, whatever the size of the scene. The limit for the mask
is in `pipeline.raster.survey`, that for the stretch in `pipeline.raster.sample`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import shapely
from shapely import Geometry

from scenesweep.model.card import ModelCard
from scenesweep.pipeline.errors import SceneError
from scenesweep.pipeline.geometry.grid import Grid, Layout
from scenesweep.pipeline.geometry.layers import Layers
from scenesweep.pipeline.planning.area import area_in_scene
from scenesweep.pipeline.planning.quality import quality_id, quality_of, without_masked
from scenesweep.pipeline.planning.windows import lay_out
from scenesweep.pipeline.raster.assemble import inspect_scene
from scenesweep.pipeline.raster.checksum import check, check_record, given_checksum, parse_multihash
from scenesweep.pipeline.raster.chips import (
    Source,
    band_indexes,
    check_scale,
    grid_scale,
    rows_at_once,
    scene_stretch,
)
from scenesweep.pipeline.raster.quality import Quality
from scenesweep.pipeline.raster.resample import working_bytes
from scenesweep.pipeline.raster.stretch import NO_RANGE
from scenesweep.pipeline.scene import Hints, RasterFile, Scene, SceneRef, stem
from scenesweep.pipeline.settings import ResolvedSettings, SceneSettings, fingerprint
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.network import is_remote
from scenesweep.pipeline.storage.paths import Output

STAGE_VERSION = 5
"""Raise it when the same inputs give other candidates than before: old parts are then unused."""
PUBLISH_VERSION = 9
"""Raise it when the same candidates give other files than before: scenes are then republished."""

SHARD_BYTES = 900_000_000
"""Largest memory for the pixels of a shard; a reader then stays below 1.5 GB in total."""

_SIDES = ((8, 16_384), (4, 1024), (2, 64))
"""Side of shards in windows, and the number of windows of a scene from which it is used."""


@dataclass(frozen=True, slots=True)
class Method:
    """How scenes are swept: with which model, which settings, and in which area.

    `area` is the area of interest in OGC:CRS84, or None for whole scenes. `layers` are the vector
    files that detections are compared with.
    """

    card: ModelCard
    model_sha256: str
    settings: ResolvedSettings
    area: Geometry | None = None
    layers: Layers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Method):
    """A method, and the output that its results go to.

    `replace_wider` lets results replace published ones that cover more ground: those of a wider
    area, or of a whole scene. `writer` is the key of the run that claims scenes before it works on
    them (`pipeline.runs.claims`); without one, no other run may write to the output.
    """

    out: Location
    replace_wider: bool = False
    writer: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """One scene, ready to be swept.

    `area_px` is the area of interest in scene pixels. `quality` is the mask of clouds, if there is
    one. `stage_id` is a hash of everything that the
    candidates depend on, `fingerprint` of everything that the published files depend on.
    """

    source: Source
    layout: Layout
    area_px: Geometry | None
    stage_id: str
    fingerprint: str
    hints: Hints
    quality: Quality | None = None

    @property
    def scene(self) -> Scene:
        return self.source.scene


def plan_scene(ref: SceneRef, method: Method) -> Plan:
    """Inspect a scene and decide how it is read, cut and named.

    Raises:
        SceneError: when the scene cannot be swept with this model.
    """
    settings = method.settings
    scene = inspect_for(ref, settings.scenes)
    source = make_source(scene, method.card, settings)
    grid = make_grid(source, settings)
    area_px = None if method.area is None else area_in_scene(method.area, scene)
    quality = quality_of(ref, scene, settings)
    quality_hash = quality_id(quality, settings.mask)
    skips = quality is not None and settings.mask.policy == "drop"
    stage_id = _stage_id(source, method, area_px, quality_hash if skips else "")
    layout = lay_out(
        source,
        grid,
        area_px,
        slack=settings.tiling.slack,
        most=settings.engine.max_windows,
    )
    if quality is not None and skips:
        layout = without_masked(layout, source, quality, slack=settings.tiling.slack)
    _check_stretch(source, layout)
    return Plan(
        source,
        layout,
        area_px,
        stage_id,
        fingerprint(
            stage_id,
            PUBLISH_VERSION,
            scene.id,
            str(scene.acquired_at),
            settings.merge.model_dump(),
            settings.publish.model_dump(),
            asdict(ref.hints),
            quality_hash,
            method.layers.hashes() if method.layers else None,
        ),
        ref.hints,
        quality,
    )


def inspect_for(ref: SceneRef, scenes: SceneSettings) -> Scene:
    """Inspect a scene with these settings; `plan_scene` starts with it."""
    if scenes.checksums != "ignore":
        for file in ref.files:
            _check_bytes(file)
    scene = inspect_scene(ref, drivers=scenes.drivers, pixel_coordinates=scenes.pixel_coordinates)
    if scene.acquired_at is None and scenes.acquired_at is not None:
        return replace(scene, acquired_at=scenes.acquired_at)
    return scene


def _check_bytes(file: RasterFile) -> None:
    """Compare a file on disk with the checksum of a catalog or of its sidecar file."""
    if not is_remote(file.href):
        expected = parse_multihash(file.checksum) or given_checksum(file.href)
        if expected is not None:
            check(file.href, expected)


def check_records(scene: Scene, job: Job) -> None:
    """Record the checksums of a scene's files at the first run, and compare with them later.

    It reads all bytes of files on disk and writes into OUT; `plan_scene` and a dry run do neither.

    Raises:
        UnreadableScene: when the bytes of a file changed, but size and modification time did not.
    """
    if job.settings.scenes.checksums != "record":
        return
    output = Output(job.out)
    for part in scene.parts:
        # files of a mosaic may have the same name in several folders
        of_part = "" if len(scene.parts) == 1 else f"-{stem(part.href)}-{fingerprint(part.href)}"
        record = output.source_checksum(f"{scene.id}{of_part}")
        if not is_remote(part.href):
            check_record(part.href, record, scene.fingerprint, aside=output.aside)


def make_source(scene: Scene, card: ModelCard, settings: ResolvedSettings) -> Source:
    """Return how a scene is read for a model.

    Raises:
        WrongBands: when the scene does not have a band that the model needs.
        SceneError: when its pixels are too coarse for the model.
    """
    reading = settings.read
    bands = band_indexes(scene, reading.bands, missing_ok=card.missing_bands_ok)
    check_scale(scene, card.gsd_m, max_coarser=reading.max_coarser)
    return Source(
        _with_mask_of_data(scene, bands),
        bands,
        grid_scale(scene, card.gsd_m, tolerance=reading.gsd_tolerance),
        scene_stretch(
            scene,
            bands,
            source_range=reading.source_range,
            percentiles=card.scaling.percentiles,
        ),
        fill_of(card),
    )


def _with_mask_of_data(scene: Scene, bands: tuple[int, ...]) -> Scene:
    """Add a warning when a band is an input of the model and also the mask."""
    masks = [str(i) for i in bands if i and scene.bands[i - 1].color == "alpha"]
    if not masks:
        return scene
    warning = (
        f"band {masks[0]} is looked at and is also tagged as alpha: where it is 0, nothing is "
        "looked at; give it another colour interpretation if it is not a mask"
    )
    return replace(scene, warnings=(*scene.warnings, warning))


def fill_of(card: ModelCard) -> tuple[int, ...]:
    """Return the mean of each band, 0..255, which the network sees as no signal."""
    means = card.scaling.mean or (0.5,) * len(card.bands)
    return tuple(round(255 * mean) for mean in means)


def _check_stretch(source: Source, layout: Layout) -> None:
    """Refuse a scene that may have valid pixels although a sample of its blocks found none."""
    stretch, scene = source.stretch, source.scene
    if stretch is None or layout.exact or any(r != NO_RANGE for r in stretch.ranges):
        return
    raise SceneError(
        f"{scene.href}: a sample of its blocks has no valid pixel, so the range of its "
        f"{scene.dtype} values is not known; add overviews to it (gdaladdo), or set "
        "read.source_range=[low,high]"
    )


def make_grid(source: Source, settings: ResolvedSettings) -> Grid:
    """Return the grid of a scene.

    It makes shards smaller until a reader can hold one in memory.

    Raises:
        SceneError: when even the smallest shard does not fit.
    """
    tiling = settings.tiling
    sx, sy = source.scale
    width, height = round(source.scene.width / sx), round(source.scene.height / sy)
    grid = Grid(width, height, tiling.chip, tiling.margin, tiling.shard or 1, tiling.fit)
    side = tiling.shard or _shard_side(grid.shape[0] * grid.shape[1])
    while tiling.shard is None and side > 1 and _shard_bytes(source, grid, side) > SHARD_BYTES:
        side //= 2
    needed = _shard_bytes(source, grid, side)
    if needed > SHARD_BYTES:
        windows = f"{side} x {side} windows" if side > 1 else "one window"
        raise SceneError(
            f"{source.scene.href}: reading {windows} of {tiling.chip} px takes "
            f"{needed / 1e6:,.0f} MB ({len(source.present)} bands of {source.scene.dtype}, "
            f"{sx:.4g} x {sy:.4g} scene pixels each), at most {SHARD_BYTES / 1e6:,.0f} are read"
        )
    return replace(grid, side=side)


def _shard_bytes(source: Source, grid: Grid, side: int) -> float:
    """Estimate the peak memory of reading a shard, in bytes: see `pipeline.raster.chips`."""
    scene = source.scene
    (sx, sy), bands = source.scale, len(source.present)
    length = side * grid.chip  # an upper bound, because windows overlap
    width, height = min(length * sx, scene.width), min(length * sy, scene.height)
    item = np.dtype(scene.dtype).itemsize
    masks = len(scene.bands) + 2 if scene.masked else 1
    checks = 1 if np.dtype(scene.dtype).kind == "f" else 0
    if source.scale == (1.0, 1.0):
        return width * height * (bands * (item + 1 + checks) + masks)
    wide, high = min(length, width / sx), min(length, height / sy)
    strip = min(rows_at_once(source, length), high)
    at_once = min(sy * strip + 4, height) * width * (bands * (item + checks) + masks)
    at_once += working_bytes(scene.dtype, bands, width=math.ceil(width), scale=sy)
    return at_once + wide * (strip * bands * 5 + high * (bands + 2))


def _shard_side(windows: int) -> int:
    """Return the side of shards in windows: small scenes are shared by many workers too.

    Blocks at the edges of a shard are decoded for its neighbour again, so large shards cost less.
    """
    return next((side for side, fewest in _SIDES if windows >= fewest), 1)


def _stage_id(source: Source, method: Method, area_px: Geometry | None, skipped: str) -> str:
    """Return the id of parts; `skipped` is a hash of what makes windows unnecessary."""
    settings = method.settings
    scene = source.scene
    return fingerprint(
        STAGE_VERSION,
        scene.fingerprint,
        (scene.width, scene.height, scene.dtype, scene.crs, scene.transform, scene.nodata),
        (source.bands, source.scale),
        None if source.stretch is None else asdict(source.stretch),
        method.model_sha256,
        settings.tiling.model_dump(),
        settings.detect.identity(),
        None if area_px is None else shapely.to_wkb(area_px, hex=True),
        *([skipped] if skipped else []),
    )
