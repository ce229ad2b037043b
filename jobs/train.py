"""`scenesweep train`: labelled chips in, a model file and a report out."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.shared.label_arguments import (
    add_label_arguments,
    add_rule_arguments,
    check_rule,
    check_trainable,
    label_settings,
    rule_for,
)
from scenesweep.jobs.training.finish import REPORT, finish, said
from scenesweep.jobs.training.run import CHECKPOINT, Labelled, TrainingRun, begun, fit, saving
from scenesweep.model.card import ModelCard, explain, read_card
from scenesweep.model.errors import check_extra
from scenesweep.model.files.model_file import SUFFIX
from scenesweep.model.networks.anchors import fit_anchors
from scenesweep.model.samples import Samples
from scenesweep.model.settings import Recipe
from scenesweep.model.training.batches import band_statistics, class_counts
from scenesweep.model.training.train import State, read_state
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.labels import read_samples, read_split
from scenesweep.pipeline.settings import assign, read_yaml

log = logging.getLogger(__name__)

_PACKAGES = ("faster_coco_eval", "matplotlib", "tensorboard", "torchmetrics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_label_arguments(parser)
    parser.add_argument("--card", type=Path, required=True, help="model card to train (YAML)")
    _add_split_arguments(parser)
    _add_recipe_arguments(parser)
    add_rule_arguments(parser)
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="Ray workers that share the work; 0 (default): this process alone, without Ray",
    )
    parser.add_argument("--address", help="Ray cluster, as for `scenesweep detect`")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help=f"folder to write to, or a model file NAME{SUFFIX}: the rest goes to NAME.train",
    )


def _add_split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-list", type=Path, help="images to train on, one name a line")
    parser.add_argument("--val-list", type=Path, help="images to validate on, one name a line")
    parser.add_argument("--val-images", nargs="+", help="other images to validate on")
    parser.add_argument("--val-labels", type=Path, help="their labels (default: --labels)")
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.25,
        help="without the above: the easternmost share of the chips is held out (default 0.25)",
    )


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="recipe (YAML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="one setting of the recipe"
    )
    parser.add_argument("--epochs", type=int, help=f"default {Recipe().epochs}")
    parser.add_argument("--seed", type=int, help=f"default {Recipe().seed}")
    parser.add_argument("--init", type=Path, help="weights to begin with (.safetensors, .pth)")
    parser.add_argument(
        "--fit-anchors", action="store_true", help="fit anchor sizes and ratios to the boxes"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, keep the weights of the best epoch, and write them with card and report."""
    torch.set_num_threads(arguments.threads)
    model_file, folder = places(arguments.out)
    _check(arguments, folder)
    recipe = recipe_from(arguments)
    card = read_card(arguments.card)
    _check_bands(card, recipe)
    data = read_labelled(arguments, card, cache=folder / "chips" if arguments.workers else None)
    card, notes = completed(card, data.training, anchors=arguments.fit_anchors)
    rule, _ = rule_for(arguments, points=data.validation.points, px_m=card.gsd_m)
    work = TrainingRun(card, recipe, folder, rule, arguments.init)
    with saving(work):
        state = _train(work, data, arguments)
        verdict = finish(work, data, state, model_file=model_file, notes=notes)
    print(f"{model_file}: {said(verdict)}")
    print(f"report: {folder / REPORT}")
    return 0


def places(out: Path) -> tuple[Path, Path]:
    """Return the model file and the folder for the rest."""
    if out.suffix == SUFFIX:
        return out, out.with_suffix(".train")
    return out / f"model{SUFFIX}", out


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """Put the command line's settings over those of the file.

    Raises:
        UsageError: for a missing file, an unknown key or a value of the wrong kind.
    """
    tree: dict[str, Any] = read_yaml(arguments.config) if arguments.config else {}
    for assignment in arguments.set:
        assign(tree, assignment)
    given = {"epochs": arguments.epochs, "seed": arguments.seed}
    tree |= {name: value for name, value in given.items() if value is not None}
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"recipe: {explain(error, Recipe)}") from error


def read_labelled(
    arguments: argparse.Namespace, card: ModelCard, *, cache: Path | None
) -> Labelled:
    """Read the chips to train on and those to validate on, and log what the labels were like."""
    settings = label_settings(arguments)
    images, labels = arguments.images, arguments.labels
    if arguments.train_list or arguments.val_images:
        training, report = read_samples(
            images,
            labels,
            card,
            settings,
            names=arguments.train_list,
            cache=cache and cache / "training",
        )
        settings = settings.model_copy(update={"chip_px": training.chip_px})
        validation, other = read_samples(
            arguments.val_images or images,
            arguments.val_labels or labels,
            with_statistics(card, training),
            settings,
            names=arguments.val_list,
            cache=cache and cache / "validation",
        )
        data = Labelled(training, validation, {"training": report, "validation": other})
    else:
        training, validation, report = read_split(
            images, labels, card, settings, share=arguments.val_share, cache=cache
        )
        data = Labelled(training, validation, {"training and validation": report})
    for line in data.lines():
        log.info("%s", line)
    check_trainable(data.training, settings)
    return data


