"""`scenesweep evaluate`: judge a model on labelled chips."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from jobs.cli import run_job
from jobs.train import add_label_arguments, describe
from model.checkpoint import open_model
from model.detector import load_detector
from model.evaluate import best_points, point_samples, score_points
from model.settings import DetectorSettings
from pipeline.labels import read_point_chips

_LOWEST_SCORE = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_label_arguments(parser)
    parser.add_argument("--list", type=Path, required=True, help="chip names, one a line")
    parser.add_argument("--model", required=True, help="name of a built-in model, or a model file")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Score at the card's threshold, and at the threshold that is best on these chips."""
    model = open_model(arguments.model)
    card = model.card
    data = read_point_chips(arguments.images, arguments.labels, arguments.list, card)
    low = card.inference.model_copy(update={"score_threshold": _LOWEST_SCORE})
    settings = DetectorSettings(threads=arguments.threads)
    detector = load_detector(model, settings, chip_px=data.chips.shape[-1], inference=low)
    started = time.monotonic()
    samples = point_samples(detector, data.chips, data.points)
    seconds = time.monotonic() - started
    radius = arguments.radius_m / card.gsd_m
    own = score_points(samples, radius=radius, threshold=card.inference.score_threshold)
    best = best_points(samples, radius=radius)
    speed = data.chips[:, 0].size / 1e6 / seconds
    if arguments.json:
        figures = {
            name: asdict(scores)
            | {"precision": scores.precision, "recall": scores.recall, "f_score": scores.f_score}
            for name, scores in (("card", own), ("best", best))
        }
        print(json.dumps(figures | {"megapixels_per_second": speed}, indent=2))
        return 0
    print(f"chips: {len(data.chips)}, true points: {sum(map(len, data.points)):,}")
    print(f"at the card's threshold: {describe(own)}")
    print(f"at the best threshold:   {describe(best)}")
    print(f"speed: {speed:.2f} Mpx/s on {arguments.threads} threads")
    return 0


if __name__ == "__main__":
    sys.exit(run_job("evaluate"))
