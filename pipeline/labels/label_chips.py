"""Cut rasters and their objects into chips, by the windows of detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.card import ModelCard
from scenesweep.model.samples import Samples
from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.geometry.georef import to_chip, to_scene
from scenesweep.pipeline.geometry.grid import Grid, Tile
from scenesweep.pipeline.labels.objects import Objects, cut_to, long_enough
from scenesweep.pipeline.labels.settings import LabelSettings
from scenesweep.pipeline.labels.store import new_chips
from scenesweep.pipeline.planning.layout import windows_with_pixels
from scenesweep.pipeline.planning.plan import make_grid, make_source
from scenesweep.pipeline.raster.chips import Chips, Source, mean_colour, read_shard
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.settings import SceneSettings, Settings, TilingSettings


@dataclass(frozen=True, slots=True)
class Cut:
    """How one raster is cut: `kept` is (rows, columns) bool over the windows of its grid."""

    source: Source
    grid: Grid
    kept: NDArray[np.bool_]

    @property
    def scene(self) -> Scene:
        return self.source.scene

    def __len__(self) -> int:
        return int(self.kept.sum())

    def name(self, tile: Tile) -> str:
        """Name a chip: as its raster, with the place on the grid where there are several."""
        if self.kept.size == 1:
            return self.scene.id
        return f"{self.scene.id}@{tile.window.col_off},{tile.window.row_off}"


def plan_cuts(scenes: Sequence[Scene], card: ModelCard, settings: LabelSettings) -> tuple[Cut, ...]:
    """Place chips on rasters as detection would, those without any valid pixel left out.

    The chips have the card's size, or `settings.chip_px`. Where every raster is smaller than
    the card's, they have the longest side of a raster, rounded up to the network's stride.

    Raises:
        WrongBands: when a raster lacks a band.
        UsageError: when `chip_px` does not fit the network or the card's margin.
    """
    opening = SceneSettings(drivers=settings.drivers)
    reading = Settings(scenes=opening).resolved(card)
    sources = [make_source(scene, card, reading) for scene in scenes]
    tiling = _tiling(sources, card, settings)
    cutting = Settings(scenes=opening, tiling=tiling).resolved(card)
    cuts = []
    for source in sources:
        grid = make_grid(source, cutting)
        cuts.append(Cut(source, grid, windows_with_pixels(source, grid, slack=tiling.slack)))
    return tuple(cuts)


def with_own_fill(cuts: Sequence[Cut]) -> tuple[Cut, ...]:
    """Return cuts whose pixels that are not valid get the rasters' own means, not the card's."""
    if not cuts:
        return ()
    fill = mean_colour([cut.source for cut in cuts])
    return tuple(replace(cut, source=replace(cut.source, fill=fill)) for cut in cuts)


def cut_samples(
    cuts: Sequence[Cut],
    objects: Mapping[str, Objects],
    settings: LabelSettings,
    *,
    cache: Path | None = None,
    seen: dict[str, NDArray[np.bool_]] | None = None,
) -> Samples:
    """Read the chips of rasters and give each its objects, by scene id.

    Rasters that are not in `objects` are left out; chips without objects are not. With `cache`,
    a folder, the pixels are written to a file there and mapped. Objects whose centre is on
    pixels that are not valid cannot be seen and are left out. In `seen`, (T,) bool by scene id,
    the objects that are on some chip are marked.

    Raises:
        LabelError: when no chip is left.
        UnreadableScene: when a raster is truncated or corrupt.
    """
    cuts = [cut for cut in cuts if cut.scene.id in objects and len(cut)]
    if not cuts:
        raise LabelError("expected labelled rasters with valid pixels, found none")
    chip, bands = cuts[0].grid.chip, len(cuts[0].source.bands)
    pixels = new_chips(cache, (sum(map(len, cuts)), bands, chip, chip))
    names: list[str] = []
    boxes, labels = [], []
    for cut in cuts:
        for number in cut.grid.shard_numbers(cut.kept).tolist():
            chips = read_shard(cut.source, cut.grid.shard(number, cut.kept))
            pixels[len(names) : len(names) + len(chips.shard.tiles)] = chips.stack()
            for tile in chips.shard.tiles:
                rows, found = objects_on(cut, tile, objects[cut.scene.id], settings)
                valid = _valid(chips, tile, found)
                found = found.take(valid)
                if seen is not None:
                    seen[cut.scene.id][rows[valid]] = True
                names.append(cut.name(tile))
                boxes.append(found.xyxy.astype(np.float32))
                labels.append(found.label)
    points = any(part.points for part in objects.values())
    return Samples(tuple(names), _read_only(pixels), tuple(boxes), tuple(labels), points)


def objects_on(
    cut: Cut, tile: Tile, objects: Objects, settings: LabelSettings
) -> tuple[NDArray[np.intp], Objects]:
    """Return which objects of a raster belong to one chip, and these in chip pixels.

    A point belongs to a chip when it lies in it, its square uncut. A box belongs to it when
    `min_visible` of its area lies in it, and is cut at the chip's edge if `clip`.
    """
    moved = to_chip(objects.xyxy, tile.window, cut.source.scale)
    found = replace(objects, xyxy=moved)
    side = cut.grid.chip
    if objects.points:
        centres = found.centres()
        rows = np.flatnonzero((centres.min(axis=1) >= 0) & (centres.max(axis=1) < side))
        return rows, found.take(rows)
    part, share = cut_to(moved, np.array([0, 0, side, side], np.float64))
    if settings.clip:
        found = replace(found, xyxy=part)
    long = long_enough(found.xyxy, settings.min_side_px)
    rows = np.flatnonzero((share >= settings.min_visible) & long)
    return rows, found.take(rows)


def ground(cut: Cut) -> NDArray[np.float64]:
    """Return the boxes (N, 4) in scene pixels of a raster's chips, within the raster."""
    numbers = cut.grid.shard_numbers(cut.kept).tolist()
    tiles = [tile for number in numbers for tile in cut.grid.shard(number, cut.kept).tiles]
    chip = np.array([[0, 0, cut.grid.chip, cut.grid.chip]], np.float64)
    boxes = [to_scene(chip, tile.window, cut.source.scale) for tile in tiles]
    size = np.array([0, 0, cut.scene.width, cut.scene.height], np.float64)
    return cut_to(np.concatenate([np.zeros((0, 4)), *boxes]), size)[0]


def _tiling(sources: Sequence[Source], card: ModelCard, settings: LabelSettings) -> TilingSettings:
    scales = [(source.scene.width, source.scene.height, *source.scale) for source in sources]
    sides = [max(round(width / sx), round(height / sy)) for width, height, sx, sy in scales]
    longest = max(sides, default=card.chip_px)
    fitting = max(64, -(-longest // card.stride_px) * card.stride_px)
    chip = settings.chip_px or min(card.chip_px, fitting)
    # a raster that fits a chip has no neighbouring chips to overlap
    return TilingSettings(chip=chip, margin=0 if longest <= chip else None, fit=chip)


def _valid(chips: Chips, tile: Tile, found: Objects) -> NDArray[np.bool_]:
    if not len(found):
        return np.zeros(0, np.bool_)
    return chips.valid_at(tile, found.centres())


def _read_only(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Map a written file again for reading; what is in memory stays as it is."""
    if not isinstance(pixels, np.memmap):
        return pixels
    pixels.flush()
    return np.load(str(pixels.filename), mmap_mode="r")
