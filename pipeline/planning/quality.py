"""The mask of a scene: find its quality raster, and skip windows that it masks completely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import shapely
from numpy.typing import NDArray

from scenesweep.pipeline.errors import SceneError
from scenesweep.pipeline.geometry.grid import Layout
from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.raster.assemble import inspect_scene
from scenesweep.pipeline.raster.chips import Source, band_indexes
from scenesweep.pipeline.raster.mask_settings import MaskSettings
from scenesweep.pipeline.raster.quality import Quality, Rule, masked_shares
from scenesweep.pipeline.scene import Scene, SceneRef
from scenesweep.pipeline.settings import ResolvedSettings, fingerprint


def quality_of(ref: SceneRef, scene: Scene, settings: ResolvedSettings) -> Quality | None:
    """Return the mask of a scene; None if the settings ask for none.

    Raises:
        SceneError: when it cannot be read, has other bands, no whole numbers, or covers no ground
            of the scene.
    """
    mask = settings.mask
    if not mask.is_set:
        return None
    raster = scene
    if ref.quality is not None:
        raster = inspect_scene(SceneRef((ref.quality,)), drivers=settings.scenes.drivers)
        _check_place(raster, scene)
    elif mask.asset or mask.file:
        raise SceneError(f"{scene.href}: expected a mask ({mask.asset or mask.file}), found none")
    if np.dtype(raster.dtype).kind not in "iu":
        raise SceneError(
            f"{raster.href}: expected a mask of whole numbers, found {raster.dtype} pixels"
        )
    return Quality(raster, Rule(_bands(raster, mask), mask.values, mask.bits))


def _bands(raster: Scene, mask: MaskSettings) -> tuple[int, ...]:
    wanted = mask.bands or (1,)
    try:
        return band_indexes(raster, wanted)
    except SceneError as error:
        present = ", ".join(b.description or str(i) for i, b in enumerate(raster.bands, 1))
        raise SceneError(
            f"{raster.href}: expected a mask with bands {', '.join(map(str, wanted))}, found "
            f"{present}; see mask.bands"
        ) from error


def _check_place(raster: Scene, scene: Scene) -> None:
    here, there = footprint(scene), footprint(raster)
    if here is None and there is None:
        return
    if here is None or there is None:
        which = scene if here is None else raster
        raise SceneError(f"{scene.href}: {which.href} has no georeference, so no mask can be read")
    if not shapely.intersects(shapely.make_valid(here), shapely.make_valid(there)):
        raise SceneError(f"{scene.href}: the mask {raster.href} covers other ground")


def quality_id(quality: Quality | None, settings: MaskSettings) -> str:
    """Return a hash of all that masked shares depend on; empty without a mask."""
    if quality is None:
        return ""
    raster = quality.raster
    place = (raster.width, raster.height, raster.crs, raster.transform, raster.nodata)
    rule = (quality.rule.bands, quality.rule.values, quality.rule.bits)
    return fingerprint(raster.fingerprint, place, rule, settings.policy, settings.drop_above)


def without_masked(layout: Layout, source: Source, quality: Quality, *, slack: float) -> Layout:
    """Return the layout without windows whose core, grown by the slack, is masked completely."""
    rows, columns = np.nonzero(layout.kept)
    x, y = layout.grid.columns, layout.grid.rows
    cores = np.stack(
        [x.core_starts[columns], y.core_starts[rows], x.core_stops[columns], y.core_stops[rows]],
        axis=1,
    ).astype(np.float64)
    hidden = _are_masked(cores, source, quality, slack=slack)
    kept = layout.kept.copy()
    kept[rows[hidden], columns[hidden]] = False
    islands = layout.islands
    boxes = np.hstack([islands[:, :2], islands[:, :2] + islands[:, 2:]]).astype(np.float64)
    left = ~_are_masked(boxes, source, quality, slack=slack)
    return replace(layout, kept=kept, islands=islands[left])


def _are_masked(
    boxes: NDArray[np.float64], source: Source, quality: Quality, *, slack: float
) -> NDArray[np.bool_]:
    """Return which boxes (N, 4) of grid pixels are masked completely."""
    scene = source.scene
    around = np.array([-slack, -slack, slack, slack])
    grown = (boxes + around) * np.array(source.scale * 2)
    grown = np.clip(grown, 0, [scene.width, scene.height] * 2)
    masked: NDArray[np.bool_] = masked_shares(quality, grown, scene) >= 1
    return masked
