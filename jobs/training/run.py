"""A training run on one worker: its inputs, its files, and how it reports progress."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from scenesweep.jobs.shared.progress import Bars, shown_bars
from scenesweep.model.card import ModelCard
from scenesweep.model.errors import needs_extra
from scenesweep.model.evaluate import Comparison, Counts, Rule, compare_chips, find_matches
from scenesweep.model.files.checkpoint import read_weights
from scenesweep.model.inference.detector import Detector, pick_device, use_process
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.networks.network import build
from scenesweep.model.settings import DetectorSettings, Precision, Recipe
from scenesweep.model.training.batches import rank_and_world, sum_over_workers
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
    """The inputs of a worker, except the chips.

    All workers can read and write `folder`. `rule` says when a prediction on a validation chip
    matches an object; its radius is in pixels.
    """

    card: ModelCard
    recipe: Recipe
    folder: Path
    rule: Rule
    initial: Path | None = None


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The chips of a run, and a report on their labels for each use (training, validation)."""

    training: LabelledChips
    validation: LabelledChips
    reports: dict[str, LabelReport]

    def lines(self) -> list[str]:
        """Return lines of text about the labels."""
        return [
            f"{use}: {line}" for use, report in self.reports.items() for line in report.describe()
        ]


@dataclass(frozen=True, slots=True)
class Validator:
    """Evaluates weights of a card's network on validation chips.

    `precision` is that of the recipe: `float32` gives the same figures on CPUs and GPUs, while
    `auto` is bfloat16 where the processor computes in it, as in `scenesweep detect`.
    """

    card: ModelCard
    chips: LabelledChips
    rule: Rule
    precision: Precision = "auto"

    def __call__(self, weights: dict[str, Tensor]) -> float:
        """Return F at the best threshold, the metric by which the best epoch is chosen.

        The workers divide the chips among them and add up their counts, which are whole numbers.
        So F is the same on each, and for any number of workers.
        """
        rank, world = rank_and_world()
        comparisons = replace(self, chips=self.chips.every(world, start=rank)).detect(weights)
        return _add_workers(find_matches(comparisons, self.rule).count()).curve().best().f_score

    def detect(self, weights: dict[str, Tensor]) -> list[Comparison]:
        """Run the network on all chips, with a score threshold lower than any that is used."""
        network = build(self.card)
        network.load_state_dict(weights)
        ours = self.card.architecture.kind == "retinanet"  # torchvision's decode in float32 only
        settings = DetectorSettings(
            threads=torch.get_num_threads(), precision=self.precision if ours else "auto"
        )
        use_process(settings)
        detector = Detector(
            network,
            self.card,
            settings,
            inference=self.card.inference.model_copy(update={"score_threshold": _LOWEST_SCORE}),
        )
        return compare_chips(detector, self.chips)


def _add_workers(counts: Counts) -> Counts:
    """Add up the counts of all workers, as one unit."""
    columns = np.concatenate(
        [counts.matched.sum(axis=0), counts.predicted.sum(axis=0), [counts.true.sum()]]
    )
    total = sum_over_workers(torch.from_numpy(columns).to(pick_device("auto"))).cpu().numpy()
    matched, predicted = np.split(total[:-1], 2)
    return Counts(counts.threshold, matched[None], predicted[None], total[-1:])


