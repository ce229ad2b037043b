"""Cut rasters and their objects into chips, which are the windows of detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.card import ModelCard
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.geometry.georef import to_chip, to_scene
from scenesweep.pipeline.geometry.grid import Grid, Tile
from scenesweep.pipeline.labels.objects import Objects, cut_to, long_enough
from scenesweep.pipeline.labels.settings import LabelSettings
from scenesweep.pipeline.labels.store import new_chips
from scenesweep.pipeline.planning.plan import make_grid, make_source
from scenesweep.pipeline.planning.windows import windows_with_pixels
from scenesweep.pipeline.raster.chips import Chips, Source, mean_colour, read_shard
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.settings import SceneSettings, Settings, TilingSettings


@dataclass(frozen=True, slots=True)
class ChipPlan:
    """How one raster is cut into chips.

    `kept` is (rows, columns) bool over the windows of its grid.
    """

    source: Source
    grid: Grid
    kept: NDArray[np.bool_]

    @property
    def scene(self) -> Scene:
        return self.source.scene

    def __len__(self) -> int:
        return int(self.kept.sum())

    def name(self, tile: Tile) -> str:
        """Return a chip's name: the raster's id, with the chip's pixel offset if it has several."""
        if self.kept.size == 1:
            return self.scene.id
        return f"{self.scene.id}@{tile.window.col_off},{tile.window.row_off}"


def plan_chips(
    scenes: Sequence[Scene], card: ModelCard, settings: LabelSettings
) -> tuple[ChipPlan, ...]:
    """Plan the chips of rasters as detection would. Chips without valid pixels are left out.

    The side of a chip is `settings.chip_px`, or that of the card. If every raster is smaller than
    that, it is the longest side of a raster, rounded up to the network's stride.

    Raises:
        WrongBands: when a raster has not all bands.
        UsageError: when `chip_px` does not fit the network or the card's margin.
    """
    opening = SceneSettings(drivers=settings.drivers)
    reading = Settings(scenes=opening).resolved(card)
    sources = [make_source(scene, card, reading) for scene in scenes]
    tiling = _tiling(sources, card, settings)
    cutting = Settings(scenes=opening, tiling=tiling).resolved(card)
    plans = []
    for source in sources:
        grid = make_grid(source, cutting)
        plans.append(ChipPlan(source, grid, windows_with_pixels(source, grid, slack=tiling.slack)))
    return tuple(plans)


def with_own_fill(plans: Sequence[ChipPlan]) -> tuple[ChipPlan, ...]:
    """Return the plans with invalid pixels filled by the mean of the rasters, not of the card."""
    if not plans:
        return ()
    fill = mean_colour([plan.source for plan in plans])
    return tuple(replace(plan, source=replace(plan.source, fill=fill)) for plan in plans)


def cut_chips(
    plans: Sequence[ChipPlan],
    objects: Mapping[str, Objects],
    settings: LabelSettings,
    *,
    cache: Path | None = None,
    used: dict[str, NDArray[np.bool_]] | None = None,
) -> LabelledChips:
    """Read the chips of rasters, each with its objects; `objects` has those of rasters by scene id.

    Rasters that are not in `objects` are left out. Chips without objects are kept. With `cache`, a
    folder, the pixels are written to a file there and memory-mapped. Objects whose centre lies on
    invalid pixels are left out, because they are not visible. `used`, (T,) bool by scene id, is
    set to True for each object that is on a chip.

    Raises:
        LabelError: when no chip is left.
        UnreadableScene: when a raster is truncated or corrupt.
    """
    plans = [plan for plan in plans if plan.scene.id in objects and len(plan)]
    if not plans:
        raise LabelError("expected labelled rasters with valid pixels, found none")
    chip, bands = plans[0].grid.chip, len(plans[0].source.bands)
    pixels = new_chips(cache, (sum(map(len, plans)), bands, chip, chip))
    names: list[str] = []
    boxes, labels = [], []
    for plan in plans:
        for number in plan.grid.shard_numbers(plan.kept).tolist():
            chips = read_shard(plan.source, plan.grid.shard(number, plan.kept))
            pixels[len(names) : len(names) + len(chips.shard.tiles)] = chips.stack()
            for tile in chips.shard.tiles:
                rows, in_chip = objects_on(plan, tile, objects[plan.scene.id], settings)
                valid = _valid(chips, tile, in_chip)
                in_chip = in_chip.take(valid)
                if used is not None:
                    used[plan.scene.id][rows[valid]] = True
                names.append(plan.name(tile))
                boxes.append(in_chip.xyxy.astype(np.float32))
                labels.append(in_chip.label)
    points = any(part.points for part in objects.values())
    return LabelledChips(tuple(names), _read_only(pixels), tuple(boxes), tuple(labels), points)


def objects_on(
    plan: ChipPlan, tile: Tile, objects: Objects, settings: LabelSettings
) -> tuple[NDArray[np.intp], Objects]:
    """Return the indices of the objects that belong to one chip, and these in chip pixels.

    A point belongs to a chip when it lies in it; its square is never cut. A box belongs to it when
    at least `min_visible` of its area lies in it; with `clip` it is cut at the edge of the chip.
    """
    moved = to_chip(objects.xyxy, tile.window, plan.source.scale)
    in_chip = replace(objects, xyxy=moved)
    side = plan.grid.chip
    if objects.points:
        centres = in_chip.centres()
        rows = np.flatnonzero((centres.min(axis=1) >= 0) & (centres.max(axis=1) < side))
        return rows, in_chip.take(rows)
    part, share = cut_to(moved, np.array([0, 0, side, side], np.float64))
    if settings.clip:
        in_chip = replace(in_chip, xyxy=part)
    large = long_enough(in_chip.xyxy, settings.min_side_px)
    rows = np.flatnonzero((share >= settings.min_visible) & large)
    return rows, in_chip.take(rows)


def chip_footprints(plan: ChipPlan) -> NDArray[np.float64]:
    """Return (N, 4): the boxes of a raster's chips in scene pixels, cut at the raster."""
    numbers = plan.grid.shard_numbers(plan.kept).tolist()
    tiles = [tile for number in numbers for tile in plan.grid.shard(number, plan.kept).tiles]
    chip = np.array([[0, 0, plan.grid.chip, plan.grid.chip]], np.float64)
    boxes = [to_scene(chip, tile.window.origin, plan.source.scale) for tile in tiles]
    size = np.array([0, 0, plan.scene.width, plan.scene.height], np.float64)
    return cut_to(np.concatenate([np.zeros((0, 4)), *boxes]), size)[0]


def _tiling(sources: Sequence[Source], card: ModelCard, settings: LabelSettings) -> TilingSettings:
    scales = [(source.scene.width, source.scene.height, *source.scale) for source in sources]
    sides = [max(round(width / sx), round(height / sy)) for width, height, sx, sy in scales]
    longest = max(sides, default=card.chip_px)
    fitting = max(64, -(-longest // card.stride_px) * card.stride_px)
    chip = settings.chip_px or min(card.chip_px, fitting)
    # a raster that fits into one chip has no neighbouring chips to overlap
    return TilingSettings(chip=chip, margin=0 if longest <= chip else None, fit=chip)


def _valid(chips: Chips, tile: Tile, objects: Objects) -> NDArray[np.bool_]:
    if not len(objects):
        return np.zeros(0, np.bool_)
    return chips.valid_at(tile, objects.centres())


def _read_only(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Memory-map a written file again, for reading only. An array in memory stays unchanged."""
    if not isinstance(pixels, np.memmap):
        return pixels
    pixels.flush()
    return np.load(str(pixels.filename), mmap_mode="r")
