"""`scenesweep train`: train a model on labelled chips, write a model file and a report."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
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
from scenesweep.jobs.training.finish import REPORT, best_scores_line, finish, validated
from scenesweep.jobs.training.folds import fold_figures, make_folds, train_in_folds
from scenesweep.jobs.training.run import (
    CHECKPOINT,
    TrainingData,
    TrainingRun,
    explain_write_errors,
    fit,
    traces_of_run,
)
from scenesweep.model.card import ModelCard, explain, read_card
from scenesweep.model.errors import check_extra
from scenesweep.model.files.model_file import SUFFIX, built_in_models, write_atomically
from scenesweep.model.files.pretrained import pretrained_weights, with_pretrained_scaling
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.networks.anchors import fit_anchors
from scenesweep.model.settings import Recipe
from scenesweep.model.training.batches import band_statistics, class_counts
from scenesweep.model.training.train import State, read_state
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.labels import read_chips, read_split
from scenesweep.pipeline.settings import assign, read_yaml

log = logging.getLogger(__name__)

_PRETRAINED = f"pretrained{SUFFIX}"
_PACKAGES = ("faster_coco_eval", "matplotlib", "tensorboard", "torchmetrics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_label_arguments(parser)
    parser.add_argument(
        "--card", type=Path, required=True, help="card of the model to train (YAML)"
    )
    _add_split_arguments(parser)
    _add_recipe_arguments(parser)
    add_rule_arguments(parser)
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="number of Ray workers; 0 (default) trains in this process, without Ray",
    )
    parser.add_argument("--address", help="address of a Ray cluster, as for `scenesweep detect`")
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="CPU threads (default: those of torch, one per core)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume an interrupted run from its checkpoint"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help=f"output folder, or a model file NAME{SUFFIX}; other files then go to NAME.train",
    )


def _add_split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train-list",
        type=Path,
        help="file with the names of the images to train on, one per line",
    )
    parser.add_argument(
        "--val-list",
        type=Path,
        help="file with the names of the images to validate on, one per line",
    )
    parser.add_argument("--val-images", nargs="+", help="other images to validate on")
    parser.add_argument(
        "--val-labels", type=Path, help="labels of --val-images (default: --labels)"
    )
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.25,
        help="without these options, hold out this share of the chips, the easternmost ones "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="cross-validate: divide the images into K groups, train without each of them and "
        "measure on it, then train the model on all images",
    )


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="training recipe (YAML)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="override one setting of the recipe",
    )
    parser.add_argument("--epochs", type=int, help=f"default {Recipe().epochs}")
    parser.add_argument("--seed", type=int, help=f"default {Recipe().seed}")
    initial = parser.add_mutually_exclusive_group()
    initial.add_argument(
        "--init",
        type=_weights,
        metavar="MODEL|FILE",
        help="initial weights: those of a built-in model, or a file (.safetensors, .pth)",
    )
    initial.add_argument(
        "--pretrained",
        metavar="imagenet|FILE",
        help="weights of the backbone alone: those on ImageNet that an installed package has, or a "
        "file; nothing is downloaded",
    )
    parser.add_argument(
        "--fit-anchors", action="store_true", help="fit anchor sizes and aspect ratios to the boxes"
    )


def _weights(text: str) -> Path:
    """Return the file of a built-in model by its name, or the path that is given."""
    return built_in_models().get(text, Path(text))


def run(arguments: argparse.Namespace) -> int:
    """Train, and write the weights of the best epoch with their card and a report."""
    torch.set_num_threads(arguments.threads)
    model_file, folder = output_paths(arguments.out)
    _check(arguments, folder)
    recipe = recipe_from(arguments)
    if arguments.folds:  # what is left out must not choose an epoch
        recipe = Recipe.model_validate(recipe.model_dump() | {"keep": "last", "early_stop": None})
    card = read_card(arguments.card)
    _check_bands(card, recipe)
    initial, origin = arguments.init, ""
    if arguments.pretrained:
        card, initial, origin = _use_pretrained(arguments.pretrained, card, folder)
    # Other processes open chips on disk, and get a copy of chips in memory.
    on_disk = arguments.workers or torch.cuda.is_available()
    data = read_training_data(arguments, card, cache=folder / "chips" if on_disk else None)
    folds = make_folds(data.training, arguments.folds) if arguments.folds else []
    card, notes = complete_card(card, data.training, anchors=arguments.fit_anchors)
    rule, _ = rule_for(arguments, points=data.validation.points, px_m=card.gsd_m)
    notes |= {"initial": origin} if origin else {}
    work = TrainingRun(card, recipe, folder, rule, initial)
    with explain_write_errors(work):
        if folds:
            trained = train_in_folds(work, data.training, folds)
            notes |= {"folds": fold_figures(work, folds, trained.comparisons)}
        else:
            trained = validated(work, data, _train(work, data, arguments))
        evaluation = finish(work, data, trained, model_file=model_file, notes=notes)
    print(f"{model_file}: {best_scores_line(evaluation)}")
    print(f"report: {folder / REPORT}")
    return 0


def _use_pretrained(source: str, card: ModelCard, folder: Path) -> tuple[ModelCard, Path, str]:
    """Write pretrained weights to a file that all workers read; return it, and their origin."""
    pretrained = pretrained_weights(source, card)
    path = folder / _PRETRAINED
    tensors = {key: value.contiguous() for key, value in pretrained.weights.tensors.items()}
    with write_atomically(path) as file:
        file.write(safetensors.torch.save(tensors))
    log.info("backbone: weights of %s", pretrained.origin)
    return with_pretrained_scaling(card, pretrained), path, pretrained.origin


def output_paths(out: Path) -> tuple[Path, Path]:
    """Return the path of the model file, and the folder of all other files."""
    if out.suffix == SUFFIX:
        return out, out.with_suffix(".train")
    return out / f"model{SUFFIX}", out


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """Read the recipe from the file; settings of the command line override it.

    Raises:
        UsageError: when the file is missing, a key is unknown, or a value is invalid.
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


