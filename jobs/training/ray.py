"""Train on the workers of a Ray cluster: the loop of `jobs.training.run` under Ray Train.

When a worker is lost, Ray stops all workers and starts them again, up to `FAILURES` times. They
resume from the checkpoint of the last epoch. This is a file of our own in the folder of the run,
which the driver and all workers can read. We do not use Ray's checkpoints, because Ray records a
reported checkpoint with a delay and could resume from an older one.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import (
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer

from scenesweep.jobs.training.run import CHECKPOINT, STORE, TrainingRun, explain_write_errors, fit
from scenesweep.model.errors import ModelError, ScenesweepError
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.training.train import State, Trainer, read_state
from scenesweep.pipeline.errors import OutputError, UsageError
from scenesweep.pipeline.labels import open_chips, store_chips

log = logging.getLogger(__name__)

CHIPS, FAILURES = "chips", 3
_NAME, _ERROR, _LOG = "run", "error.json", "worker.log"
_POLL_S = 2.0


def train_on_ray(
    run: TrainingRun,
    training: LabelledChips,
    validation: LabelledChips,
    *,
    workers: int,
    after_epoch: Callable[[Trainer], None] | None = None,
) -> State:
    """Train on `workers` workers of the connected cluster, and return the last state.

    If the folder has a checkpoint of an interrupted run, training resumes from it. `after_epoch`
    is called on every worker after the checkpoint of an epoch is saved.

    Raises:
        UsageError: when the cluster has fewer GPUs than workers, or no GPUs and fewer CPUs.
        OutputError: when the folder cannot be written.
        ModelError: when training fails.
    """
    scaling = _scaling(workers)
    run = replace(
        run, folder=run.folder.resolve(), initial=run.initial.resolve() if run.initial else None
    )
    store_chips(run.folder / CHIPS / "training", training)
    store_chips(run.folder / CHIPS / "validation", validation)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"run": run, "threads": _threads(workers), "after_epoch": after_epoch},
        scaling_config=scaling,
        run_config=RunConfig(
            name=_NAME,
            storage_path=str(run.folder / STORE),
            failure_config=FailureConfig(max_failures=FAILURES),
        ),
    )
    with _worker_log_shown(run):
        return _last_state(trainer, run)


def _last_state(trainer: TorchTrainer, run: TrainingRun) -> State:
    error = run.folder / _ERROR
    error.unlink(missing_ok=True)
    try:
        trainer.fit()
    except TrainingFailedError as failure:
        log.error("%s", failure)
        raise ModelError(
            f"training failed, also after {FAILURES} restarts; the log above has the reason"
        ) from failure
    if error.exists():
        saved = json.loads(error.read_text(encoding="utf-8"))
        raise OutputError(saved["text"]) if saved["output"] else ModelError(saved["text"])
    state = _last_checkpoint(run)
    if state is None:
        raise ModelError("training on Ray ended without a checkpoint; run it again")
    return state


def _work(config: dict[str, Any]) -> None:
    """Run one worker. An error that the user can fix ends the run, because a retry fails again."""
    run: TrainingRun = config["run"]
    torch.set_num_threads(config["threads"])
    after_epoch = config["after_epoch"] or (lambda _: None)

    def save(trainer: Trainer) -> None:
        _report(trainer, run)
        after_epoch(trainer)

    try:
        training = open_chips(run.folder / CHIPS / "training")
        validation = open_chips(run.folder / CHIPS / "validation")
        with explain_write_errors(run), _logged(run):
            fit(run, training, validation, state=_last_checkpoint(run), save=save)
    except ScenesweepError as error:
        saved = {"text": str(error), "output": isinstance(error, OutputError)}
        (run.folder / _ERROR).write_text(json.dumps(saved), encoding="utf-8")


def _last_checkpoint(run: TrainingRun) -> State | None:
    path = run.folder / CHECKPOINT
    return read_state(path) if path.exists() else None


def _report(trainer: Trainer, run: TrainingRun) -> None:
    """Save the checkpoint and report the epoch to Ray, which waits for all workers here."""
    epoch = trainer.history[-1]
    if trainer.rank == 0:
        trainer.save(run.folder / CHECKPOINT)
    ray.train.report({"epoch": epoch.number, "metric": epoch.metric, **epoch.losses})


def _scaling(workers: int) -> ScalingConfig:
    """Give each worker one GPU, or, without GPUs, a share of the CPUs."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus and gpus < workers:
        raise UsageError(f"--workers {workers}: expected at most one for each of {gpus} GPUs")
    cpus = int(ray.cluster_resources().get("CPU", 1))
    if not gpus and cpus < workers:
        raise UsageError(f"--workers {workers}: expected at most one for each of {cpus} CPUs")
    return ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker={"GPU": 1} if gpus else {"CPU": 1},
    )


def _threads(workers: int) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)


@contextmanager
def _logged(run: TrainingRun) -> Iterator[None]:
    """Write the log of the training loop to a file, which `_worker_log_shown` reads."""
    handler = logging.FileHandler(run.folder / _LOG, encoding="utf-8")
    logger = logging.getLogger("scenesweep.jobs.training.run")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def _worker_log_shown(run: TrainingRun) -> Iterator[None]:
    """Show the log lines of the first worker in our own log during the block."""
    ended = threading.Event()
    path = run.folder / _LOG
    shown = len(_lines(path))

    def follow() -> None:
        nonlocal shown
        while True:
            last = ended.wait(_POLL_S)
            lines = _lines(path)
            for line in lines[shown:]:
                log.info("%s", line)
            shown = len(lines)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _lines(path: Path) -> list[str]:
    """Return the complete lines of a file, if there is one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split("\n")[:-1]
