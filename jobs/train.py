"""`scenesweep train`: labelled chips in, a model file out."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from jobs.cli import run_job
from model.card import ModelCard, read_card
from model.checkpoint import save_model
from model.detector import Detector
from model.evaluate import PointScores, best_points, point_samples
from model.retinanet import build
from model.settings import DetectorSettings, Recipe
from model.train import Epoch, band_statistics, train
from pipeline.labels import PointChips, as_boxes, read_point_chips

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_label_arguments(parser)
    parser.add_argument("--card", type=Path, required=True, help="model card to train (YAML)")
    parser.add_argument("--train-list", type=Path, required=True, help="chip names, one a line")
    parser.add_argument("--val-list", type=Path, required=True, help="chip names, one a line")
    parser.add_argument("--box-m", type=float, required=True, help="side of the boxes, metres")
    parser.add_argument("--epochs", type=int, default=Recipe().epochs)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True, help="model file to write")


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe where labelled chips come from, for training and evaluation alike."""
    parser.add_argument("--images", type=Path, required=True, help="folder of GeoTIFF chips")
    parser.add_argument("--labels", type=Path, required=True, help="CSV with image,x,y")
    parser.add_argument("--radius-m", type=float, default=6.0, help="reach of a match, metres")


def run(arguments: argparse.Namespace) -> int:
    """Train, keep the weights of the best epoch, and write them with their card."""
    torch.set_num_threads(arguments.threads)
    card = read_card(arguments.card)
    recipe = Recipe(epochs=arguments.epochs, seed=arguments.seed)
    training = read_point_chips(arguments.images, arguments.labels, arguments.train_list, card)
    validation = read_point_chips(arguments.images, arguments.labels, arguments.val_list, card)
    mean, std = band_statistics(training.chips)
    scaling = card.scaling.model_copy(update={"mean": mean, "std": std})
    card = card.model_copy(update={"scaling": scaling})

    def judge(weights: dict[str, Tensor]) -> float:
        return judge_points(card, weights, validation, arguments).f_score

    def on_epoch(epoch: Epoch) -> None:
        log.info(
            "epoch %d of %d: classification %.4f, boxes %.4f, validation F %.4f, %.0f s",
            *(epoch.number, recipe.epochs, epoch.classification_loss, epoch.box_loss),
            *(epoch.metric, epoch.seconds),
        )

    data = as_boxes(training, side_px=arguments.box_m / card.gsd_m)
    weights = train(card, data, recipe, judge=judge, on_epoch=on_epoch)
    scores = judge_points(card, weights, validation, arguments)
    card = _with_results(card, recipe, scores)
    save_model(arguments.out, card, weights)
    print(f"{arguments.out}: {describe(scores)}")
    return 0


def judge_points(
    card: ModelCard, weights: dict[str, Tensor], data: PointChips, arguments: argparse.Namespace
) -> PointScores:
    """Score weights on labelled chips, at the best threshold."""
    network = build(card)
    network.load_state_dict(weights)
    settings = DetectorSettings(threads=torch.get_num_threads())
    detector = Detector(network, card, settings, chip_px=data.chips.shape[-1])
    samples = point_samples(detector, data.chips, data.points)
    return best_points(samples, radius=arguments.radius_m / card.gsd_m)


def describe(scores: PointScores) -> str:
    """Put the figures of a point comparison on one line."""
    return (
        f"F {scores.f_score:.4f}, precision {scores.precision:.4f}, recall {scores.recall:.4f}, "
        f"RMSE {scores.rmse:.2f} px at score >= {scores.threshold:.2f}"
    )


def _with_results(card: ModelCard, recipe: Recipe, scores: PointScores) -> ModelCard:
    """Write the recipe, the figures and the operating threshold into the card."""
    made = {"recipe": recipe.model_dump(), "validation": asdict(scores)}
    inference = card.inference.model_copy(update={"score_threshold": scores.threshold})
    return card.model_copy(update={"training": card.training | made, "inference": inference})


if __name__ == "__main__":
    sys.exit(run_job("train"))
