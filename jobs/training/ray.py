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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scenesweep.jobs.training.run import CHECKPOINT, STORE, TrainingRun, explain_write_errors, fit
from scenesweep.model.errors import ModelError, ScenesweepError
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.training.batches import MOST_LOADERS, rank_and_world
from scenesweep.model.training.train import State, Trainer, read_state
from scenesweep.pipeline.errors import OutputError, UsageError
from scenesweep.pipeline.labels import open_chips, store_chips
from scenesweep.pipeline.storage.commit import atomic_write

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
        UsageError: when the cluster has fewer GPUs than workers, or no GPUs and fewer CPUs, or when
            a node cannot see the folder.
        OutputError: when the folder cannot be written.
        ModelError: when training fails.
    """
    scaling = _scaling(workers)
    run = replace(
        run, folder=run.folder.resolve(), initial=run.initial.resolve() if run.initial else None
    )
    check_shared(run.folder)
    store_chips(run.folder / CHIPS / "training", training)
    store_chips(run.folder / CHIPS / "validation", validation)
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "run": run,
            "threads": _cpus(workers),
            "after_epoch": after_epoch,
        },
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
    """Run one worker. An error that the user can fix ends the run, because a retry fails again.

    `threads` is the number of CPUs of the worker. On a GPU, all but one of them make batches.
    """
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
            fit(run, training, validation, state=_shared_checkpoint(run), save=save)
    except ScenesweepError as error:
        saved = {"text": str(error), "output": isinstance(error, OutputError)}
        (run.folder / _ERROR).write_text(json.dumps(saved), encoding="utf-8")


def _last_checkpoint(run: TrainingRun) -> State | None:
    path = run.folder / CHECKPOINT
    return read_state(path) if path.exists() else None


def _shared_checkpoint(run: TrainingRun) -> State | None:
    """Read the last checkpoint on the first worker and send it to all others.

    A worker that reads the file itself may see an older one: network file systems cache.
    """
    rank, world = rank_and_world()
    if world == 1:
        return _last_checkpoint(run)
    read: list[State | ScenesweepError | None] = [None]
    if rank == 0:
        try:
            read[0] = _last_checkpoint(run)
        except ScenesweepError as error:
            read[0] = error
    torch.distributed.broadcast_object_list(read, src=0)
    if isinstance(read[0], ScenesweepError):
        raise read[0]
    return read[0]


def check_shared(folder: Path) -> None:
    """Check that every node of the cluster sees the same folder as this process.

    Raises:
        UsageError: with the nodes that do not see it.
        OutputError: when the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = uuid4().hex
    path = folder / f".seen-{token}"
    with atomic_write(path, folder) as temporary:
        temporary.write_text(token, encoding="utf-8")
    try:
        blind = [name for name, sees in _ask_nodes(path, token) if not sees]
    finally:
        path.unlink(missing_ok=True)
    if blind:
        raise UsageError(
            f"--out {folder}: expected a folder that every node of the cluster sees; "
            f"{', '.join(blind)} cannot see it. Write to a disk that all nodes share"
        )


def sees(path: Path, token: str) -> bool:
    """Return whether a file is there and contains `token`."""
    try:
        return path.read_text(encoding="utf-8") == token
    except OSError:
        return False


def _ask_nodes(path: Path, token: str) -> list[tuple[str, bool]]:
    """Call `sees` on each node that has CPUs or GPUs; return its address with the answer."""
    nodes = _working_nodes()
    asked = [
        ray.remote(sees)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote(path, token)
        for node in nodes
    ]
    return list(zip([node["NodeManagerAddress"] for node in nodes], ray.get(asked), strict=True))


def _working_nodes() -> list[dict[str, Any]]:
    """List the nodes that are up and have CPUs or GPUs."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [n for n in nodes if n["Resources"].get("CPU", 0) or n["Resources"].get("GPU", 0)]


def _report(trainer: Trainer, run: TrainingRun) -> None:
    """Save the checkpoint and report the epoch to Ray, which waits for all workers here."""
    epoch = trainer.history[-1]
    if trainer.rank == 0:
        trainer.save(run.folder / CHECKPOINT)
    metric = {} if epoch.metric is None else {"metric": epoch.metric}
    ray.train.report({"epoch": epoch.number, **metric, **epoch.losses})


def _scaling(workers: int) -> ScalingConfig:
    """Give each worker one GPU and CPUs for its loaders, or, without GPUs, a share of the CPUs."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus and gpus < workers:
        raise UsageError(f"--workers {workers}: expected at most one for each of {gpus} GPUs")
    cpus = int(ray.cluster_resources().get("CPU", 1))
    if not gpus and cpus < workers:
        raise UsageError(f"--workers {workers}: expected at most one for each of {cpus} CPUs")
    return ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker={"GPU": 1, "CPU": _cpus(workers)} if gpus else {"CPU": 1},
    )


def cpus_beside_gpu(nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many CPUs each GPU can have on every node that has GPUs, at least 1.

    One of them trains, the others make batches. More than `MOST_LOADERS` + 1 would be idle.
    """
    shares = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0)]
    return max(1, min([MOST_LOADERS + 1, *shares]))


def _cpus(workers: int) -> int:
    """Return how many CPUs a worker uses: those beside its GPU, or its share of the cluster's."""
    if ray.cluster_resources().get("GPU", 0):
        return cpus_beside_gpu([node["Resources"] for node in _working_nodes()])
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
