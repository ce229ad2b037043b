"""Read label files of any supported format, as objects of rasters or as labelled chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.card import ModelCard
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.pipeline.errors import LabelError, NoGeoreference
from scenesweep.pipeline.labels.check import check, objects_of, report_on
from scenesweep.pipeline.labels.coco import parse_json, read_coco
from scenesweep.pipeline.labels.label_chips import ChipPlan, cut_chips, plan_chips, with_own_fill
from scenesweep.pipeline.labels.names import bare_name, find_name, index_names, read_names
from scenesweep.pipeline.labels.objects import Count, LabelFile, LabelReport, Objects
from scenesweep.pipeline.labels.raw_labels import Tally, measure
from scenesweep.pipeline.labels.request import LabelRequest, request_for
from scenesweep.pipeline.labels.settings import Format, LabelSettings
from scenesweep.pipeline.labels.split import split_east
from scenesweep.pipeline.labels.table import has_points, read_table
from scenesweep.pipeline.labels.vector import read_vector
from scenesweep.pipeline.raster.inspect import inspect
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.sources import expand
from scenesweep.pipeline.storage.remote import local_file, shown


def read_objects(
    labels: Path,
    scenes: Sequence[Scene],
    classes: tuple[str, ...],
    settings: LabelSettings,
    *,
    gsd_m: float | None = None,
) -> tuple[dict[str, Objects], LabelReport]:
    """Read the true objects of rasters, by scene id.

    Every raster that the file describes has an entry, which may be empty. A COCO file describes
    the images in its list, any other file describes all rasters. `min_side_px` of the settings
    counts pixels of the ground sample distance `gsd_m`, or, without it, of each raster.

    Raises:
        LabelError: when the file cannot be used, or none of its labels can.
    """
    objects, report = _read(labels, request_for(scenes, classes), settings, gsd_m=gsd_m)
    return objects, report


def read_chips(
    images: Sequence[str],
    labels: Path,
    card: ModelCard,
    settings: LabelSettings,
    *,
    names: Path | None = None,
    cache: Path | None = None,
) -> tuple[LabelledChips, LabelReport]:
    """Read labelled chips.

    `images` are files, folders and globs of rasters. `names`, a text file with one file name per
    line, with or without suffix, selects some of them. With `cache`, a folder, the chips are
    memory-mapped from a file there.

    Raises:
        LabelError: when labels, names or rasters cannot be used.
        UsageError: when there are no rasters, or the chip size does not fit the network.
        SceneError: when a raster cannot be read, or a band is missing.
    """
    plans, objects, report = _prepare(images, labels, card, settings, names=names)
    used = _none_used(objects)
    chips = cut_chips(plans, objects, settings, cache=cache, used=used)
    return chips, _with_unused(_with_chips(report, chips), objects, used)


def read_split(
    images: Sequence[str],
    labels: Path,
    card: ModelCard,
    settings: LabelSettings,
    *,
    share: float,
    cache: Path | None = None,
) -> tuple[LabelledChips, LabelledChips, LabelReport]:
    """Read labelled chips for training and, in the east, a share of them for validation.

    See `read_chips` and `split_east`. The folders in `cache` are `training` and `validation`. The
    report counts the chips of both, and those dropped between them.
    """
    plans, objects, report = _prepare(images, labels, card, settings)
    split = split_east([plan for plan in plans if plan.scene.id in objects], share)
    used = _none_used(objects)

    def cut(part: Sequence[ChipPlan], folder: str) -> LabelledChips:
        own_cache = None if cache is None else cache / folder
        return cut_chips(part, objects, settings, cache=own_cache, used=used)

    training, validation = cut(split.training, "training"), cut(split.held_out, "validation")
    report = _with_chips(_with_chips(report, training), validation)
    report = _with_unused(report, objects, used)
    if split.dropped:
        dropped = Count("chips dropped that overlap held-out ground", split.dropped)
        report = replace(report, notes=(*report.notes, dropped))
    return training, validation, report


def _prepare(
    images: Sequence[str],
    labels: Path,
    card: ModelCard,
    settings: LabelSettings,
    *,
    names: Path | None = None,
) -> tuple[tuple[ChipPlan, ...], dict[str, Objects], LabelReport]:
    hrefs = expand(images, settings.drivers)
    chosen = hrefs if names is None else _select(hrefs, names)
    scenes = [_inspect(href, card, settings) for href in chosen]
    others = sorted(set(hrefs) - set(chosen))
    request = request_for(scenes, card.classes, others=others)
    objects, report = _read(labels, request, settings, gsd_m=card.gsd_m)
    labelled = [scene for scene in scenes if scene.id in objects]
    plans = plan_chips(labelled, card, settings)
    return plans if card.scaling.mean else with_own_fill(plans), objects, report


def _read(
    path: Path, request: LabelRequest, settings: LabelSettings, *, gsd_m: float | None
) -> tuple[dict[str, Objects], LabelReport]:
    path = local_file(path)
    if not path.exists():
        raise LabelError(f"{path}: expected a file with labels, there is no such file")
    raw = _read_file(path, request, settings)
    checked = check(raw, request, settings, gsd_m=gsd_m)
    return objects_of(checked, request), report_on(path, raw, checked, request)


def _read_file(path: Path, request: LabelRequest, settings: LabelSettings) -> LabelFile:
    form = _guess(path) if settings.format == "auto" else settings.format
    if form == "coco":
        return read_coco(path, request)
    if form == "vector":
        return read_vector(path, request, settings)
    return read_table(path, request, points=form == "points", class_column=settings.class_column)


def _guess(path: Path) -> Format:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "points" if has_points(path) else "csv"
    if suffix == ".json":
        data = parse_json(path)
        return "coco" if isinstance(data, dict) and "annotations" in data else "vector"
    return "vector"


def _select(hrefs: Sequence[str], names: Path) -> list[str]:
    index = index_names(hrefs)
    chosen = []
    for name in read_names(local_file(names)):
        number = find_name(index, name)
        if number < 0:
            raise LabelError(
                f"{shown(names)}: expected names of the {len(hrefs):,} images, got {name}"
            )
        chosen.append(hrefs[number])
    return list(dict.fromkeys(chosen))


def _inspect(href: str, card: ModelCard, settings: LabelSettings) -> Scene:
    """Inspect a raster. One without georeference is assumed to have the card's resolution."""
    name = bare_name(href)
    try:
        return inspect(href, drivers=settings.drivers, scene_id=name)
    except NoGeoreference:
        scene = inspect(href, drivers=settings.drivers, pixel_coordinates=True, scene_id=name)
        return replace(scene, gsd_m=(card.gsd_m, card.gsd_m))


def _none_used(objects: dict[str, Objects]) -> dict[str, NDArray[np.bool_]]:
    return {scene: np.zeros(len(own), np.bool_) for scene, own in objects.items()}


def _with_unused(
    report: LabelReport, objects: dict[str, Objects], used: dict[str, NDArray[np.bool_]]
) -> LabelReport:
    """Add a note with the objects that are on no chip, so that none is lost silently."""
    tally = Tally()
    reason = "objects on no chip: too large for one, on ground without pixels, or at a split"
    for scene, own in objects.items():
        for box in own.xyxy[~used[scene]].tolist():
            tally.add(reason, f"{scene}: {measure(box)}")
    return replace(report, notes=(*report.notes, *tally.result()))


def _with_chips(report: LabelReport, chips: LabelledChips) -> LabelReport:
    empty = sum(not len(boxes) for boxes in chips.boxes)
    return replace(report, chips=report.chips + len(chips), empty_chips=report.empty_chips + empty)
