"""Cross-validation: train once for each group of rasters, and measure on those left out.

Use it if there are few rasters. All of them are used to train the model that is written, and the
figures and the score threshold come from models that never saw the raster they are measured on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenesweep.jobs.training.finish import Trained
from scenesweep.jobs.training.run import CHECKPOINT, TrainingRun, Validator, fit, fold_name
from scenesweep.model.evaluate import Comparison, find_matches
from scenesweep.model.files.checkpoint import save_model
from scenesweep.model.files.model_file import SUFFIX
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.training.train import State, read_state
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.storage.commit import atomic_write

log = logging.getLogger(__name__)

_OFFSET = re.compile(r"@\d+,\d+$")


@dataclass(frozen=True, slots=True)
class Fold:
    """The rasters that one run leaves out, and which chips are theirs, (N,) bool."""

    rasters: tuple[str, ...]
    held_out: NDArray[np.bool_]


def make_folds(chips: LabelledChips, count: int) -> list[Fold]:
    """Divide the rasters of chips into folds with about equal numbers of objects.

    The raster with the most objects goes first, to the fold with the fewest so far. The result
    does not depend on the order of the rasters.

    Raises:
        UsageError: when there are fewer rasters than folds.
    """
    raster = np.array([_OFFSET.sub("", name) for name in chips.names])
    names, of_chip = np.unique(raster, return_inverse=True)
    if not 2 <= count <= len(names):
        raise UsageError(f"--folds: expected 2 to {len(names)}, the number of rasters, got {count}")
    objects = np.bincount(of_chip, weights=[len(boxes) for boxes in chips.boxes])
    members: list[list[int]] = [[] for _ in range(count)]
    for number in np.lexsort([np.arange(len(names)), -objects]).tolist():
        fewest = min(members, key=lambda own: (sum(objects[own]), len(own)))
        fewest.append(number)
    return [Fold(tuple(names[sorted(own)].tolist()), np.isin(of_chip, own)) for own in members]


def train_in_folds(work: TrainingRun, chips: LabelledChips, folds: Sequence[Fold]) -> Trained:
    """Train without each fold, then on all chips. The recipe keeps the last epoch.

    The comparisons are those of the models without a fold on its chips, in the order of `chips`.
    Their files are `fold-N.safetensors` in the folder of the run, with the names of the rasters
    left out in `fold-N.txt`. An interrupted run resumes from the checkpoint of each training.
    """
    of_chip: dict[int, Comparison] = {}
    for number, fold in enumerate(folds, start=1):
        log.info("fold %d of %d leaves out %s", number, len(folds), ", ".join(fold.rasters))
        held = np.flatnonzero(fold.held_out)
        parts = chips.take(np.flatnonzero(~fold.held_out)), chips.take(held)
        of_chip |= zip(held.tolist(), _train_fold(work, number, fold, parts), strict=True)
    log.info("the model to write: all %d folds", len(folds))
    state = _train(work, chips, chips)
    return Trained(state["best"], state["history"], [of_chip[i] for i in range(len(chips))])


def fold_figures(
    work: TrainingRun, folds: Sequence[Fold], comparisons: Sequence[Comparison]
) -> list[dict[str, Any]]:
    """Return the figures of each fold as JSON, all at the threshold with the best F over all."""
    threshold = find_matches(comparisons, work.rule).count().curve().best().threshold
    found = []
    for fold in folds:
        own = [comparisons[chip] for chip in np.flatnonzero(fold.held_out).tolist()]
        scores = find_matches(own, work.rule).count().curve().at(threshold)
        found.append(
            {
                "rasters": list(fold.rasters),
                "objects": scores.true_positives + scores.false_negatives,
                "precision": round(scores.precision, 4),
                "recall": round(scores.recall, 4),
                "f_score": round(scores.f_score, 4),
            }
        )
    return found


def _train_fold(
    work: TrainingRun, number: int, fold: Fold, parts: tuple[LabelledChips, LabelledChips]
) -> list[Comparison]:
    """Train on the first part, write the model, and detect on the second."""
    training, held_out = parts
    name = fold_name(number)
    state = _train(replace(work, folder=work.folder / name), training, held_out)
    save_model(work.folder / f"{name}{SUFFIX}", work.card, state["best"])
    _write_lines(work.folder / f"{name}.txt", fold.rasters)
    return Validator(work.card, held_out, work.rule, work.recipe.precision).detect(state["best"])


def _train(work: TrainingRun, training: LabelledChips, validation: LabelledChips) -> State:
    work.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = work.folder / CHECKPOINT
    state = read_state(checkpoint) if checkpoint.exists() else None
    trainer = fit(
        work, training, validation, state=state, save=lambda trainer: trainer.save(checkpoint)
    )
    return trainer.state()


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_write(path, path.parent) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