def with_statistics(card: ModelCard, training: Samples) -> ModelCard:
    """Fill in the means and deviations of the bands that a card leaves to the training set."""
    given = card.scaling
    if given.mean and given.std:
        return card
    mean, std = band_statistics(training.chips)
    scaling = given.model_copy(update={"mean": given.mean or mean, "std": given.std or std})
    return card.model_copy(update={"scaling": scaling})


def completed(
    card: ModelCard, training: Samples, *, anchors: bool
) -> tuple[ModelCard, dict[str, Any]]:
    """Fill in what a card leaves to the training set, and say what was found.

    Raises:
        UsageError: when anchors are to be fitted that there are none of.
    """
    card = with_statistics(card, training)
    counts = class_counts(training, classes=len(card.classes))
    losses = card.losses
    if card.architecture.kind == "retinanet":
        losses = losses.model_copy(update={"class_counts": counts})
    card = card.model_copy(update={"losses": losses})
    if not anchors:
        return card, {}
    if card.architecture.kind == "fcos":
        raise UsageError("--fit-anchors: fcos has no anchors")
    fitted = fit_anchors(card.architecture, training)
    log.info(
        "boxes that find an anchor at IoU 0.5: %.1f %% before, %.1f %% with sizes %s, ratios %s",
        100 * fitted.before,
        100 * fitted.after,
        fitted.architecture.anchor_sizes_px,
        fitted.architecture.aspect_ratios,
    )
    shares = {"before": round(fitted.before, 4), "after": round(fitted.after, 4)}
    return card.model_copy(update={"architecture": fitted.architecture}), {"anchors": shares}


def _train(work: TrainingRun, data: Labelled, arguments: argparse.Namespace) -> State:
    checkpoint = work.folder / CHECKPOINT
    if arguments.workers:
        return _train_on_ray(work, data, arguments)
    state = read_state(checkpoint) if checkpoint.exists() else None
    trainer = fit(
        work,
        data.training,
        data.validation,
        state=state,
        keep=lambda trainer: trainer.save(checkpoint),
    )
    return trainer.state()


def _train_on_ray(work: TrainingRun, data: Labelled, arguments: argparse.Namespace) -> State:
    try:
        from scenesweep.jobs.training.ray import train_on_ray
        from scenesweep.pipeline.engine.ray import ray_session
    except ImportError as error:
        raise UsageError(f"Ray is not installed ({error}); use --workers 0") from error
    with ray_session(arguments.address):
        return train_on_ray(work, data.training, data.validation, workers=arguments.workers)


def _check(arguments: argparse.Namespace, folder: Path) -> None:
    """Refuse arguments that do not go together, before any work."""
    check_extra("train", _PACKAGES)
    check_rule(arguments)
    if bool(arguments.train_list) != bool(arguments.val_list) and not arguments.val_images:
        raise UsageError("expected --train-list and --val-list together")
    if arguments.val_labels and not arguments.val_images:
        raise UsageError("--val-labels: expected --val-images too")
    if arguments.init and not arguments.init.is_file():
        raise UsageError(f"--init: {arguments.init}: expected a file with weights, found none")
    if not 0 < arguments.val_share < 1:
        raise UsageError(f"--val-share: expected a share in 0..1, got {arguments.val_share}")
    if arguments.workers < 0:
        raise UsageError(f"--workers: expected 0 or more, got {arguments.workers}")
    if begun(folder) and not arguments.resume:
        raise UsageError(f"{folder}: holds a run already; go on with --resume, or write elsewhere")


def _check_bands(card: ModelCard, recipe: Recipe) -> None:
    """Only bands that training leaves out now and then may be missing later."""
    dropout = recipe.augmentation.band_dropout
    if dropout and not card.missing_bands_ok:
        raise UsageError("augmentation.band_dropout: the card's missing_bands_ok names no band")
    if card.missing_bands_ok and not dropout:
        bands = ", ".join(card.missing_bands_ok)
        raise UsageError(
            f"missing_bands_ok: to do without {bands}, the network must see chips that lack it: "
            "set augmentation.band_dropout, for example to 0.2"
        )


if __name__ == "__main__":
    sys.exit(run_job("train"))