@contextmanager
def explain_write_errors(run: TrainingRun) -> Iterator[None]:
    """Turn a failed write into an error that says which checkpoint remains and how to resume.

    Raises:
        OutputError: when the disk is full, a quota is reached, or a permission is missing.
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
    command, saved = "run the same command again", "no epoch was saved"
    if path.exists():
        done = len(read_state(path)["history"])
        saved = f"the checkpoint {path} has {done} of {run.recipe.epochs} epochs"
    if traces_of_run(run.folder):
        command += " with --resume"
    return OutputError(
        f"{run.folder}: cannot be written: {reason}; {saved}. Free some space or give the "
        f"permission, then {command}"
    )


def traces_of_run(folder: Path) -> list[str]:
    """Return the names of files that an earlier run left in a folder; empty if there was none."""
    return [name for name in (CHECKPOINT, STORE, fold_name(1)) if (folder / name).exists()]


def fold_name(number: int) -> str:
    """Return the name of the files of a fold of cross-validation; the first one is 1."""
    return f"fold-{number}"


def fit(
    run: TrainingRun,
    training: LabelledChips,
    validation: LabelledChips,
    *,
    state: State | None,
    save: Callable[[Trainer], None],
) -> Trainer:
    """Train from the beginning, or resume from `state`. `save` is called after each epoch.

    Raises:
        ModelError: when the losses are no longer finite, or the state belongs to another run.
    """
    initial = read_weights(run.initial) if run.initial and state is None else None
    validator = Validator(run.card, validation, run.rule, run.recipe.precision)
    trainer = Trainer(run.card, training, run.recipe, validate=validator, initial=initial)
    if state is not None:
        trainer.resume(state)
    if trainer.rank:
        for _ in trainer.epochs():
            save(trainer)
        return trainer
    _log_start(run, trainer)
    with TrainingLog(run, done=len(trainer.history)) as training_log:
        for _ in trainer.epochs(training_log.progress):
            save(trainer)
            training_log.note(trainer.history)
    return trainer


class TrainingLog:
    """Records a run: log lines, LOG with one line per epoch, TensorBoard events.

    Within an epoch, a terminal shows a progress bar. Without a terminal, the log gets a line at
    most every `LINE_EVERY_S` seconds.
    """

    def __init__(self, run: TrainingRun, *, done: int) -> None:
        self._run, self._done = run, done
        self._bars: Bars | None = None
        self._epoch_started = self._last_line = time.monotonic()
        self._epoch_s: float | None = None
        """Seconds of the last epoch, validation included."""

    def __enter__(self) -> Self:
        with needs_extra("train"):
            from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._board = SummaryWriter(
            str(self._run.folder / BOARD), purge_step=self._done + 1 if self._done else None
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
        """Show the progress of the epoch."""
        now = time.monotonic()
        if self._bars is not None:
            text = f"% of epoch {progress.number}, {_losses(progress.losses)}"
            self._bars.update(self._bar, completed=round(100 * progress.share), said=text)
        elif now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            epochs, spent = self._run.recipe.epochs, now - self._epoch_started
            left = seconds_left(progress, epochs, spent=spent, epoch_s=self._epoch_s)
            log.info("%s", progress_line(progress, epochs, left=left))

    def note(self, history: list[Epoch]) -> None:
        """Record the last epoch of a run."""
        epoch = history[-1]
        self._epoch_started, self._epoch_s = time.monotonic(), epoch.seconds
        for name, value in _scalars(epoch).items():
            self._board.add_scalar(name, value, epoch.number)
        self._board.flush()
        path = self._run.folder / LOG
        lines = [json.dumps(asdict(past)) for past in history]
        with atomic_write(path, path.parent) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        log.info("%s", epoch_line(epoch, self._run.recipe.epochs))


def seconds_left(
    progress: EpochProgress, epochs: int, *, spent: float, epoch_s: float | None
) -> float:
    """Estimate the seconds that a run of `epochs` still needs.

    `spent` is the time since this epoch started. `epoch_s` is that of the epoch before, validation
    included; None in the first epoch.
    """
    this_epoch = spent / progress.share
    return this_epoch - spent + (epochs - progress.number) * (epoch_s or this_epoch)


def progress_line(progress: EpochProgress, epochs: int, *, left: float) -> str:
    """Return one line about the progress of an epoch."""
    return (
        f"epoch {progress.number} of {epochs}: {progress.share:.0%} done, "
        f"{_losses(progress.losses)}, about {timedelta(seconds=round(left))} left of the run"
    )


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """Return one line with the results of an epoch."""
    validated = "" if epoch.metric is None else f"validation F {epoch.metric:.4f}, "
    return (
        f"epoch {epoch.number} of {epochs}: {_losses(epoch.losses)}, "
        f"{validated}rate {epoch.learning_rate:.2e}, "
        f"{epoch.seconds:.0f} s, {epoch.chips_per_second:.1f} chips/s"
    )


def _losses(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in losses.items())


def _scalars(epoch: Epoch) -> dict[str, float]:
    validated = {} if epoch.metric is None else {"validation/f": epoch.metric}
    losses = {f"loss/{name}": value for name, value in epoch.losses.items()}
    return (
        losses
        | validated
        | {
            "learning_rate": epoch.learning_rate,
            "chips_per_second": epoch.chips_per_second,
        }
    )


def _log_start(run: TrainingRun, trainer: Trainer) -> None:
    if trainer.history:
        log.info("resuming after epoch %d", len(trainer.history))
    elif run.initial:
        left = trainer.learner.left_random
        total = len(trainer.learner.network.state_dict())
        shown = ", ".join(left[:6]) + (", …" if len(left) > 6 else "")
        log.info(
            "%s: %d of %d tensors start with random values: %s",
            run.initial,
            len(left),
            total,
            shown,
        )
