"""`scenesweep review`: a page to check the detections that the model is least sure of."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from scenesweep.jobs.cli import run_job
from scenesweep.model.card import ModelCard
from scenesweep.model.files.model_file import built_in_models, open_model
from scenesweep.pipeline.errors import SceneError, UnreadableOutput, UsageError
from scenesweep.pipeline.publish.provenance import ModelRecord
from scenesweep.pipeline.raster.chips import Source
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.results.review import (
    ReviewChip,
    ReviewPage,
    SceneBoxes,
    chip_side,
    choose_chips,
    describe_model,
    image_name,
    model_of,
    open_scene_boxes,
    picture,
    read_chip,
    source_for,
    write_image,
    write_review_page,
)
from scenesweep.pipeline.results.view import (
    PublishedScene,
    find_published,
    last_results,
    source_of,
)
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import location_of, output_here
from scenesweep.pipeline.storage.paths import PAGE_PATTERNS, TABLES, Output
from scenesweep.pipeline.storage.remote import local_name

log = logging.getLogger(__name__)

PAGE, IMAGES, CARD = "review.html", "images", "card.yaml"
_LEFT_OUT = {"training", "calibration", "class_thresholds"}
_SHORTEST_PX = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the --out of scenesweep detect: a folder, s3://..., gs://... or az://...",
    )
    parser.add_argument(
        "--scene",
        action="append",
        default=[],
        metavar="ID",
        help="only this scene; may be repeated; default: all",
    )
    parser.add_argument(
        "--uncertain",
        type=int,
        default=200,
        metavar="N",
        help="show the N detections with the probability nearest to 0.5; without probabilities, "
        "those with the score nearest to the threshold; default: %(default)s",
    )
    parser.add_argument(
        "--to", type=Path, help="folder for the page and the images; default: OUT/review"
    )
    parser.add_argument(
        "--model",
        help="the model that made the detections: a built-in one or a file; default: the built-in "
        "model that made them",
    )
    parser.add_argument(
        "--chip-px",
        type=int,
        metavar="PX",
        help="side of the chips in pixels of the model; default: about eight objects",
    )
    parser.add_argument(
        "--driver",
        action="append",
        default=[],
        metavar="NAME",
        help="also open this GDAL format; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page, the images and the card, and print how to go on."""
    _check(arguments)
    out = location_of(arguments.out)
    folder = arguments.to or (Output(out).review if isinstance(out, Path) else None)
    if folder is None:
        raise UsageError(f"{out}: expected --to FOLDER: pages are written to a local folder only")
    with output_here(out, PAGE_PATTERNS) as here:
        published = _published(here, arguments.scene)
        card = _card(arguments.model, model_of(published.values()))
        drivers = tuple(dict.fromkeys([*DRIVERS, *arguments.driver]))
        sources = _sources(here, published, card, drivers)
        boxes = [open_scene_boxes(published[scene_id], card) for scene_id in sources]
        side = arguments.chip_px or chip_side(boxes, card)
        page = make_page(boxes, sources, card, folder / IMAGES, (arguments.uncertain, side))
    write_review_page(folder / PAGE, page)
    _write_card(folder / CARD, card)
    shown = page.uncertain_shown()
    print(f"review: {shown:,} uncertain detections on {len(page.chips):,} chips of {side} px")
    print(f"open {folder / PAGE} in a browser, save the labels as labels.json, then train:")
    train = ["scenesweep", "train", "--images", folder / IMAGES, "--labels", "labels.json"]
    train += ["--card", folder / CARD, "--init", arguments.model or card.name, "--out", "better/"]
    print(shlex.join(map(str, train)))
    return 0


def make_page(
    boxes: list[SceneBoxes],
    sources: Mapping[str, Source],
    card: ModelCard,
    images: Path,
    size: tuple[int, int],
) -> ReviewPage:
    """Choose chips, write their images, and return what the page shows.

    `size` is the number of uncertain detections and the side of chips. A chip that cannot be read
    is left out, with an error in the log.

    Raises:
        UsageError: when there are no detections.
        UnreadableOutput: when no chip can be read.
    """
    chosen, uncertain = choose_chips(boxes, *size)
    if not chosen:
        raise UsageError(f"expected detections to review, found none in {len(boxes):,} scenes")
    chips: list[ReviewChip] = []
    pictures: list[bytes] = []
    for chip in chosen:
        source = sources[chip.scene_id]
        try:
            pixels = read_chip(source, chip)
        except SceneError as error:
            log.error("left out: %s", error)
            continue
        write_image(images / image_name(chip), pixels, source, card)
        chips.append(chip)
        pictures.append(picture(pixels, card))
    if not chips:
        raise UnreadableOutput(
            f"expected chips that can be read, but none of {len(chosen):,} can; "
            "the log above says why"
        )
    return ReviewPage(card, boxes, chips, uncertain, pictures)


def _published(out: Path, names: list[str]) -> dict[str, PublishedScene]:
    """Return the published scenes by id, all or those that are named."""
    published = find_published(out)
    if not published:
        raise UsageError(
            f"{out}: expected published scenes in {out / TABLES}, found none; "
            "run scenesweep detect first"
        )
    unknown = [name for name in names if name not in published]
    if unknown:
        known = ", ".join(list(published)[:5]) + (", …" if len(published) > 5 else "")
        raise UsageError(f"--scene: {unknown[0]}: expected the id of a published scene ({known})")
    return {name: published[name] for name in names} if names else published


def _card(name: str | None, made: ModelRecord) -> ModelCard:
    """Return the card of the model that made the detections.

    Raises:
        UsageError: when it is not the model that is named, nor a built-in one.
    """
    given = "no such built-in model"
    if name is not None or made.id in built_in_models():
        model = open_model(local_name(name or made.id))
        if model.sha256 == made.sha256:
            return model.card
        card = model.card
        given = describe_model(ModelRecord(card.name, card.version, model.sha256, card.classes))
        given = f"{name or 'the built-in model'}, which is {given}"
    raise UsageError(
        "expected --model, the file of the model that made the detections: "
        f"{describe_model(made)}; got {given}"
    )


def _sources(
    out: Path,
    published: Mapping[str, PublishedScene],
    card: ModelCard,
    drivers: tuple[str, ...],
) -> dict[str, Source]:
    """Return how the scenes are read; those without their file are left out, with a warning."""
    results, sources = last_results(out), {}
    for scene_id, one in published.items():
        href = results.get(scene_id, {}).get("href")
        scene = source_of(one, href, drivers=drivers)
        if scene is None:
            log.warning(
                "left out: %s: its scene %s",
                scene_id,
                "is unknown" if href is None else f"{href} is missing, changed or cannot be opened",
            )
        else:
            sources[scene_id] = source_for(one, replace(scene, id=scene_id), card)
    if not sources:
        raise UsageError(
            f"{out}: expected the scenes that were swept, as the run reports name them; none of "
            f"{len(published):,} can be read; sweep again, or add --driver VRT for VRT files"
        )
    return sources


def _write_card(path: Path, card: ModelCard) -> None:
    values = card.model_dump(mode="json", exclude=_LEFT_OUT)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    with atomic_write(path, path.parent) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.uncertain < 1:
        raise UsageError(f"--uncertain: expected at least 1, got {arguments.uncertain}")
    if arguments.chip_px is not None and arguments.chip_px < _SHORTEST_PX:
        raise UsageError(f"--chip-px: expected at least {_SHORTEST_PX}, got {arguments.chip_px}")


if __name__ == "__main__":
    sys.exit(run_job("review"))
