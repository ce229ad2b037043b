"""The flow on Ray: tasks read, actors detect, tasks publish, and `pipeline.engine.loop` joins them.

This is the only file of the pipeline that imports ray.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

# Ray prints up to 50 lines of statistics and advice on stdout when a node is lost, whatever
# `log_to_driver` says. The loop says in a line what was lost with it. Ray reads this on import.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^Raylet is terminated|^The node with node id")

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayError, RayTaskError, RpcError
from ray.experimental import internal_kv
from ray.util import metrics as metrics

from scenesweep.model.private_apis.torch_compiler import postpone_compiler_import
from scenesweep.pipeline.engine.loop import Hear, Loop
from scenesweep.pipeline.engine.steps import Progress, R, S, Steps, Stop, Work, never, one_line
from scenesweep.pipeline.engine.workers import LostForMemory, PixelsLost, StepRaised, WorkerLost
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.settings import EngineSettings

log = logging.getLogger(__name__)

_RAY = {
    "gcs_server_port_wait_time_s": "120",  # a busy machine takes longer than 20 s to start Ray
    # a reader costs seconds to start, and is due again later than a second after its last shard
    "idle_worker_killing_time_threshold_ms": "60000",
}
_BEGUN = "scenesweep-begun"  # namespace of the cluster's key-value store


@dataclass(frozen=True, slots=True)
class Resources:
    """What each kind of worker asks of Ray. On a GPU a detector also takes one CPU.

    Without `expect_work` all scenes seem to be up to date: no detector starts before there is a
    scene with work.
    """

    detectors: int
    detector_cpus: float
    detector_gpus: float
    task_cpus: float
    expect_work: bool = True


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine for `local`, and leave it after.

    `auto` is the cluster this machine is part of. None is the cluster of the environment (as
    in a submitted job), else `local`. Where Ray is initialised in this process already, that Ray
    is used whatever the address, and left as it is.

    Raises:
        UsageError: when there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    on_stop = signal.getsignal(signal.SIGTERM)
    _connect(address)
    try:
        # Ray puts a handler of its own that only dumps the stack; it does so in the main thread.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_stop)
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    """Connect; Ray that is started here has no dashboard and no job API."""
    if address in (None, "local"):
        for name, value in _RAY.items():
            os.environ.setdefault(f"RAY_{name}", value)
    try:
        ray.init(
            address=address,
            include_dashboard=False,  # of no effect where Ray runs already
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"--address {address}: no Ray cluster: {one_line(error)}") from error


def resources_for(settings: EngineSettings, *, threads: int, device: str) -> Resources:
    """Decide how many detectors to ask for, and what each worker takes of the cluster.

    On CPUs, detectors take most of each core and reading the rest: reading is light, and both
    must fit where detectors fill the machine. A number of detectors with `cuda` asks for GPUs
    that are not there yet: a cluster that grows has none before it is asked.
    """
    cluster = ray.cluster_resources()
    gpus = int(cluster.get("GPU", 0))
    if (gpus and device == "auto") or (device == "cuda" and (gpus or settings.detectors)):
        return Resources(settings.detectors or gpus, 1, 1, 1)
    cpus = int(cluster.get("CPU", 1))
    return Resources(settings.detectors or max(1, cpus // threads), 0.75 * threads, 0, 0.25)


def sweep(
    sources: Iterable[Any],
    steps: Steps[S, R],
    weights: Any,
    settings: EngineSettings,
    resources: Resources,
    *,
    on_result: Callable[[R], None],
    on_progress: Callable[[Progress], None],
    on_warning: Callable[[str], None] = log.warning,
    stop: Stop = never,
) -> None:
    """Do what `pipeline.engine.local.sweep` does, on Ray; results come in the order they are ready.

    Asked to stop, it waits for the shards that detectors are at, and begins nothing.

    Raises:
        ModelError: when no detector can be made.
        OutputError: when nothing more can be written.
        ScenesweepError: when detectors die before they come up.
    """
    workers = _RayWorkers(steps, weights, resources)
    hear = Hear(on_result, on_warning, steps.fail)
    loop: Loop[S, R] = Loop(
        iter(sources),
        workers,
        settings,
        resources.detectors,
        hear,
        expect_work=resources.expect_work,
    )
    try:
        while not stop() and loop.advance():
            on_progress(loop.progress())
        while stop() and loop.drain():
            on_progress(loop.progress())
    finally:
        loop.close()


@dataclass(slots=True)
class _Call:
    """A task: the key under which it says that it has begun, and when that was first heard.

    `heard` is in seconds of this process's own clock: those of two machines may differ by more
    than a time limit.
    """

    key: str
    heard: float | None = None


class _RayWorkers:
    """`pipeline.engine.workers.Workers` on a cluster. Ray tries nothing again: the loop counts."""

    def __init__(self, steps: Steps[Any, Any], weights: Any, resources: Resources) -> None:
        self._steps, self._weights = ray.put(steps), ray.put(weights)
        self._task: dict[str, Any] = {"num_cpus": resources.task_cpus, "max_retries": 0}
        cpus, gpus = resources.detector_cpus, resources.detector_gpus
        self._actor: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        self._calls: dict[Any, _Call] = {}

    def _call(self, task: Any, *arguments: Any, returns: int = 1) -> Any:
        """Call a task; what it returns first is its reference."""
        key = uuid4().hex
        refs = task.options(**self._task, num_returns=returns).remote(key, self._steps, *arguments)
        self._calls[refs if returns == 1 else refs[0]] = _Call(key)
        return refs

    def plan(self, source: Any) -> Any:
        return self._call(_plan_task, source)

    def read(self, work: Sequence[Work]) -> tuple[Any, Any]:
        said, pixels = self._call(_read_task, work, returns=2)
        return said, pixels

    def hire(self) -> tuple[Any, Any]:
        actor: Any = _DetectorActor.options(**self._actor)  # type: ignore[attr-defined]
        detector = actor.remote(self._steps, self._weights)
        return detector, detector.start.remote()

    def detect(self, detector: Any, work: Sequence[Work], pixels: Any) -> Any:
        return detector.detect.remote(work, pixels)

    def finish(self, state: Any, seconds: Mapping[str, float]) -> Any:
        return self._call(_finish_task, state, dict(seconds))

    def wait(self, refs: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        done, _ = ray.wait(list(refs), timeout=timeout_s, fetch_local=False)
        return done

    def busy_s(self, ref: Any) -> float | None:
        call = self._calls[ref]
        if call.heard is None:
            with suppress(RpcError):
                if internal_kv._internal_kv_exists(call.key, namespace=_BEGUN):
                    call.heard = time.monotonic()
        return None if call.heard is None else time.monotonic() - call.heard

    def value(self, ref: Any) -> Any:
        try:
            return ray.get(ref)
        except RayTaskError as error:
            raise _failure(error) from error
        except OutOfMemoryError as error:
            raise LostForMemory(one_line(error)) from error
        except RayError as error:
            raise WorkerLost(one_line(error)) from error
        finally:
            self._forget(ref)

    def cancel(self, ref: Any) -> None:
        ray.cancel(ref, force=True)
        self._forget(ref)

    def dismiss(self, detector: Any) -> None:
        ray.kill(detector)

    def _forget(self, ref: Any) -> None:
        call = self._calls.pop(ref, None)
        if call is not None:
            with suppress(RpcError):
                internal_kv._internal_kv_del(call.key, namespace=_BEGUN)


def _failure(error: RayTaskError) -> StepRaised | WorkerLost | PixelsLost:
    """Say whether a step raised, or Ray did because it could not fetch the step's arguments."""
    if isinstance(error.cause, ObjectLostError):
        return PixelsLost(one_line(error.cause))
    if isinstance(error.cause, RayError):
        return WorkerLost(one_line(error.cause))
    return StepRaised(error.cause)


