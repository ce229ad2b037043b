"""An evaluation as lines of text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scenesweep.jobs.shared.reliability_report import calibration_document, calibration_lines
from scenesweep.model.evaluate import AveragePrecision, Evaluation, Interval, Scores, figures
from scenesweep.model.evaluate.calibration import CalibrationScores
from scenesweep.pipeline.labels import LabelReport
from scenesweep.pipeline.results.accuracy import SeamScores, Share, Zone

_HEAD = ("score >=", "precision", "recall", "F", "right", "false", "missed", "RMSE")


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """An evaluation together with its data.

    `names` are those of the chips or scenes. `rule` says how objects were matched: `kind`, and
    `iou`, or `radius_m` and `px_m`, the metres in a unit of the distances. For chips there are
    `speed` in Mpx/s and `capped`, the number of chips that reached a limit of the card; for scenes
    there are `seams` and `not_swept`, the number of objects outside the swept area of interest.
    `calibration` judges the probabilities of the card, or those that `--calibrate` gave it.
    `problem` says why a model that was asked for could not be written.
    """

    evaluation: Evaluation
    names: tuple[str, ...]
    labels: LabelReport
    rule: dict[str, Any]
    speed: float | None = None
    capped: int = 0
    seams: SeamScores | None = None
    not_swept: int = 0
    calibration: CalibrationScores | None = None
    problem: str = ""

    @property
    def threshold_name(self) -> str:
        """The name of the threshold in use: that of the card, or that of the published run."""
        return "card" if self.seams is None else "published"


def document(result: EvaluationResult) -> dict[str, Any]:
    """Return everything as a JSON document. `rmse` is in units of `rule.px_m` metres."""
    wrong = {count.reason: list(count.examples) for count in result.labels.wrong}
    about: dict[str, Any] = {
        "rule": result.rule,
        "labels": {"counts": result.labels.counts(), "examples": wrong},
    }
    if result.speed is not None:
        about["megapixels_per_second"] = result.speed
        about["capped_chips"] = result.capped
    if result.seams is not None:
        about["seams"] = _seam_document(result.seams)
        about["objects_not_swept"] = result.not_swept
    if result.calibration is not None:
        about["calibration"] = calibration_document(result.calibration)
    return figures(result.evaluation, result.names, own=result.threshold_name) | about


def calibration_record(scores: CalibrationScores, result: EvaluationResult) -> dict[str, Any]:
    """Return the figures of a calibration, which go into a model card."""
    return {"rule": result.rule, "chips": len(result.names)} | calibration_document(scores)


def validation(result: EvaluationResult) -> dict[str, Any]:
    """Return the figures at the thresholds in use, which go into a model card."""
    evaluation, own = result.evaluation, result.evaluation.own
    derived = {"precision": own.precision, "recall": own.recall, "f_score": own.f_score}
    return {
        "rule": result.rule,
        "chips": len(result.names),
        "labels": result.labels.counts(),
        **asdict(own),
        **derived,
        "rmse": evaluation.own_rmse,
        "best_threshold_95": asdict(evaluation.resampled.best_threshold),
        "average_precision": None if evaluation.average is None else asdict(evaluation.average),
    }


def lines(result: EvaluationResult) -> list[str]:
    """Return the report as lines of text."""
    own, evaluation = result.evaluation.own, result.evaluation
    unit = "chips" if result.seams is None else "scenes"
    text = result.labels.describe()
    text += [
        f"{unit}: {len(result.names):,}, objects: {own.true_positives + own.false_negatives:,}, "
        f"matched {_rule(result.rule)}",
        *_table(_rows(result)),
        _interval_line(result),
        _count_line(result),
    ]
    if result.not_swept:
        text.append(
            f"left out: {result.not_swept:,} objects outside the area of interest of the sweep"
        )
    if evaluation.average is not None:
        text += _average_lines(evaluation, evaluation.average)
    if result.calibration is not None:
        text += calibration_lines(result.calibration)
    if result.seams is not None:
        text += _scene_lines(result) + _seam_lines(result.seams)
    if result.speed is not None:
        text.append(f"speed: {result.speed:.2f} Mpx/s")
    if result.capped:
        text.append(
            f"{result.capped:,} chips reached a limit of the card (topk_per_level or "
            "max_detections_per_chip); with higher limits the figures may be better"
        )
    return text


def _rule(rule: dict[str, Any]) -> str:
    if rule["kind"] == "boxes":
        return f"by boxes, IoU >= {rule['iou']:g}"
    return f"by centres within {rule['radius_m']:g} m"


def _rows(result: EvaluationResult) -> list[tuple[str, ...]]:
    evaluation = result.evaluation
    here = f"at the {result.threshold_name} threshold"
    rows = [
        _row(here, evaluation.own, _metres(result, evaluation.own_rmse)),
        _row("at the best threshold", evaluation.best, _metres(result, evaluation.best_rmse)),
    ]
    if len(evaluation.classes) > 1:
        rows += [_row(f"{c.name}, {here}", c.own, "") for c in evaluation.classes]
        rows += [_row(f"{c.name}, at its best", c.best, "") for c in evaluation.classes]
    return rows


def _metres(result: EvaluationResult, rmse: float | None) -> str:
    return "" if rmse is None else f"{rmse * result.rule['px_m']:.2f} m"


def _row(title: str, scores: Scores, rmse: str) -> tuple[str, ...]:
    shares = scores.precision, scores.recall, scores.f_score
    counts = scores.true_positives, scores.false_positives, scores.false_negatives
    return (
        title,
        f"{scores.threshold:.2f}",
        *(f"{share:.3f}" for share in shares),
        *(f"{count:,}" for count in counts),
        rmse,
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Align the first column to the left, and the others to the right."""
    table = [("", *_HEAD), *rows]
    if not any(row[-1] for row in rows):
        table = [row[:-1] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in table
    ]


