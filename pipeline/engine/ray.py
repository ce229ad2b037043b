"""The sweep on Ray: tasks plan, read and publish; actors detect. `engine.loop` directs them.

This is the only file of the pipeline that imports ray.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

# When a node is lost, Ray prints up to 50 lines of statistics and advice on stdout, whatever
# `log_to_driver` says. The loop reports in one line what was lost. Ray reads this on import.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^Raylet is terminated|^The node with node id")

import ray
from ray._private.state import state
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayError, RayTaskError, RpcError
from ray.experimental import internal_kv
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scenesweep.pipeline.engine import tasks
from scenesweep.pipeline.engine.loop import Loop
from scenesweep.pipeline.engine.pace import CALLS_EACH
from scenesweep.pipeline.engine.resources import Resources, cluster_of, resources_in
from scenesweep.pipeline.engine.steps import (
    DetectorUse,
    Listener,
    Planned,
    R,
    S,
    Steps,
    Stop,
    Work,
    never,
    one_line,
)
from scenesweep.pipeline.engine.tally import Tally
from scenesweep.pipeline.engine.workers import (
    Cluster,
    LostForMemory,
    NodeLost,
    PixelsLost,
    Portion,
    ReadOutcome,
    Ref,
    StepRaised,
    T,
    WorkerLost,
    Workers,
)
from scenesweep.pipeline.errors import DetectorLost, UsageError
from scenesweep.pipeline.settings import EngineSettings

log = logging.getLogger(__name__)
_RAY = {
    "gcs_server_port_wait_time_s": "120",  # a busy machine needs more than 20 s to start Ray
    # A reader takes seconds to start, and is often needed again over a second after its last shard.
    "idle_worker_killing_time_threshold_ms": "60000",
}
_BEGUN, _AGREED = "scenesweep-begun", "scenesweep-agreed"  # in the cluster's key-value store
_NODE_LABEL = "ray.io/node-id"
_NODE_S = 1.0  # to tell the node of a detector, which is known since it began to start
_MACHINES_ASKED = 5  # when machines are unfit
_LOOK_EVERY_S = 0.5  # for a request to stop


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine for `local`; disconnect at the end.

    `auto` is the cluster that this machine belongs to. None is the cluster that the environment
    names (as in a submitted job), or else `local`. If Ray is already initialised in this process,
    the session uses that Ray, whatever the address is, and leaves it running.

    Raises:
        UsageError: if there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    on_stop = signal.getsignal(signal.SIGTERM)
    _connect(address)
    try:
        # In the main thread, Ray installs a handler of its own, which only dumps the stack.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_stop)
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    """Connect. A Ray that is started here has no dashboard and no job API."""
    if address in (None, "local"):
        for name, value in _RAY.items():
            os.environ.setdefault(f"RAY_{name}", value)
    try:
        ray.init(
            address=address,
            include_dashboard=False,  # ignored if Ray is running already
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"--address {address}: no Ray cluster: {one_line(error)}") from error


def make_gauge(name: str, description: str, tags: Mapping[str, str], *more: str) -> metrics.Gauge:
    """Make a gauge on Ray's metrics endpoint, as `ray_<name>`.

    `tags` are fixed; `more` are the names of tags whose values come with each `set`.
    """
    gauge = metrics.Gauge(name, description=description, tag_keys=(*tags, *more))
    return gauge.set_default_tags(dict(tags))


def resources_for(settings: EngineSettings, *, threads: int, device: str) -> Resources:
    """Decide how many detectors to start on this cluster, and what each worker reserves."""
    return resources_in(ray.cluster_resources(), settings, threads=threads, device=device)


def agreement(run_id: str) -> Callable[[str], str]:
    """Return a function that detectors call with what each would choose for the run.

    It returns to all of them what the first one proposed.
    """
    return partial(_first_proposal, f"{run_id}-computing".encode())


def _first_proposal(key: bytes, proposal: str) -> str:
    internal_kv._internal_kv_put(key, proposal.encode(), overwrite=False, namespace=_AGREED)
    agreed = internal_kv._internal_kv_get(key, namespace=_AGREED)
    return proposal if agreed is None else agreed.decode()


def ask(question: Callable[[], T], resources: Resources, *, stop: Stop = never) -> T | None:
    """Call a function on a machine of the cluster that can hold a detector.

    It waits until there is such a machine. Return None if the run is asked to stop before.

    Raises:
        ScenesweepError: what the function raises. If the machine is unfit, it asks others first.
    """
    reserved = {"num_cpus": resources.detector_cpus, "num_gpus": resources.detector_gpus}
    task: Any = _ask_task
    for left in reversed(range(_MACHINES_ASKED)):
        ref = task.options(**reserved).remote(question)
        while not ray.wait([ref], timeout=_LOOK_EVERY_S)[0]:
            if stop():
                ray.cancel(ref, force=True)
                return None
        try:
            answer: T = ray.get(ref)
        except RayTaskError as error:
            if not left or not isinstance(error.cause, DetectorLost):
                raise error.cause from error
        except RayError:
            if not left:
                raise
        else:
            return answer
    return None


def sweep(
    sources: Iterable[object],
    steps: Steps[S, R],
    weights: object,
    settings: EngineSettings,
    resources: Resources,
    *,
    listener: Listener[R] | None = None,
    stop: Stop = never,
) -> None:
    """Do on Ray what `engine.local.sweep` does. Results come in the order in which scenes end.

    Asked to stop, it waits for the shards that detectors are working on, and starts nothing.

    Raises:
        ModelError: if a detector cannot be made.
        OutputError: if the output cannot be written.
        ScenesweepError: if detectors die before they are up.
    """
    listener = listener or Listener(warning=log.warning)
    loop = Loop(
        iter(sources),
        _RayWorkers(steps, weights, resources, settings),
        Tally(listener, steps.fail),
        settings=settings,
        detectors=resources.detectors,
        expect_work=resources.expect_work,
    )
    try:
        while not stop() and loop.advance():
            listener.progress(loop.progress())
        while stop() and loop.drain():
            listener.progress(loop.progress())
    finally:
        loop.close()


class _RayWorkers(Workers[S, R]):
    """Runs the steps on a cluster. Ray retries nothing: the loop counts attempts."""

    def __init__(
        self,
        steps: Steps[S, R],
        weights: object,
        resources: Resources,
        settings: EngineSettings | None = None,
    ) -> None:
        self._steps, self._weights = ray.put(steps), ray.put(weights)
        self._resources, self._settings = resources, settings or EngineSettings()
        self._publish_s = self._settings.publish_timeout_s
        self._task: dict[str, Any] = {"num_cpus": resources.task_cpus, "max_retries": 0}
        self._actor: dict[str, Any] = {
            "num_cpus": resources.detector_cpus,
            "num_gpus": resources.detector_gpus,
            "max_concurrency": CALLS_EACH,  # one computes while another writes its parts
        }
        self._tasks: dict[Hashable, tasks.RunningTask] = {}
        self._ready: dict[tuple[Any, str | None], Any] = {}  # tasks with their options
        self._run, self._numbers = uuid4().hex, count()
        self._detectors = 0
        self._nodes: dict[str, dict[str, Any]] = {}

    def _call(self, task: Any, limit_s: float, *arguments: object, near: str | None = None) -> Any:
        """Start a task. Return its reference, or a list of references if it returns several."""
        key = f"{self._run}-{next(self._numbers)}"
        ready = self._ready.get((task, near)) or self._with_options(task, near)
        refs = ready.remote(tasks.TaskLimit(key, limit_s), self._steps, *arguments)
        self._tasks[refs[0] if isinstance(refs, list) else refs] = tasks.RunningTask(key)
        return refs

    def _with_options(self, task: Any, near: str | None) -> Any:
        options = dict(self._task)
        if near is not None:
            there = NodeAffinitySchedulingStrategy(near, soft=True, _spill_on_unavailable=True)
            options["scheduling_strategy"] = there
        return self._ready.setdefault((task, near), task.options(**options))

    def cluster(self) -> Cluster:
        self._nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        nodes = {node: facts["Resources"] for node, facts in self._nodes.items()}
        leaving = state.get_draining_nodes()
        return cluster_of(nodes, leaving, self._resources, detectors=self._detectors)

    def is_gone(self, node: str) -> bool:
        if node not in self._nodes:  # new, or Ray knows already that it died
            self.cluster()
        at = self._nodes.get(node)
        return at is None or not tasks.is_reachable(at["NodeManagerAddress"], at["NodeManagerPort"])

    def share(self, work: Sequence[Work]) -> object:
        return ray.put(work)

    def plan(self, source: object) -> Ref[Planned[S, R]]:
        return Ref(self._call(_step_task, self._settings.plan_timeout_s, tasks.plan, source))

    def read(
        self, work: Sequence[Portion], *, near: str | None = None
    ) -> tuple[Ref[ReadOutcome], object]:
        limit_s, near = self._settings.read_timeout_s, near if len(self._nodes) > 1 else None
        outcome, pixels = self._call(_read_task, limit_s, *tasks.arguments(work), near=near)
        return Ref(outcome), pixels

    def start_detector(self, *, avoid: Collection[str] = ()) -> tuple[object, Ref[None]]:
        options = dict(self._actor)
        if avoid:
            options["label_selector"] = {_NODE_LABEL: f"!in({','.join(sorted(avoid))})"}
        actor: Any = _DetectorActor
        actor = actor.options(**options).remote(self._steps, self._weights)
        self._detectors += 1
        return tasks.StartedDetector(actor, actor.node.remote()), Ref(actor.start.remote())

    def node_of(self, detector: Any) -> str | None:
        with suppress(RayError):  # it died before it could tell
            return str(ray.get(detector.node, timeout=_NODE_S))
        return None

    def detect(self, detector: Any, work: Sequence[Portion], pixels: object) -> Ref[DetectorUse]:
        indices, *works = tasks.arguments(work)
        return Ref(detector.actor.detect.remote(indices, pixels, *works))

    def publish_piece(self, state: S, name: str) -> Ref[None]:
        return Ref(self._call(_step_task, self._publish_s, tasks.publish_piece, state, name))

    def finish(self, state: S, seconds: Mapping[str, float]) -> Ref[R]:
        return Ref(self._call(_step_task, self._publish_s, tasks.finish, state, dict(seconds)))

    def wait(self, refs: Collection[Ref[object]], timeout_s: float) -> Sequence[Ref[object]]:
        """Wait for the first call that ends, and take all others that have ended by then."""
        done, others = ray.wait([r.handle for r in refs], timeout=timeout_s, fetch_local=False)
        if done and others:
            more, _ = ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)
            done += more
        return [Ref(handle) for handle in done]

    def busy_s(self, ref: Ref[object]) -> float | None:
        task = self._tasks[ref.handle]
        with suppress(RpcError):
            if not task.seen_at and internal_kv._internal_kv_exists(task.key, namespace=_BEGUN):
                task.seen_at = time.monotonic()
        return None if task.seen_at is None else time.monotonic() - task.seen_at

    def value(self, ref: Ref[T]) -> T:
        handle: Any = ref.handle
        try:
            value: T = ray.get(handle)
        except RayError as error:
            self._remove(self._tasks.get(handle))
            raise _failure(error) from error
        finally:
            self._tasks.pop(handle, None)
        return value

    def cancel(self, ref: Ref[object]) -> None:
        handle: Any = ref.handle
        ray.cancel(handle, force=True)
        self._remove(self._tasks.pop(handle, None))

    def _remove(self, task: tasks.RunningTask | None) -> None:
        if task:  # it died: others do it themselves
            _Begun().remove(task.key)

    def stop_detector(self, detector: Any) -> None:
        self._detectors -= 1
        ray.kill(detector.actor)


def _failure(error: RayError) -> StepRaised | WorkerLost | PixelsLost:
    """Tell an error of a step from a loss: Ray could not fetch arguments, or a GPU failed.

    A detector whose GPU failed still lives. The loop stops it, as it does with each lost worker.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, RayError):
        return tasks.failure_of(cause)
    if isinstance(cause, ObjectLostError):
        return PixelsLost(one_line(cause))
    if isinstance(cause, ray.exceptions.NodeDiedError):
        return NodeLost(one_line(cause), tasks.node_in(str(cause)))
    kind = LostForMemory if isinstance(cause, OutOfMemoryError) else WorkerLost
    return kind(one_line(cause))


