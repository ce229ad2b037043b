"""Read label files of any form: to objects of rasters, and to labelled chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.card import ModelCard
from scenesweep.model.samples import Samples
from scenesweep.pipeline.errors import LabelError, NoGeoreference
from scenesweep.pipeline.labels.check import check, objects_of, report_on
from scenesweep.pipeline.labels.coco import parse_json, read_coco
from scenesweep.pipeline.labels.label_chips import Cut, cut_samples, plan_cuts, with_own_fill
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


def read_objects(
    labels: Path,
    scenes: Sequence[Scene],
    classes: tuple[str, ...],
    settings: LabelSettings,
    *,
    gsd_m: float | None = None,
) -> tuple[dict[str, Objects], LabelReport]:
    """Read the true objects of rasters, by scene id.

    Every raster that the file speaks of has an entry, if an empty one; of a COCO file these
    are the images that it lists, of other files all rasters. Boxes are cut at the raster's
    edges as `settings` say. `gsd_m` is the ground sample distance at which `min_side_px`
    counts; without it, each raster's own.

    Raises:
        LabelError: when the file cannot be used, or none of its labels can.
    """
    objects, report = _read(labels, request_for(scenes, classes), settings, gsd_m=gsd_m)
    return objects, report


def read_samples(
    images: Sequence[str],
    labels: Path,
    card: ModelCard,
    settings: LabelSettings,
    *,
    names: Path | None = None,
    cache: Path | None = None,
) -> tuple[Samples, LabelReport]:
    """Read labelled chips.

    `images` are files, folders and globs of rasters, of which `names`, a text file with file
    names or stems, one a line, selects some. With `cache`, a folder, the chips are mapped from
    a file there.

    Raises:
        LabelError: when labels, names or rasters cannot be used.
        UsageError: when no raster is found or the chip size does not fit the network.
        SceneError: when a raster cannot be read or lacks a band.
    """
    cuts, objects, report = _prepare(images, labels, card, settings, names=names)
    seen = _nothing_seen(objects)
    samples = cut_samples(cuts, objects, settings, cache=cache, seen=seen)
    return samples, _with_unseen(_with_chips(report, samples), objects, seen)


def read_split(
    images: Sequence[str],
    labels: Path,
    card: ModelCard,
    settings: LabelSettings,
    *,
    share: float,
    cache: Path | None = None,
) -> tuple[Samples, Samples, LabelReport]:
    """Read labelled chips to train on and, from the east, a share to validate with.

    As `read_samples` and `split_east`; in `cache` they lie in `training` and `validation`. The
    report counts the chips of both, and those dropped between them.
    """
    cuts, objects, report = _prepare(images, labels, card, settings)
    split = split_east([cut for cut in cuts if cut.scene.id in objects], share)
    seen = _nothing_seen(objects)

    def cut(part: Sequence[Cut], folder: str) -> Samples:
        place = None if cache is None else cache / folder
        return cut_samples(part, objects, settings, cache=place, seen=seen)

    training, validation = cut(split.training, "training"), cut(split.held_out, "validation")
    report = _with_chips(_with_chips(report, training), validation)
    report = _with_unseen(report, objects, seen)
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
) -> tuple[tuple[Cut, ...], dict[str, Objects], LabelReport]:
    hrefs = expand(images, settings.drivers)
    chosen = hrefs if names is None else _select(hrefs, names)
    scenes = [_inspect(href, card, settings) for href in chosen]
    others = sorted(set(hrefs) - set(chosen))
    wanted = request_for(scenes, card.classes, others=others)
    objects, report = _read(labels, wanted, settings, gsd_m=card.gsd_m)
    labelled = [scene for scene in scenes if scene.id in objects]
    cuts = plan_cuts(labelled, card, settings)
    return cuts if card.scaling.mean else with_own_fill(cuts), objects, report


def _read(
    path: Path, wanted: LabelRequest, settings: LabelSettings, *, gsd_m: float | None
) -> tuple[dict[str, Objects], LabelReport]:
    if not path.exists():
        raise LabelError(f"{path}: expected a file with labels, there is none")
    raw = _read_file(path, wanted, settings)
    checked = check(raw, wanted, settings, gsd_m=gsd_m)
    return objects_of(checked, wanted), report_on(path, raw, checked, wanted)


def _read_file(path: Path, wanted: LabelRequest, settings: LabelSettings) -> LabelFile:
    form = _guess(path) if settings.format == "auto" else settings.format
    if form == "coco":
        return read_coco(path, wanted)
    if form == "vector":
        return read_vector(path, wanted, settings)
    return read_table(path, wanted, points=form == "points", class_column=settings.class_column)


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
    for name in read_names(names):
        number = find_name(index, name)
        if number < 0:
            raise LabelError(f"{names}: names {name}, but none of {len(hrefs):,} images is that")
        chosen.append(hrefs[number])
    return list(dict.fromkeys(chosen))


def _inspect(href: str, card: ModelCard, settings: LabelSettings) -> Scene:
    """Inspect a raster; one without georeference is taken to have the card's resolution."""
    name = bare_name(href)
    try:
        return inspect(href, drivers=settings.drivers, scene_id=name)
    except NoGeoreference:
        scene = inspect(href, drivers=settings.drivers, pixel_coordinates=True, scene_id=name)
        return replace(scene, gsd_m=(card.gsd_m, card.gsd_m))


def _nothing_seen(objects: dict[str, Objects]) -> dict[str, NDArray[np.bool_]]:
    return {scene: np.zeros(len(found), np.bool_) for scene, found in objects.items()}


def _with_unseen(
    report: LabelReport, objects: dict[str, Objects], seen: dict[str, NDArray[np.bool_]]
) -> LabelReport:
    """Name the objects that are on no chip, so that none is lost in silence."""
    tally = Tally()
    reason = "objects on no chip: too large for one, on ground without pixels, or at a split"
    for scene, found in objects.items():
        for box in found.xyxy[~seen[scene]].tolist():
            tally.add(reason, f"{scene}: {measure(box)}")
    return replace(report, notes=(*report.notes, *tally.result()))


def _with_chips(report: LabelReport, samples: Samples) -> LabelReport:
    empty = sum(not len(boxes) for boxes in samples.boxes)
    return replace(
        report, chips=report.chips + len(samples), empty_chips=report.empty_chips + empty
    )