def _interval_line(result: EvaluationResult) -> str:
    resampled, units = result.evaluation.resampled, result.evaluation.units
    resampled_from = "chips" if result.seams is None else "blocks of ground"
    name = result.threshold_name
    return (
        f"95 % intervals from {units:,} {resampled_from}: F at the {name} threshold "
        f"{_span(resampled.f, 3)}, best threshold {_span(resampled.best_threshold, 2)}"
    )


def _count_line(result: EvaluationResult) -> str:
    count, each = result.evaluation.count, "chip" if result.seams is None else "scene"
    total = "" if count.relative is None else f", {count.relative:+.1%} in all"
    name = result.threshold_name
    return (
        f"count error at the {name} threshold: {count.mean_absolute:.2f} per {each}, "
        f"{count.bias:+.2f} on average{total}"
    )


def _average_lines(evaluation: Evaluation, average: AveragePrecision) -> list[str]:
    named = {
        "AP": average.ap,
        "AP50": average.ap50,
        "AP75": average.ap75,
        "small": average.small,
        "medium": average.medium,
        "large": average.large,
    }
    text = ["COCO " + ", ".join(f"{name} {_figure(value)}" for name, value in named.items())]
    if len(evaluation.classes) > 1:
        pairs = zip(evaluation.classes, average.class_ap50, strict=True)
        text.append("AP50 of " + ", ".join(f"{c.name} {_figure(value)}" for c, value in pairs))
    return text


def _scene_lines(result: EvaluationResult) -> list[str]:
    pairs = zip(result.names, result.evaluation.count.samples, strict=True)
    return [
        f"{name}: {predicted:,} predicted, {true:,} true ({predicted - true:+,})"
        for name, (predicted, true) in pairs
    ]


def _seam_lines(seams: SeamScores) -> list[str]:
    near = f"within {seams.margin_px} px of window seams"
    return [
        f"recall {near} {_share(seams.near.recall)}, elsewhere {_share(seams.elsewhere.recall)}",
        f"precision {near} {_share(seams.near.precision)}, "
        f"elsewhere {_share(seams.elsewhere.precision)}",
    ]


def _seam_document(seams: SeamScores) -> dict[str, Any]:
    zones = {"near": seams.near, "elsewhere": seams.elsewhere}
    return {"margin_px": seams.margin_px} | {n: _zone_document(z) for n, z in zones.items()}


def _zone_document(zone: Zone) -> dict[str, Any]:
    return {
        name: asdict(share) | {"value": share.value, "interval_95": asdict(share.interval)}
        for name, share in (("recall", zone.recall), ("precision", zone.precision))
    }


def _share(share: Share) -> str:
    if share.value is None:
        return "- (none there)"
    return f"{share.value:.3f} ({_span(share.interval, 3)}, of {share.whole:,})"


def _span(interval: Interval, digits: int) -> str:
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