def read_training_data(
    arguments: argparse.Namespace, card: ModelCard, *, cache: Path | None
) -> TrainingData:
    """Read the chips for training and for validation, and log a report on their labels."""
    settings = label_settings(arguments)
    images, labels = arguments.images, arguments.labels
    if arguments.folds:
        training, report = read_chips(
            images, labels, card, settings, names=arguments.train_list, cache=cache
        )
        data = TrainingData(training, training, {"training and validation": report})
    elif arguments.train_list or arguments.val_images:
        training, report = read_chips(
            images,
            labels,
            card,
            settings,
            names=arguments.train_list,
            cache=cache and cache / "training",
        )
        settings = settings.model_copy(update={"chip_px": training.chip_px})
        validation, validation_report = read_chips(
            arguments.val_images or images,
            arguments.val_labels or labels,
            with_statistics(card, training),
            settings,
            names=arguments.val_list,
            cache=cache and cache / "validation",
        )
        data = TrainingData(
            training, validation, {"training": report, "validation": validation_report}
        )
    else:
        training, validation, report = read_split(
            images, labels, card, settings, share=arguments.val_share, cache=cache
        )
        data = TrainingData(training, validation, {"training and validation": report})
    for line in data.lines():
        log.info("%s", line)
    check_trainable(data.training, settings)
    return data


def with_statistics(card: ModelCard, training: LabelledChips) -> ModelCard:
    """Compute the mean and standard deviation of each band if the card has none."""
    given = card.scaling
    if given.mean and given.std:
        return card
    mean, std = band_statistics(training.chips)
    scaling = given.model_copy(update={"mean": given.mean or mean, "std": given.std or std})
    return card.model_copy(update={"scaling": scaling})


def complete_card(
    card: ModelCard, training: LabelledChips, *, anchors: bool
) -> tuple[ModelCard, dict[str, Any]]:
    """Complete a card from the training set; return it with notes on the fitted anchors.

    Raises:
        UsageError: when anchors should be fitted and the network has none.
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
        raise UsageError("--fit-anchors: expected a network with anchors, got fcos")
    fitted = fit_anchors(card.architecture, training)
    log.info(
        "boxes with an anchor of IoU 0.5: %.1f %% before, %.1f %% with sizes %s, ratios %s",
        100 * fitted.before,
        100 * fitted.after,
        fitted.architecture.anchor_sizes_px,
        fitted.architecture.aspect_ratios,
    )
    shares = {"before": round(fitted.before, 4), "after": round(fitted.after, 4)}
    return card.model_copy(update={"architecture": fitted.architecture}), {"anchors": shares}


def _train(work: TrainingRun, data: TrainingData, arguments: argparse.Namespace) -> State:
    checkpoint = work.folder / CHECKPOINT
    if arguments.workers:
        return _train_on_ray(work, data, arguments)
    state = read_state(checkpoint) if checkpoint.exists() else None
    trainer = fit(
        work,
        data.training,
        data.validation,
        state=state,
        save=lambda trainer: trainer.save(checkpoint),
    )
    return trainer.state()


def _train_on_ray(work: TrainingRun, data: TrainingData, arguments: argparse.Namespace) -> State:
    from scenesweep.jobs.training.ray import train_on_ray  # imports Ray, which takes seconds
    from scenesweep.pipeline.engine.ray import ray_session

    with ray_session(arguments.address):
        return train_on_ray(work, data.training, data.validation, workers=arguments.workers)


def _check(arguments: argparse.Namespace, folder: Path) -> None:
    """Check that the arguments fit together, before any work."""
    check_extra("train", _PACKAGES)
    check_rule(arguments)
    alone = bool(arguments.train_list) != bool(arguments.val_list)
    if alone and not arguments.val_images and not arguments.folds:
        raise UsageError("expected --train-list and --val-list together, got only one of them")
    if arguments.val_labels and not arguments.val_images:
        raise UsageError("--val-labels: expected --val-images with it")
    if arguments.init and not arguments.init.is_file():
        raise UsageError(
            f"--init: {arguments.init}: expected a file with weights, there is no such file"
        )
    if not 0 < arguments.val_share < 1:
        raise UsageError(
            f"--val-share: expected a share between 0 and 1, got {arguments.val_share}"
        )
    others = (arguments.val_list, arguments.val_images, arguments.workers)
    if arguments.folds is not None and any(others):
        raise UsageError("--folds: does not work with --val-list, --val-images or --workers")
    if arguments.workers < 0:
        raise UsageError(f"--workers: expected 0 or more, got {arguments.workers}")
    if traces_of_run(folder) and not arguments.resume:
        raise UsageError(
            f"{folder}: contains an earlier run; resume it with --resume, or choose another --out"
        )


def _check_bands(card: ModelCard, recipe: Recipe) -> None:
    """Check that `missing_bands_ok` and band dropout are set together."""
    dropout = recipe.augmentation.band_dropout
    if dropout and not card.missing_bands_ok:
        raise UsageError(
            "augmentation.band_dropout: expected bands in the card's missing_bands_ok, found none"
        )
    if card.missing_bands_ok and not dropout:
        bands = ", ".join(card.missing_bands_ok)
        raise UsageError(
            f"missing_bands_ok: the network must learn from chips without {bands}: "
            "set augmentation.band_dropout, for example to 0.2"
        )


if __name__ == "__main__":
    sys.exit(run_job("train"))