def _say_begun(key: str) -> None:
    """Tell the driver that a task has begun: Ray tells its caller nothing of it."""
    with suppress(RpcError):  # it has no time limit then
        internal_kv._internal_kv_put(key, "begun", namespace=_BEGUN)


@ray.remote
def _plan_task(key: str, steps: Any, source: Any) -> Any:
    _say_begun(key)
    return steps.plan(source)


@ray.remote
def _read_task(key: str, steps: Any, work: Sequence[Work]) -> Any:
    _say_begun(key)
    started = time.monotonic()
    pixels, unreadable = steps.read(work)
    return (unreadable, time.monotonic() - started), pixels


@ray.remote
def _finish_task(key: str, steps: Any, state: Any, seconds: dict[str, float]) -> Any:
    _say_begun(key)
    return steps.finish(state, seconds)


@ray.remote(max_restarts=0, max_task_retries=0)
class _DetectorActor:
    def __init__(self, steps: Steps[Any, Any], weights: Any) -> None:
        self._steps, self._weights = steps, weights
        self._detector: Any = None

    def start(self) -> None:
        postpone_compiler_import()  # this process is ours, and torch is not imported yet
        self._detector = self._steps.make_detector(self._weights)

    def detect(self, work: Sequence[Work], pixels: list[Any]) -> float:
        started = time.monotonic()
        self._steps.detect(self._detector, work, pixels)
        return time.monotonic() - started
