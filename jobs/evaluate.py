"""`scenesweep evaluate`: evaluate a model on labelled chips, or published detections of scenes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.shared.evaluation_report import (
    EvaluationResult,
    calibration_record,
    document,
    lines,
    validation,
)
from scenesweep.jobs.shared.label_arguments import (
    add_label_arguments,
    add_rule_arguments,
    check_rule,
    label_settings,
    rule_for,
)
from scenesweep.model.card import Calibration, ModelCard, explain, noted
from scenesweep.model.errors import ModelError, check_extra
from scenesweep.model.evaluate import (
    Comparison,
    Evaluation,
    Matches,
    Rule,
    compare_chips,
    evaluate_comparisons,
    find_matches,
)
from scenesweep.model.evaluate.calibration import (
    CalibrationScores,
    calibrate,
    cross_validate,
    score_calibration,
)
from scenesweep.model.evaluate.threshold import Goal, Thresholds, choose_thresholds, with_threshold
from scenesweep.model.files.model_file import ModelFile, open_model, with_card
from scenesweep.model.inference.detector import use_process
from scenesweep.model.inference.views import load_with_views
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.settings import DetectorSettings, Views
from scenesweep.model.settings import Rule as ViewsRule
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.labels import read_chips, read_objects
from scenesweep.pipeline.planning.area import read_area
from scenesweep.pipeline.results.accuracy import (
    class_names,
    compare_scene,
    in_metres,
    inside_swept_area,
    open_published,
    seam_scores,
)
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import location_of
from scenesweep.pipeline.storage.remote import local_name

log = logging.getLogger(__name__)

_LOWEST_SCORE = 0.05
_FEWEST_CHIPS = 2  # for a cross-validation
_PACKAGES = ("faster_coco_eval", "torchmetrics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_label_arguments(parser)
    parser.add_argument(
        "--list", type=Path, help="file with the names of the images to use, one per line"
    )
    parser.add_argument("--model", help="name of a built-in model, or a model file")
    parser.add_argument(
        "--detections",
        metavar="OUT",
        help="evaluate the detections that a sweep published there, on the scenes of --images",
    )
    parser.add_argument(
        "--aoi", type=Path, help="evaluate published detections inside these polygons only"
    )
    add_rule_arguments(parser)
    parser.add_argument(
        "--write-threshold",
        type=Path,
        metavar="FILE",
        help="write a copy of the model to FILE; its card has the best score threshold of each "
        "class, and the figures at these thresholds",
    )
    parser.add_argument(
        "--threshold-for",
        metavar="GOAL",
        help="what --write-threshold chooses for: f (default), precision=P or recall=R, such as "
        "precision=0.9",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="measure for each score which share of the detections is correct, and write a copy of "
        "the model to FILE; tables that it makes have a `probability`; with --write-threshold, it "
        "has those thresholds too",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="precision of the network (default: %(default)s)",
    )
    parser.add_argument(
        "--views",
        nargs="+",
        default=["plain"],
        metavar="VIEW",
        help="views in which the model looks at each chip, as detect.views (default: plain)",
    )
    parser.add_argument(
        "--views-rule",
        choices=get_args(ViewsRule),
        default="weighted",
        help="how the boxes of several views become one set (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate at the threshold in use, and at the best threshold for these labels."""
    _check(arguments)
    result = evaluate_scenes(arguments) if arguments.detections else evaluate_chips(arguments)
    if arguments.json:
        print(json.dumps(document(result), indent=2))
    else:
        print("\n".join(lines(result)), flush=True)
    if result.problem:
        raise UsageError(result.problem)
    return 0