class _Begun:
    """The tasks that have begun, in the cluster's key-value store: Ray itself does not tell it."""

    def put(self, key: str) -> None:
        with suppress(RpcError):  # then only the process itself enforces the time limit
            internal_kv._internal_kv_put(key, "begun", namespace=_BEGUN)

    def remove(self, key: str) -> None:
        with suppress(RpcError):
            internal_kv._internal_kv_del(key, namespace=_BEGUN)


@ray.remote
def _step_task(
    limit: tasks.TaskLimit, steps: Steps[Any, Any], step: Any, *arguments: object
) -> Any:
    """Run `plan`, `publish_piece` or `finish` of `engine.tasks`."""
    with tasks.within(limit, _Begun()):
        return step(steps, *arguments)


@ray.remote(num_returns=2)
def _read_task(
    limit: tasks.TaskLimit, steps: Steps[S, R], indices: Sequence[tuple[int, ...]], *works: object
) -> tuple[ReadOutcome, list[object]]:
    """Return the outcome, which goes to the driver, and the pixels, which stay on this node."""
    with tasks.within(limit, _Begun()):
        return tasks.read_pixels(steps, tasks.portions(indices, works))


# The process ends with the call: it has imported torch, and perhaps uses a GPU.
@ray.remote(max_calls=1, max_retries=0, scheduling_strategy="SPREAD")
def _ask_task(question: Callable[[], T]) -> T:
    with tasks.on_this_machine():
        return question()


@ray.remote(max_restarts=0, max_task_retries=0)
class _DetectorActor(tasks.DetectorProcess):
    def node(self) -> str:
        """Return the id of the node that this detector runs on."""
        return str(ray.get_runtime_context().get_node_id())
