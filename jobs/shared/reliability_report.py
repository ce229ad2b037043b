"""How well calibrated probabilities are, as lines of text with a diagram, and as JSON."""

from __future__ import annotations

from typing import Any

from scenesweep.model.evaluate.calibration import CalibrationScores, Reliability

_BAR = 40  # characters for a share of 1


def calibration_document(scores: CalibrationScores) -> dict[str, Any]:
    """Return the figures of a calibration as JSON; `folds` is null without a cross-validation."""
    return {
        "folds": scores.folds or None,
        "published": _reliability_document(scores.published),
        "every": _reliability_document(scores.every),
    }


def calibration_lines(scores: CalibrationScores) -> list[str]:
    """Return the calibration error, and the reliability diagram of the published detections."""
    published = scores.published
    how = f"cross-validated over {scores.folds} groups of chips" if scores.folds else "of the card"
    total = int(published.detections.sum())
    if not total:
        return [f"calibration {how}: no detections"]
    every = int(scores.every.detections.sum())
    return [
        f"calibration {how}: {total:,} detections at the threshold and above, "
        f"{_sum(published, published.correct):,.0f} correct, "
        f"{_sum(published, published.probability):,.0f} expected",
        f"expected calibration error {published.error:.3f} (exactly right probabilities would have "
        f"{published.by_chance:.3f} on so many detections); {scores.every.error:.3f} over all "
        f"{every:,} detections",
        *_diagram(published),
    ]


def _diagram(bins: Reliability) -> list[str]:
    """Draw the share of correct detections of each bin as a bar, the mean probability as |."""
    text = ["probability    detections  mean   correct"]
    for number, count in enumerate(bins.detections.tolist()):
        if not count:
            continue
        low, high = bins.edges[number : number + 2]
        mean, correct = float(bins.probability[number]), float(bins.correct[number])
        bar = ("#" * round(correct * _BAR)).ljust(_BAR)
        mark = min(round(mean * _BAR), _BAR - 1)
        bar = f"{bar[:mark]}|{bar[mark + 1 :]}".rstrip()
        text.append(f"{low:.2f} to {high:.2f}   {count:>10,}  {mean:.3f}  {correct:.3f}    {bar}")
    return text


def _sum(bins: Reliability, share: Any) -> float:
    return float((share[bins.detections > 0] * bins.detections[bins.detections > 0]).sum())


def _reliability_document(bins: Reliability) -> dict[str, Any]:
    """Return the bins that have detections. Without any, the error is null."""
    rows = zip(bins.detections.tolist(), bins.probability, bins.correct, strict=True)
    return {
        "expected_calibration_error": None if not bins.detections.any() else bins.error,
        "by_chance": bins.by_chance,
        "bins": len(bins.detections),
        "detections": int(bins.detections.sum()),
        "filled_bins": [
            {
                "from": float(bins.edges[number]),
                "to": float(bins.edges[number + 1]),
                "detections": count,
                "mean_probability": float(mean),
                "correct": float(correct),
            }
            for number, (count, mean, correct) in enumerate(rows)
            if count
        ],
    }
