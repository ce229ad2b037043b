"""A training run on one worker: what it is told, what it writes, how it shows its progress."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from scenesweep.jobs.shared.progress import Bars, shown_bars
from scenesweep.model.card import ModelCard
from scenesweep.model.errors import needs_extra
from scenesweep.model.evaluate import Rule, Sample, find_matches, samples_of
from scenesweep.model.files.checkpoint import read_weights
from scenesweep.model.inference.detector import Detector, use_process
from scenesweep.model.networks.network import build
from scenesweep.model.samples import Samples
from scenesweep.model.settings import DetectorSettings, Recipe
from scenesweep.model.training.train import Epoch, EpochProgress, State, Trainer, read_state
from scenesweep.pipeline.errors import UNWRITABLE, OutputError
from scenesweep.pipeline.labels import LabelReport
from scenesweep.pipeline.storage.commit import atomic_write

log = logging.getLogger(__name__)

CHECKPOINT, LOG, BOARD, STORE = "checkpoint.pt", "log.jsonl", "tensorboard", "ray"
_UNWRITABLE = (*UNWRITABLE, errno.EACCES, errno.EPERM)
LINE_EVERY_S = 30.0
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


@contextmanager
def saving(run: TrainingRun) -> Iterator[None]:
    """Say what remains of a run, and how to go on, when its files cannot be written.

    Raises:
        OutputError: for a disk that is full, a quota, or a missing permission.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise _unwritable(run, error) from error
    except OutputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise _unwritable(run, error.__cause__) from error


def _unwritable(run: TrainingRun, error: OSError) -> OutputError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    path = run.folder / CHECKPOINT
    again, kept = "run the same command again", "no epoch was saved"
    if path.exists():
        done = len(read_state(path)["history"])
        kept = f"{path} holds {done} of {run.recipe.epochs} epochs"
    if begun(run.folder):
        again += " with --resume"
    return OutputError(
        f"{run.folder}: cannot be written: {reason}; {kept}. Free some space or give the "
        f"permission, then {again}"
    )


def begun(folder: Path) -> list[str]:
    """Return the names of what a run that was begun in a folder has left there."""
    return [name for name in (CHECKPOINT, STORE) if (folder / name).exists()]


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
    with TrainingLog(run, begun=len(trainer.history)) as diary:
        for _ in trainer.epochs(diary.progress):
            keep(trainer)
            diary.note(trainer.history)
    return trainer


class TrainingLog:
    """Records a run: log lines, LOG with one line per epoch, TensorBoard events.

    Within an epoch, a bar on a terminal shows how far it is; without a terminal, a line in the
    log at most every `LINE_EVERY_S` seconds.
    """

    def __init__(self, run: TrainingRun, *, begun: int) -> None:
        self._run, self._begun = run, begun
        self._bars: Bars | None = None
        self._began = self._said_at = time.monotonic()
        self._epoch_s: float | None = None
        """Seconds of the last epoch, judging included."""

    def __enter__(self) -> Self:
        with needs_extra("train"):
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

    def progress(self, progress: EpochProgress) -> None:
        """Show how far the epoch is."""
        now = time.monotonic()
        if self._bars is not None:
            said = f"% of epoch {progress.number}, {_losses(progress.losses)}"
            self._bars.update(self._bar, completed=round(100 * progress.share), said=said)
        elif now - self._said_at >= LINE_EVERY_S:
            self._said_at = now
            epochs, spent = self._run.recipe.epochs, now - self._began
            left = seconds_left(progress, epochs, spent=spent, epoch_s=self._epoch_s)
            log.info("%s", progress_line(progress, epochs, left=left))

    def note(self, history: list[Epoch]) -> None:
        """Record the last epoch of a run."""
        epoch = history[-1]
        self._began, self._epoch_s = time.monotonic(), epoch.seconds
        for name, value in _scalars(epoch).items():
            self._board.add_scalar(name, value, epoch.number)
        self._board.flush()
        path = self._run.folder / LOG
        lines = [json.dumps(asdict(one)) for one in history]
        with atomic_write(path, path.parent) as aside:
            aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        log.info("%s", epoch_line(epoch, self._run.recipe.epochs))


def seconds_left(
    progress: EpochProgress, epochs: int, *, spent: float, epoch_s: float | None
) -> float:
    """Estimate the seconds that a run of `epochs` still needs.

    `spent` are the seconds since this epoch began; `epoch_s` those of the epoch before, which
    include judging it, where there was one.
    """
    whole = spent / progress.share
    return whole - spent + (epochs - progress.number) * (epoch_s or whole)


def progress_line(progress: EpochProgress, epochs: int, *, left: float) -> str:
    """Say on one line how far an epoch is."""
    return (
        f"epoch {progress.number} of {epochs}: {progress.share:.0%} done, "
        f"{_losses(progress.losses)}, about {timedelta(seconds=round(left))} left of the run"
    )


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """Say on one line what an epoch came to."""
    return (
        f"epoch {epoch.number} of {epochs}: {_losses(epoch.losses)}, "
        f"validation F {epoch.metric:.4f}, rate {epoch.learning_rate:.2e}, "
        f"{epoch.seconds:.0f} s, {epoch.chips_per_second:.1f} chips/s"
    )


def _losses(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in losses.items())


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