def evaluate_chips(arguments: argparse.Namespace) -> EvaluationResult:
    """Evaluate a model on chips, and write it with the thresholds or calibration that it gets."""
    model = open_model(local_name(arguments.model))
    card = model.card
    data, labels = read_chips(
        arguments.images,
        arguments.labels,
        card,
        label_settings(arguments),
        names=arguments.list,
    )
    if arguments.calibrate and len(data) < _FEWEST_CHIPS:
        raise UsageError(
            f"--calibrate: expected at least {_FEWEST_CHIPS} chips to calibrate scores, "
            f"got {len(data)}"
        )
    started = time.monotonic()
    settings = DetectorSettings(threads=arguments.threads, precision=arguments.precision)
    views = _views(arguments)
    comparisons = detect_chips(model, data, settings, views)
    speed = data.chips[:, 0].size / 1e6 / (time.monotonic() - started)
    rule, terms = rule_for(arguments, points=data.points, px_m=card.gsd_m)
    matches = find_matches(comparisons, rule)
    result = EvaluationResult(
        _evaluation(comparisons, rule, card),
        data.names,
        labels,
        terms,
        speed=speed,
        capped=len([comparison for comparison in comparisons if comparison.capped]),
        calibration=score_calibration(matches, card.calibrated_for(views)),
    )
    evaluated = partial(_evaluation, comparisons, rule)
    try:
        return _write_models(arguments, model, matches=matches, result=result, evaluated=evaluated)
    except UsageError as error:  # the figures are right all the same
        return replace(result, problem=str(error))


def _write_models(
    arguments: argparse.Namespace,
    model: ModelFile,
    *,
    matches: Matches,
    result: EvaluationResult,
    evaluated: Callable[[ModelCard], Evaluation],
) -> EvaluationResult:
    """Write the model with thresholds, and with a calibration, as the arguments ask for."""
    if arguments.write_threshold:
        chosen = _choose(matches, model.card.classes, goal_from(arguments.threshold_for))
        better = with_threshold(model.card, chosen)
        figures = validation(replace(result, evaluation=evaluated(better)))
        model = with_card(model, noted(better, validation=figures))
        write_model(arguments.write_threshold, model)
    if arguments.calibrate:
        maps, scores = _calibrate(matches, model.card, _views(arguments))
        result = replace(result, calibration=scores)
        better = model.card.model_copy(update={"calibration": maps})
        figures = calibration_record(scores, result)
        write_model(arguments.calibrate, with_card(model, noted(better, calibration=figures)))
    return result


def _evaluation(comparisons: list[Comparison], rule: Rule, card: ModelCard) -> Evaluation:
    """Evaluate comparisons at the thresholds of a card."""
    return evaluate_comparisons(
        comparisons,
        rule,
        classes=card.classes,
        threshold=card.inference.score_threshold,
        class_thresholds=card.class_thresholds,
    )


def detect_chips(
    model: ModelFile, data: LabelledChips, settings: DetectorSettings, views: Views
) -> list[Comparison]:
    """Run a model on chips, with a score threshold lower than any that is used."""
    inference = model.card.inference
    low = min(_LOWEST_SCORE, inference.score_threshold)
    use_process(settings)
    lowest = inference.model_copy(update={"score_threshold": low})
    detector = load_with_views(model, settings, views, inference=lowest)
    return compare_chips(detector, data)


def _views(arguments: argparse.Namespace) -> Views:
    try:
        return Views(views=tuple(arguments.views), views_rule=arguments.views_rule)
    except ValidationError as error:
        raise UsageError(f"--views: {explain(error)}") from error


