"""`scenesweep evaluate`: judge a model on labelled chips, or the published tables of scenes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.shared.evaluation_report import Outcome, document, lines, validation
from scenesweep.jobs.shared.label_arguments import (
    add_label_arguments,
    add_rule_arguments,
    check_rule,
    label_settings,
    rule_for,
)
from scenesweep.model.errors import check_extra
from scenesweep.model.evaluate import Sample, evaluate_samples, samples_of
from scenesweep.model.evaluate.threshold import with_threshold
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.model.inference.detector import load_detector, use_process
from scenesweep.model.samples import Samples
from scenesweep.model.settings import DetectorSettings
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.labels import read_objects, read_samples
from scenesweep.pipeline.planning.area import read_area
from scenesweep.pipeline.results.accuracy import (
    class_names,
    in_metres,
    open_published,
    scene_sample,
    seam_scores,
)
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import location_of

_LOWEST_SCORE = 0.05
_PACKAGES = ("faster_coco_eval", "torchmetrics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_label_arguments(parser)
    parser.add_argument("--list", type=Path, help="names of the images to judge on, one a line")
    parser.add_argument("--model", help="name of a built-in model, or a model file")
    parser.add_argument(
        "--detections",
        metavar="OUT",
        help="judge what a sweep published there, on the scenes given by --images",
    )
    parser.add_argument("--aoi", type=Path, help="judge a sweep inside these polygons only")
    add_rule_arguments(parser)
    parser.add_argument(
        "--write-threshold",
        type=Path,
        metavar="FILE",
        help="write the model with the best threshold and its figures in the card",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Judge at the threshold in use, and at the threshold that is best on this truth."""
    _check(arguments)
    outcome = judge_scenes(arguments) if arguments.detections else judge_chips(arguments)
    if arguments.json:
        print(json.dumps(document(outcome), indent=2))
    else:
        print("\n".join(lines(outcome)))
    return 0


def judge_chips(arguments: argparse.Namespace) -> Outcome:
    """Run the model on chips and compare; write the threshold when that is asked for."""
    model = open_model(arguments.model)
    card = model.card
    data, labels = read_samples(
        arguments.images,
        arguments.labels,
        card,
        label_settings(arguments),
        names=arguments.list,
    )
    started = time.monotonic()
    samples = detect_chips(model, data, threads=arguments.threads)
    speed = data.chips[:, 0].size / 1e6 / (time.monotonic() - started)
    rule, terms = rule_for(arguments, points=data.points, px_m=card.gsd_m)
    threshold = card.inference.score_threshold
    verdict = evaluate_samples(samples, rule, classes=card.classes, threshold=threshold)
    capped = sum(sample.capped for sample in samples)
    outcome = Outcome(verdict, data.names, labels, terms, speed=speed, capped=capped)
    if arguments.write_threshold:
        write_threshold(arguments.write_threshold, model, outcome)
    return outcome


def detect_chips(model: ModelFile, data: Samples, *, threads: int) -> list[Sample]:
    """Run a model on chips, down to scores far below any threshold in use."""
    inference = model.card.inference
    low = min(_LOWEST_SCORE, inference.score_threshold)
    settings = DetectorSettings(threads=threads)
    use_process(settings)
    detector = load_detector(
        model,
        settings,
        inference=inference.model_copy(update={"score_threshold": low}),
    )
    return samples_of(detector, data)


def judge_scenes(arguments: argparse.Namespace) -> Outcome:
    """Compare the published tables of scenes with their truth.

    Scenes that the labels do not speak of are left out.
    """
    published = open_published(location_of(arguments.detections), arguments.images)
    given = open_model(arguments.model).card.classes if arguments.model else ()
    classes = given or class_names(published)
    scenes = [one.scene for one in published]
    truth, labels = read_objects(arguments.labels, scenes, classes, label_settings(arguments))
    published = [one for one in published if one.scene.id in truth]
    area = read_area(arguments.aoi) if arguments.aoi else None
    samples = [scene_sample(one, truth[one.scene.id], classes, area) for one in published]
    points = any(objects.points for objects in truth.values())
    rule, terms = rule_for(arguments, points=points, px_m=1.0)
    judged = samples
    if rule.radius is not None:
        judged = [in_metres(s, p.scene) for s, p in zip(samples, published, strict=True)]
    threshold = published[0].threshold
    verdict = evaluate_samples(judged, rule, classes=classes, threshold=threshold, scenes=True)
    seams = seam_scores(published, samples, rule, threshold=threshold)
    names = tuple(one.scene.id for one in published)
    return Outcome(verdict, names, labels, terms, seams=seams)


def write_threshold(path: Path, model: ModelFile, outcome: Outcome) -> None:
    """Write the model with the best threshold and the figures by which it was chosen.

    Raises:
        UsageError: when nothing was found that could tell thresholds apart.
    """
    best = outcome.verdict.best
    if not best.true_positives:
        raise UsageError("--write-threshold: no object was found at any threshold")
    content = with_threshold(model, best.threshold, validation(outcome))
    with atomic_write(path, path.parent) as aside:
        aside.write_bytes(content)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything is read."""
    if not arguments.detections and not arguments.model:
        raise UsageError("give --model to judge it on chips, or --detections OUT to judge a sweep")
    chips_only = {"--write-threshold": arguments.write_threshold, "--list": arguments.list}
    for name, value in chips_only.items():
        if arguments.detections and value:
            raise UsageError(f"{name} goes with chips, not with --detections")
    if arguments.aoi and not arguments.detections:
        raise UsageError("--aoi goes with --detections")
    if arguments.radius_m is None:
        check_extra("train", _PACKAGES)
    check_rule(arguments)


if __name__ == "__main__":
    sys.exit(run_job("evaluate"))
