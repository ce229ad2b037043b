"""Train on the workers of a Ray cluster: the loop of `jobs.training.run` under Ray Train.

A worker that is lost takes the others with it; all begin again from the last epoch's
checkpoint, as often as `FAILURES` allows. The checkpoint is our own file in the folder of the
run, which the driver and all workers see: Ray hears of one that is reported to it only some
time later, and would begin before it.
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

from scenesweep.jobs.training.run import CHECKPOINT, STORE, TrainingRun, fit, saving
from scenesweep.model.errors import ModelError, ScenesweepError
from scenesweep.model.samples import Samples
from scenesweep.model.training.train import State, Trainer, read_state
from scenesweep.pipeline.errors import OutputError, UsageError
from scenesweep.pipeline.labels import open_samples, store_samples

log = logging.getLogger(__name__)

CHIPS, FAILURES = "chips", 3
_NAME, _ERROR, _LOG = "run", "error.json", "worker.log"
_LOOK_EVERY_S = 2.0


def train_on_ray(
    run: TrainingRun,
    training: Samples,
    validation: Samples,
    *,
    workers: int,
    after_epoch: Callable[[Trainer], None] | None = None,
) -> State:
    """Train on `workers` workers of the cluster in session, and return the last state.

    A run whose folder holds one that was interrupted goes on from there. `after_epoch` is called
    on every worker when an epoch's checkpoint is kept.

    Raises:
        UsageError: when the cluster has fewer GPUs, or without any fewer CPUs, than workers.
        OutputError: when its folder cannot be written.
        ModelError: when training fails.
    """
    scaling = _scaling(workers)
    run = replace(run, folder=run.folder.resolve(), initial=_resolved(run.initial))
    store_samples(run.folder / CHIPS / "training", training)
    store_samples(run.folder / CHIPS / "validation", validation)
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
    with _followed(run):
        return _last_state(trainer, run)


def _last_state(trainer: TorchTrainer, run: TrainingRun) -> State:
    error = run.folder / _ERROR
    error.unlink(missing_ok=True)
    try:
        trainer.fit()
    except TrainingFailedError as failure:
        log.error("%s", failure)
        raise ModelError(
            f"training failed, also after {FAILURES} new beginnings; the log above says why"
        ) from failure
    if error.exists():
        told = json.loads(error.read_text(encoding="utf-8"))
        raise OutputError(told["text"]) if told["output"] else ModelError(told["text"])
    state = _kept_state(run)
    if state is None:
        raise ModelError("training on Ray ended without a checkpoint; run it again")
    return state


def _work(config: dict[str, Any]) -> None:
    """Be one worker. An error that the user has to fix ends the run: a retry would fail again."""
    run: TrainingRun = config["run"]
    torch.set_num_threads(config["threads"])
    after_epoch = config["after_epoch"] or (lambda _: None)

    def keep(trainer: Trainer) -> None:
        _report(trainer, run)
        after_epoch(trainer)

    try:
        training = open_samples(run.folder / CHIPS / "training")
        validation = open_samples(run.folder / CHIPS / "validation")
        with saving(run), _logged(run):
            fit(run, training, validation, state=_kept_state(run), keep=keep)
    except ScenesweepError as error:
        told = {"text": str(error), "output": isinstance(error, OutputError)}
        (run.folder / _ERROR).write_text(json.dumps(told), encoding="utf-8")


def _kept_state(run: TrainingRun) -> State | None:
    path = run.folder / CHECKPOINT
    return read_state(path) if path.exists() else None


def _report(trainer: Trainer, run: TrainingRun) -> None:
    """Keep the state, and tell Ray how far it is: a barrier for all workers."""
    epoch = trainer.history[-1]
    if trainer.rank == 0:
        trainer.save(run.folder / CHECKPOINT)
    ray.train.report({"epoch": epoch.number, "metric": epoch.metric, **epoch.losses})


def _scaling(workers: int) -> ScalingConfig:
    """Give each worker a GPU where there are any, else its share of the CPUs."""
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


def _resolved(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


@contextmanager
def _logged(run: TrainingRun) -> Iterator[None]:
    """Write what the loop of training logs to a file, which `_followed` reads."""
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
def _followed(run: TrainingRun) -> Iterator[None]:
    """Log every line that the first worker logs, while the block lasts."""
    over = threading.Event()
    path = run.folder / _LOG
    told = len(_lines(path))

    def follow() -> None:
        nonlocal told
        while True:
            last = over.wait(_LOOK_EVERY_S)
            lines = _lines(path)
            for line in lines[told:]:
                log.info("%s", line)
            told = len(lines)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _lines(path: Path) -> list[str]:
    """Return the complete lines of a file, if there is one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split("\n")[:-1]
