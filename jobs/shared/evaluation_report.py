"""A verdict in lines for people and as a document for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scenesweep.model.evaluate import AveragePrecision, Evaluation, Interval, Scores, figures
from scenesweep.pipeline.labels import LabelReport
from scenesweep.pipeline.results.accuracy import SeamScores, Share, Zone

_HEAD = ("score >=", "precision", "recall", "F", "right", "false", "missed", "RMSE")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with what it was reached on.

    `names` are those of the chips or scenes. `rule` says how objects were matched: `kind`, and
    `iou`, or `radius_m` and `px_m`, the metres in a unit of the distances. Chips have a `speed`
    in Mpx/s and those `capped` by the card's limits on detections, scenes have `seams`.
    """

    verdict: Evaluation
    names: tuple[str, ...]
    labels: LabelReport
    rule: dict[str, Any]
    speed: float | None = None
    capped: int = 0
    seams: SeamScores | None = None

    @property
    def whose(self) -> str:
        """Name the threshold in use: the card's, or the one that was published with."""
        return "card" if self.seams is None else "published"


def document(outcome: Outcome) -> dict[str, Any]:
    """Return everything as JSON. `rmse` is in units of `rule.px_m` metres."""
    wrong = {count.reason: list(count.examples) for count in outcome.labels.wrong}
    about: dict[str, Any] = {
        "rule": outcome.rule,
        "labels": {"counts": outcome.labels.counts(), "examples": wrong},
    }
    if outcome.speed is not None:
        about["megapixels_per_second"] = outcome.speed
        about["capped_chips"] = outcome.capped
    if outcome.seams is not None:
        about["seams"] = _seam_document(outcome.seams)
    return figures(outcome.verdict, outcome.names, own=outcome.whose) | about


def validation(outcome: Outcome) -> dict[str, Any]:
    """Return the few figures that go into a model card."""
    verdict, best = outcome.verdict, outcome.verdict.best
    derived = {"precision": best.precision, "recall": best.recall, "f_score": best.f_score}
    return {
        "rule": outcome.rule,
        "chips": len(outcome.names),
        "labels": outcome.labels.counts(),
        **asdict(best),
        **derived,
        "rmse": verdict.best_rmse,
        "best_threshold_95": asdict(verdict.resampled.best_threshold),
        "average_precision": None if verdict.average is None else asdict(verdict.average),
    }


def lines(outcome: Outcome) -> list[str]:
    """Say everything in lines for people."""
    own, verdict = outcome.verdict.own, outcome.verdict
    what = "chips" if outcome.seams is None else "scenes"
    said = outcome.labels.describe()
    said += [
        f"{what}: {len(outcome.names):,}, objects: {own.true_positives + own.false_negatives:,}, "
        f"matched {_rule(outcome.rule)}",
        *_table(_rows(outcome)),
        _interval_line(outcome),
        _count_line(outcome),
    ]
    if verdict.average is not None:
        said += _average_lines(verdict, verdict.average)
    if outcome.seams is not None:
        said += _scene_lines(outcome) + _seam_lines(outcome.seams)
    if outcome.speed is not None:
        said.append(f"speed: {outcome.speed:.2f} Mpx/s")
    if outcome.capped:
        said.append(
            f"{outcome.capped:,} chips reached a cap of the card's inference (topk_per_level, "
            "max_detections_per_chip): figures may be better without"
        )
    return said


def _rule(rule: dict[str, Any]) -> str:
    if rule["kind"] == "boxes":
        return f"by boxes, IoU >= {rule['iou']:g}"
    return f"by centres within {rule['radius_m']:g} m"


def _rows(outcome: Outcome) -> list[tuple[str, ...]]:
    verdict = outcome.verdict
    here = f"at the {outcome.whose} threshold"
    rows = [
        _row(here, verdict.own, _metres(outcome, verdict.own_rmse)),
        _row("at the best threshold", verdict.best, _metres(outcome, verdict.best_rmse)),
    ]
    if len(verdict.classes) > 1:
        rows += [_row(f"{c.name}, {here}", c.own, "") for c in verdict.classes]
        rows += [_row(f"{c.name}, at its best", c.best, "") for c in verdict.classes]
    return rows


def _metres(outcome: Outcome, rmse: float | None) -> str:
    return "" if rmse is None else f"{rmse * outcome.rule['px_m']:.2f} m"


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
    """Align the columns: the first to the left, the others to the right."""
    every = [("", *_HEAD), *rows]
    if not any(row[-1] for row in rows):
        every = [row[:-1] for row in every]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in every
    ]


def _interval_line(outcome: Outcome) -> str:
    drawn, places = outcome.verdict.resampled, outcome.verdict.places
    drawn_from = "chips" if outcome.seams is None else "blocks of ground"
    return (
        f"95 % intervals from {places:,} {drawn_from}: F at the {outcome.whose} threshold "
        f"{_span(drawn.f, 3)}, best threshold {_span(drawn.best_threshold, 2)}"
    )


def _count_line(outcome: Outcome) -> str:
    count, each = outcome.verdict.count, "chip" if outcome.seams is None else "scene"
    whole = "" if count.relative is None else f", {count.relative:+.1%} in all"
    return (
        f"count error at the {outcome.whose} threshold: {count.mean_absolute:.2f} a {each}, "
        f"{count.bias:+.2f} in the mean{whole}"
    )


def _average_lines(verdict: Evaluation, average: AveragePrecision) -> list[str]:
    named = {
        "AP": average.ap,
        "AP50": average.ap50,
        "AP75": average.ap75,
        "small": average.small,
        "medium": average.medium,
        "large": average.large,
    }
    said = ["COCO " + ", ".join(f"{name} {_figure(value)}" for name, value in named.items())]
    if len(verdict.classes) > 1:
        pairs = zip(verdict.classes, average.class_ap50, strict=True)
        said.append("AP50 of " + ", ".join(f"{c.name} {_figure(value)}" for c, value in pairs))
    return said


def _scene_lines(outcome: Outcome) -> list[str]:
    pairs = zip(outcome.names, outcome.verdict.count.samples, strict=True)
    return [
        f"{name}: {found:,} predicted, {true:,} true ({found - true:+,})"
        for name, (found, true) in pairs
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
