"""The end of a training run: evaluate the best weights, write the model file and the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scenesweep.jobs.training.report import TrainingSummary, write_training_report
from scenesweep.jobs.training.run import TrainingData, TrainingRun, Validator
from scenesweep.model.card import ModelCard
from scenesweep.model.evaluate import (
    Comparison,
    Evaluation,
    evaluate_comparisons,
    figures,
    find_matches,
)
from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.training.train import Epoch, State

REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Trained:
    """The weights to write, the epochs of their run, and predictions on the validation chips."""

    weights: dict[str, Tensor]
    history: list[dict[str, Any]]
    comparisons: list[Comparison]


def validated(work: TrainingRun, data: TrainingData, state: State) -> Trained:
    """Run the weights of a finished run on its validation chips."""
    validator = Validator(work.card, data.validation, work.rule, work.recipe.precision)
    return Trained(state["best"], state["history"], validator.detect(state["best"]))


def finish(
    work: TrainingRun,
    data: TrainingData,
    trained: Trained,
    *,
    model_file: Path,
    notes: dict[str, Any],
) -> Evaluation:
    """Evaluate the predictions, write the weights with their card, and write the report."""
    comparisons = trained.comparisons
    best = find_matches(comparisons, work.rule).count().curve().best()
    evaluation = evaluate_comparisons(
        comparisons, work.rule, classes=work.card.classes, threshold=best.threshold
    )
    card = _with_results(work, data, evaluation, notes | {"epochs": trained.history})
    save_model(model_file, card, trained.weights)
    summary = TrainingSummary(
        card,
        [Epoch(**epoch) for epoch in trained.history],
        data.validation,
        comparisons,
        work.rule,
        evaluation.curve,
        best.threshold,
        data.lines(),
    )
    write_training_report(work.folder / REPORT, summary, _table(work, data, evaluation))
    return evaluation


def best_scores_line(evaluation: Evaluation) -> str:
    """Return one line with the figures at the best threshold."""
    best = evaluation.best
    distance = "" if evaluation.best_rmse is None else f", RMSE {evaluation.best_rmse:.2f} px"
    return (
        f"F {best.f_score:.4f}, precision {best.precision:.4f}, recall {best.recall:.4f}{distance} "
        f"at score >= {best.threshold:.2f}"
    )


def _with_results(
    work: TrainingRun, data: TrainingData, evaluation: Evaluation, notes: dict[str, Any]
) -> ModelCard:
    """Write recipe, data, figures and threshold into the card, but no times and no paths."""
    validation = figures(evaluation, data.validation.names)
    validation["count_error"].pop("samples")
    rule = {"iou": work.rule.iou} if work.rule.radius is None else {"radius_px": work.rule.radius}
    times = {"seconds", "chips_per_second"}
    notes["epochs"] = [
        {k: v for k, v in epoch.items() if k not in times} for epoch in notes["epochs"]
    ]
    results = {
        "recipe": work.recipe.model_dump(mode="json"),
        "initial": work.initial.name if work.initial else None,
        "training": _counts(data.training),
        "labels": {use: report.counts() for use, report in data.reports.items()},
        "validation": _counts(data.validation) | {"rule": rule} | validation,
    }
    inference = work.card.inference.model_copy(
        update={"score_threshold": evaluation.best.threshold}
    )
    training = work.card.training | results | notes
    changes = {"training": training, "inference": inference, "calibration": {}}
    return work.card.model_copy(update=changes)


def _counts(chips: LabelledChips) -> dict[str, int]:
    return {"chips": len(chips), "objects": chips.objects}


def _table(work: TrainingRun, data: TrainingData, evaluation: Evaluation) -> list[tuple[str, str]]:
    """List the figures at the head of the report."""
    interval = evaluation.resampled.f
    rows = [
        ("best epoch, on the validation chips", best_scores_line(evaluation)),
        ("95 % interval of F", f"{interval.low:.3f} to {interval.high:.3f}"),
        ("training", f"{len(data.training):,} chips, {data.training.objects:,} objects"),
        ("validation", f"{len(data.validation):,} chips, {data.validation.objects:,} objects"),
    ]
    average = evaluation.average
    if average is not None and average.ap is not None and average.ap50 is not None:
        rows.append(("COCO AP, AP50", f"{average.ap:.3f}, {average.ap50:.3f}"))
    return rows