def evaluate_scenes(arguments: argparse.Namespace) -> EvaluationResult:
    """Evaluate the published detections of scenes.

    Scenes without labels are left out, and so are objects that the sweep did not look for because
    they are outside its area of interest.
    """
    published = open_published(location_of(arguments.detections), arguments.images)
    given = open_model(local_name(arguments.model)).card.classes if arguments.model else ()
    classes = given or class_names(published)
    scenes = [scene.scene for scene in published]
    truth, labels = read_objects(arguments.labels, scenes, classes, label_settings(arguments))
    published = [scene for scene in published if scene.scene.id in truth]
    area = read_area(arguments.aoi) if arguments.aoi else None
    asked = [compare_scene(scene, truth[scene.scene.id], classes, area) for scene in published]
    pairs = list(zip(asked, published, strict=True))
    comparisons = [inside_swept_area(comparison, scene) for comparison, scene in pairs]
    not_swept = sum(len(one.label) for one in asked) - sum(len(one.label) for one in comparisons)
    points = any(objects.points for objects in truth.values())
    rule, terms = rule_for(arguments, points=points, px_m=1.0)
    scaled = comparisons
    if rule.radius is not None:
        pairs = list(zip(comparisons, published, strict=True))
        scaled = [in_metres(comparison, scene.scene) for comparison, scene in pairs]
    threshold = published[0].threshold
    evaluation = evaluate_comparisons(
        scaled, rule, classes=classes, threshold=threshold, scenes=True
    )
    seams = seam_scores(published, comparisons, rule, threshold=threshold)
    names = tuple(scene.scene.id for scene in published)
    return EvaluationResult(evaluation, names, labels, terms, seams=seams, not_swept=not_swept)


def write_model(path: Path, model: ModelFile) -> None:
    """Write a model file, atomically."""
    with atomic_write(path, path.parent) as temporary:
        temporary.write_bytes(model.content)


def goal_from(text: str | None) -> Goal:
    """Parse `f`, `precision=P` or `recall=R`.

    Raises:
        UsageError: when it is none of these, or the number is not between 0 and 1.
    """
    kind, _, value = (text or "f").partition("=")
    try:
        number = float(value or 0)
    except ValueError:
        number = -1
    if kind == "f" and not value:
        return Goal()
    if kind == "precision" and 0 < number <= 1:
        return Goal("precision", number)
    if kind == "recall" and 0 < number <= 1:
        return Goal("recall", number)
    raise UsageError(
        f"--threshold-for: expected f, precision=P or recall=R with a number up to 1, got {text!r}"
    )


def _choose(matches: Matches, classes: tuple[str, ...], goal: Goal) -> Thresholds:
    try:
        chosen = choose_thresholds(matches, classes, goal)
    except ModelError as error:
        raise UsageError(f"--write-threshold: {error}; the file is not written") from error
    for name in classes:
        log.info("%s: score >= %.2f", name, chosen.by_class.get(name, chosen.score_threshold))
    return chosen


def _calibrate(
    matches: Matches, card: ModelCard, views: Views
) -> tuple[dict[str, Calibration], CalibrationScores]:
    """Fit a map from score to probability for each class, and judge it by cross-validation."""
    try:
        maps = calibrate(matches, card.classes)
        scores = cross_validate(matches, card)
    except ModelError as error:
        raise UsageError(f"--calibrate: {error}; the file is not written") from error
    seen = {"measured_in": views}
    return {name: map_.model_copy(update=seen) for name, map_ in maps.items()}, scores


def _check(arguments: argparse.Namespace) -> None:
    """Check that the options fit together, before anything is read."""
    if not arguments.detections and not arguments.model:
        raise UsageError("expected --model, to evaluate it on chips, or --detections OUT")
    chips_only = {
        "--write-threshold": arguments.write_threshold,
        "--calibrate": arguments.calibrate,
        "--list": arguments.list,
    }
    for name, value in chips_only.items():
        if arguments.detections and value:
            raise UsageError(f"{name}: works on chips only, not with --detections")
    if arguments.threshold_for and not arguments.write_threshold:
        raise UsageError("--threshold-for: expected --write-threshold with it")
    goal_from(arguments.threshold_for)
    if arguments.aoi and not arguments.detections:
        raise UsageError("--aoi: expected --detections with it")
    if arguments.radius_m is None:
        check_extra("train", _PACKAGES)
    check_rule(arguments)


if __name__ == "__main__":
    sys.exit(run_job("evaluate"))
