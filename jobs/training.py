"""A training run on one worker: what it is told, what it writes, how it shows its progress."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from jobs.progress import Bars, shown_bars
from model.card import ModelCard
from model.checkpoint import read_weights
from model.detector import Detector, use_process
from model.evaluate import Rule, Sample, find_matches, samples_of
from model.network import build
from model.samples import Samples
from model.settings import DetectorSettings, Recipe
from model.train import Epoch, State, Trainer
from pipeline.commit import written_aside
from pipeline.labels import LabelReport

log = logging.getLogger(__name__)

CHECKPOINT, LOG, BOARD = "checkpoint.pt", "log.jsonl", "tensorboard"
_LOWEST_SCORE = 0.05


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Everything that a worker is told, but the chips.

    `folder` is where all workers can read and write. `rule` says when a prediction is right on
    validation chips, in pixels.
    """

    card: ModelCard
    recipe: Recipe
    folder: Path
    rule: Rule
    initial: Path | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """The chips of a run, and what became of the labels they come from, by use."""

    training: Samples
    validation: Samples
    reports: dict[str, LabelReport]

    def lines(self) -> list[str]:
        """Say what became of the labels."""
        return [
            f"{use}: {line}" for use, report in self.reports.items() for line in report.describe()
        ]


@dataclass(frozen=True, slots=True)
class Examiner:
    """Judges weights of a card's network on validation chips."""

    card: ModelCard
    samples: Samples
    rule: Rule

    def __call__(self, weights: dict[str, Tensor]) -> float:
        """Return F at the best threshold: the metric that chooses an epoch."""
        return find_matches(self.detect(weights), self.rule).count().curve().best().f_score

    def detect(self, weights: dict[str, Tensor]) -> list[Sample]:
        """Run the network on all chips, down to scores far below any threshold in use."""
        network = build(self.card)
        network.load_state_dict(weights)
        settings = DetectorSettings(threads=torch.get_num_threads())
        use_process(settings)
        detector = Detector(
            network,
            self.card,
            settings,
            inference=self.card.inference.model_copy(update={"score_threshold": _LOWEST_SCORE}),
        )
        return samples_of(detector, self.samples)


def fit(
    run: TrainingRun,
    training: Samples,
    validation: Samples,
    *,
    state: State | None,
    keep: Callable[[Trainer], None],
) -> Trainer:
    """Train from the beginning or from `state`; `keep` is called after each epoch.

    Raises:
        ModelError: when the losses are no longer numbers, or the state is another run's.
    """
    initial = read_weights(run.initial) if run.initial and state is None else None
    examiner = Examiner(run.card, validation, run.rule)
    trainer = Trainer(run.card, training, run.recipe, judge=examiner, initial=initial)
    if state is not None:
        trainer.resume(state)
    if trainer.rank:
        for _ in trainer.epochs():
            keep(trainer)
        return trainer
    _say_beginning(run, trainer)
    with Diary(run, begun=len(trainer.history)) as diary:
        for _ in trainer.epochs(diary.progress):
            keep(trainer)
            diary.note(trainer.history)
    return trainer


class Diary:
    """Writes down what a run does: log lines, LOG with a line an epoch, TensorBoard events.

    On a terminal a bar shows how far the epoch is.
    """

    def __init__(self, run: TrainingRun, *, begun: int) -> None:
        self._run, self._begun = run, begun
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._board = SummaryWriter(
            str(self._run.folder / BOARD), purge_step=self._begun + 1 if self._begun else None
        )
        self._open = ExitStack()
        if sys.stderr.isatty():
            self._bars = self._open.enter_context(shown_bars(sys.stderr))
            self._bar = self._bars.add_task("epoch", total=100, said="% of it")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
        self._board.close()

    def progress(self, share: float) -> None:
        """Show which share of the epoch is done."""
        if self._bars is not None:
            self._bars.update(self._bar, completed=round(100 * share))

    def note(self, history: list[Epoch]) -> None:
        """Write down the last epoch of a run."""
        epoch = history[-1]
        for name, value in _scalars(epoch).items():
            self._board.add_scalar(name, value, epoch.number)
        self._board.flush()
        path = self._run.folder / LOG
        lines = [json.dumps(asdict(one)) for one in history]
        with written_aside(path, path.parent) as aside:
            aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        log.info("%s", epoch_line(epoch, self._run.recipe.epochs))


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """Say on one line what an epoch came to."""
    losses = ", ".join(f"{name} {value:.4f}" for name, value in epoch.losses.items())
    return (
        f"epoch {epoch.number} of {epochs}: {losses}, validation F {epoch.metric:.4f}, "
        f"rate {epoch.learning_rate:.2e}, {epoch.seconds:.0f} s, "
        f"{epoch.chips_per_second:.1f} chips/s"
    )


def _scalars(epoch: Epoch) -> dict[str, float]:
    return {f"loss/{name}": value for name, value in epoch.losses.items()} | {
        "validation/f": epoch.metric,
        "learning_rate": epoch.learning_rate,
        "chips_per_second": epoch.chips_per_second,
    }


def _say_beginning(run: TrainingRun, trainer: Trainer) -> None:
    if trainer.history:
        log.info("going on after epoch %d", len(trainer.history))
    elif run.initial:
        left = trainer.learner.left_random
        total = len(trainer.learner.network.state_dict())
        shown = ", ".join(left[:6]) + (", …" if len(left) > 6 else "")
        log.info("%s: %d of %d tensors begin at random: %s", run.initial, len(left), total, shown)
