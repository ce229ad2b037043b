"""The end of a training run: the best weights are judged, written and reported on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scenesweep.jobs.training.report import Story, write_training_report
from scenesweep.jobs.training.run import Examiner, Labelled, TrainingRun
from scenesweep.model.card import ModelCard
from scenesweep.model.evaluate import Evaluation, evaluate_samples, figures, find_matches
from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.samples import Samples
from scenesweep.model.training.train import Epoch, State

REPORT = "report.html"


def finish(
    work: TrainingRun, data: Labelled, state: State, *, model_file: Path, notes: dict[str, Any]
) -> Evaluation:
    """Judge the best weights, write them with their card, and write the report."""
    examiner = Examiner(work.card, data.validation, work.rule)
    samples = examiner.detect(state["best"])
    best = find_matches(samples, work.rule).count().curve().best()
    verdict = evaluate_samples(
        samples, work.rule, classes=work.card.classes, threshold=best.threshold
    )
    card = _with_results(work, data, verdict, notes | {"epochs": state["history"]})
    save_model(model_file, card, state["best"])
    story = Story(
        card,
        [Epoch(**epoch) for epoch in state["history"]],
        data.validation,
        samples,
        work.rule,
        verdict.curve,
        best.threshold,
        data.lines(),
    )
    write_training_report(work.folder / REPORT, story, _table(work, data, verdict))
    return verdict


def said(verdict: Evaluation) -> str:
    """Put the figures of a verdict at its best threshold on one line."""
    best = verdict.best
    apart = "" if verdict.best_rmse is None else f", RMSE {verdict.best_rmse:.2f} px"
    return (
        f"F {best.f_score:.4f}, precision {best.precision:.4f}, recall {best.recall:.4f}{apart} "
        f"at score >= {best.threshold:.2f}"
    )


def _with_results(
    work: TrainingRun, data: Labelled, verdict: Evaluation, notes: dict[str, Any]
) -> ModelCard:
    """Write recipe, data, figures and the operating threshold into the card: no clock, no path."""
    validation = figures(verdict, data.validation.names)
    validation["count_error"].pop("samples")
    rule = {"iou": work.rule.iou} if work.rule.radius is None else {"radius_px": work.rule.radius}
    timeless = {"seconds", "chips_per_second"}
    notes["epochs"] = [
        {k: v for k, v in epoch.items() if k not in timeless} for epoch in notes["epochs"]
    ]
    made = {
        "recipe": work.recipe.model_dump(mode="json"),
        "initial": work.initial.name if work.initial else None,
        "training": _counts(data.training),
        "labels": {use: report.counts() for use, report in data.reports.items()},
        "validation": _counts(data.validation) | {"rule": rule} | validation,
    }
    inference = work.card.inference.model_copy(update={"score_threshold": verdict.best.threshold})
    training = work.card.training | made | notes
    return work.card.model_copy(update={"training": training, "inference": inference})


def _counts(samples: Samples) -> dict[str, int]:
    return {"chips": len(samples), "objects": samples.objects}


def _table(work: TrainingRun, data: Labelled, verdict: Evaluation) -> list[tuple[str, str]]:
    """List the figures at the head of the report."""
    interval = verdict.resampled.f
    rows = [
        ("best epoch, on the validation chips", said(verdict)),
        ("95 % interval of F", f"{interval.low:.3f} to {interval.high:.3f}"),
        ("training", f"{len(data.training):,} chips, {data.training.objects:,} objects"),
        ("validation", f"{len(data.validation):,} chips, {data.validation.objects:,} objects"),
    ]
    average = verdict.average
    if average is not None and average.ap is not None and average.ap50 is not None:
        rows.append(("COCO AP, AP50", f"{average.ap:.3f}, {average.ap50:.3f}"))
    return rows
