"""The HTML report of a training run: curves, and chips with predictions and true boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray

from scenesweep.model.card import ModelCard
from scenesweep.model.evaluate import Comparison, Rule, ThresholdCurve, pairs_at
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.training.train import Epoch
from scenesweep.pipeline.storage.commit import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RIGHT, _FALSE, _MISSED = "#00e05a", "#ff3b30", "#ffd60a"
_WORST, _RANDOM = 6, 3
_COLUMNS = 3
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100% } td { padding-right: 1.5rem; vertical-align: top }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto }
</style></head><body>
<h1>{{ title }}</h1>
<table>{% for name, value in figures %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
{% for heading, picture in pictures %}<h2>{{ heading }}</h2>
<img alt="{{ heading }}" src="data:image/png;base64,{{ picture }}">
{% endfor %}
<h2>Labels</h2><pre>{{ labels }}</pre>
<h2>Card</h2><pre>{{ card }}</pre>
</body></html>
"""


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """The results of a run.

    `validation` has the chips, `comparisons` their predictions and true boxes, `threshold` is the
    score threshold in use, and `labels` are lines about the labels.
    """

    card: ModelCard
    history: Sequence[Epoch]
    validation: LabelledChips
    comparisons: Sequence[Comparison]
    rule: Rule
    curve: ThresholdCurve
    threshold: float
    labels: Sequence[str]


def write_training_report(
    path: Path, summary: TrainingSummary, figures: Sequence[tuple[str, str]]
) -> None:
    """Write one HTML file that contains everything. `figures` are the first rows: name, value."""
    pictures = [
        ("Losses, learning rate, validation", _png(draw_history(summary.history))),
        ("Precision and recall on the validation chips", _png(draw_curve(summary))),
        (
            "Validation chips: those with most errors, then some at random "
            "(left without boxes; right: green correct, red false, yellow missed)",
            _png(draw_chips(summary)),
        ),
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        title=f"Training of {summary.card.name}",
        figures=figures,
        pictures=pictures,
        labels="\n".join(summary.labels),
        card=summary.card.model_dump_json(indent=2, exclude={"training"}),
    )
    with atomic_write(path, path.parent) as temporary:
        temporary.write_text(text, encoding="utf-8")


def draw_history(history: Sequence[Epoch]) -> Figure:
    """Draw losses, learning rate and validation metric over epochs."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, middle, right) = _panels(1, 3)
    for axis in (left, middle, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    numbers = [epoch.number for epoch in history]
    for name in history[0].losses:
        left.plot(numbers, [epoch.losses[name] for epoch in history], ".-", label=name)
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    left.legend()
    middle.plot(numbers, [epoch.learning_rate for epoch in history], ".-")
    middle.set(xlabel="epoch", ylabel="learning rate at the end of the epoch")
    validated = [(e.number, e.metric) for e in history if e.metric is not None]
    numbers, metrics = [n for n, _ in validated], [metric for _, metric in validated]
    right.plot(numbers, metrics, ".-")
    best = int(np.argmax(metrics))
    right.plot(numbers[best], metrics[best], "o", label=f"kept: epoch {numbers[best]}")
    right.set(xlabel="epoch", ylabel="validation F", ylim=(0, 1))
    right.legend()
    return figure


def draw_curve(summary: TrainingSummary) -> Figure:
    """Draw precision over recall, and precision, recall and F over the threshold."""
    figure, (left, right) = _panels(1, 2)
    curve = summary.curve
    defined = curve.tp + curve.fp > 0  # without predictions there is no precision
    left.plot(curve.recall[defined], curve.precision[defined], ".-")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    for name in ("precision", "recall", "f"):
        right.plot(
            curve.threshold, getattr(curve, name), label=name.upper() if name == "f" else name
        )
    right.axvline(summary.threshold, color="grey", linestyle=":", label="in use")
    right.set(xlabel="score threshold", ylim=(0, 1.02))
    right.legend()
    return figure


def draw_chips(summary: TrainingSummary) -> Figure:
    """Draw validation chips twice: without boxes, and with predictions and missed objects."""
    chosen = choose_chips(summary)
    rows = -(-len(chosen) // _COLUMNS)
    figure, axes = _panels(rows, 2 * _COLUMNS, side=3.2)
    for axis in axes:
        axis.axis("off")
    for number, chip in enumerate(chosen):
        plain, marked = axes[2 * number], axes[2 * number + 1]
        picture = as_picture(summary.validation.chips[chip], summary.card)
        plain.imshow(picture)
        marked.imshow(picture)
        _mark(marked, summary.comparisons[chip], summary)
        plain.set_title(summary.comparisons[chip].name, fontsize=7)
    return figure


def choose_chips(summary: TrainingSummary) -> list[int]:
    """Return the chips with the most errors at the threshold in use, then some random ones."""
    errors = []
    for comparison in summary.comparisons:
        predicted, _ = pairs_at(comparison, summary.rule, summary.threshold)
        count = int((comparison.predicted.score >= np.float32(summary.threshold)).sum())
        errors.append(count + len(comparison.label) - 2 * len(predicted))
    worst = np.argsort(-np.array(errors), kind="stable")[:_WORST].tolist()
    others = np.setdiff1d(np.arange(len(errors)), worst)
    drawn = np.random.default_rng(0).permutation(others)[:_RANDOM]
    return worst + sorted(drawn.tolist())


def as_picture(chip: NDArray[np.uint8], card: ModelCard) -> NDArray[np.uint8]:
    """Return (S, S, 3) uint8: red, green and blue of a chip, or its first bands, stretched."""
    names = [str(band).lower() for band in card.bands]
    colours = [names.index(c) for c in ("red", "green", "blue") if c in names]
    if len(colours) < 3:
        colours = [0, 1, 2] if len(chip) >= 3 else [0, 0, 0]
    low, high = np.percentile(chip[colours], [1, 99])
    bright = (chip[colours].astype(np.float32) - low) / max(1.0, high - low)
    return (bright.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def _mark(axis: Axes, comparison: Comparison, summary: TrainingSummary) -> None:
    """Draw correct and false predictions, and missed objects."""
    from matplotlib.patches import Rectangle

    predicted, true = pairs_at(comparison, summary.rule, summary.threshold)
    reaching = np.flatnonzero(comparison.predicted.score >= np.float32(summary.threshold))
    groups = (
        (comparison.predicted.xyxy[predicted], _RIGHT),
        (comparison.predicted.xyxy[np.setdiff1d(reaching, predicted)], _FALSE),
        (np.delete(comparison.xyxy, true, axis=0), _MISSED),
    )
    for boxes, colour in groups:
        for x0, y0, x1, y1 in boxes - 0.5:  # whole numbers are pixel centres in matplotlib
            frame: Any = {"fill": False, "edgecolor": colour, "linewidth": 0.8}
            axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **frame))


def _panels(rows: int, columns: int, *, side: float = 4.0) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels without pyplot, which has global state and opens windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * side, rows * side), layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns, squeeze=False)))


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return base64.b64encode(buffer.getvalue()).decode()
