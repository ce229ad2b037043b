"""The flow on Ray: tasks read, actors detect, tasks publish, and one bounded loop joins them.

The loop (`_Loop`) decides what Ray leaves to its caller: how much is under way at once, how
often a piece of work is tried, how long it may take, and when a scene is given up. It knows
nothing of rasters or boxes: it moves opaque scenes and work between the functions of `Steps`,
which run in workers. This is the only file of the pipeline that imports ray.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import metrics as metrics

from pipeline.errors import ScenesweepError, UsageError
from pipeline.settings import EngineSettings
from pipeline.steps import Planned, Progress, R, S, Steps, Work

log = logging.getLogger(__name__)

_IN_HAND = 2  # pieces of work at each detector: one in the network, the next one's pixels there
_STARTS_AT_MOST = 5  # detectors in a row that die before they come up


@dataclass(frozen=True, slots=True)
class Resources:
    """What each kind of worker asks of Ray. On a GPU a detector also takes one CPU."""

    detectors: int
    detector_cpus: float
    detector_gpus: float
    task_cpus: float


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine for `local`, and leave it after.

    `auto` is the cluster this machine is part of. None is the cluster of the environment (as
    in a submitted job), else `local`.

    Raises:
        UsageError: when there is no cluster at the address.
    """
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"--address {address}: no Ray cluster: {_line(error)}") from error
    signal.signal(signal.SIGTERM, on_stop)  # ray puts one of its own that only dumps the stack
    try:
        yield
    finally:
        ray.shutdown()


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
    sources: Iterable[str],
    steps: Steps[S, R],
    weights: Any,
    settings: EngineSettings,
    resources: Resources,
    *,
    on_result: Callable[[R], None],
    on_progress: Callable[[Progress], None],
) -> None:
    """Do what `pipeline.local.sweep` does, on Ray; results come in the order they are ready.

    Raises:
        ScenesweepError: when no detector can be made at all.
    """
    loop = _Loop(iter(sources), steps, weights, settings, resources, on_result)
    try:
        while loop.advance():
            on_progress(loop.progress())
    finally:
        loop.close()


@dataclass(slots=True, eq=False)
class _Scene(Generic[S]):
    source: str
    state: S | None = None
    work: Sequence[Work] = ()
    open: int = 0
    gone: bool = False
    crashes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(slots=True, eq=False)
class _Piece(Generic[S]):
    scene: _Scene[S]
    index: int
    crashes: int = 0

    @property
    def work(self) -> Work:
        return self.scene.work[self.index]


@dataclass(slots=True, eq=False)
class _Detector:
    actor: Any
    up: bool = False
    hand: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Flight(Generic[S]):
    """One call under way; `kind` names the step."""

    kind: str
    deadline: float
    scene: _Scene[S] | None = None
    pieces: list[_Piece[S]] = field(default_factory=list)
    pixels: Any = None
    detector: _Detector | None = None


class _Loop(Generic[S, R]):
    """The state of a run. `advance` starts what may be started and handles what has ended."""

    def __init__(
        self,
        sources: Iterator[str],
        steps: Steps[S, R],
        weights: Any,
        settings: EngineSettings,
        resources: Resources,
        on_result: Callable[[R], None],
    ) -> None:
        self._sources: Iterator[str] | None = sources
        self._steps, self._settings, self._resources = steps, settings, resources
        self._on_result = on_result
        self._steps_ref = ray.put(steps)
        self._weights_ref = ray.put(weights)
        self._queue: deque[_Piece[S]] = deque()
        self._ready: deque[_Flight[S]] = deque()
        self._flights: dict[Any, _Flight[S]] = {}
        self._detectors: list[_Detector] = []
        self._failed_starts = 0
        self._scenes_done = self._windows_done = self._windows_known = 0

    def advance(self) -> bool:
        """Do one round; False when nothing is left."""
        self._plan()
        self._read()
        self._staff()
        self._detect()
        if not self._flights:
            return False
        patience = min(flight.deadline for flight in self._flights.values()) - time.monotonic()
        refs = list(self._flights)
        done, _ = ray.wait(refs, timeout=min(max(patience, 0), 1), fetch_local=False)
        for ref in done:
            if ref in self._flights:
                self._landed(self._flights.pop(ref), ref)
        self._expire()
        return True

    def progress(self) -> Progress:
        up = sum(detector.up for detector in self._detectors)
        return Progress(self._scenes_done, self._windows_done, self._windows_known, up)

    def close(self) -> None:
        """Stop everything that is still under way."""
        for ref, flight in self._flights.items():
            if flight.detector is None:
                ray.cancel(ref, force=True)
        for detector in self._detectors:
            ray.kill(detector.actor)

    # Starting work

    def _plan(self) -> None:
        limit = 2 * self._resources.detectors
        while (
            self._sources is not None
            and self._count("plan") < limit
            and len(self._queue) < 4 * limit * _IN_HAND
        ):
            source = next(self._sources, None)
            if source is None:
                self._sources = None
                return
            scene: _Scene[S] = _Scene(source)
            ref = _plan_task.options(**self._task()).remote(self._steps_ref, source)
            self._fly(ref, "plan", self._settings.read_timeout_s, scene=scene)

    def _read(self) -> None:
        # Few at first: until a detector is up, more readers would only slow its start.
        limit = _IN_HAND * sum(detector.up for detector in self._detectors) + 1
        while self._queue and self._count("read") + len(self._ready) < limit:
            pieces = self._take()
            if not pieces:
                return
            work = [piece.work for piece in pieces]
            refs: Any = _read_task.options(**self._task(), num_returns=2).remote(
                self._steps_ref, work
            )
            said, pixels = refs
            self._fly(said, "read", self._settings.read_timeout_s, pieces=pieces, pixels=pixels)

    def _take(self) -> list[_Piece[S]]:
        """Take a piece from the queue, and small ones with it while together they stay small.

        They are fewer as the queue runs dry, so that all detectors end together. What has
        crashed a worker before goes alone, so that the next crash names it.
        """
        pieces: list[_Piece[S]] = []
        windows = 0
        most = max(1, len(self._queue) // (_IN_HAND * self._resources.detectors))
        while self._queue and len(pieces) < most:
            piece = self._queue[0]
            if piece.scene.gone:
                self._queue.popleft()
                continue
            windows += piece.work.windows
            if pieces and (windows > self._settings.batch_windows or piece.crashes):
                break
            pieces.append(self._queue.popleft())
            if piece.crashes:
                break
        return pieces

    def _staff(self) -> None:
        """Ask for detectors up to the limit, as long as there is work for one more.

        The first one comes up while the first scenes are planned: it takes longer.
        """
        waiting = len(self._ready) + self._count("read") + bool(self._queue)
        waiting = max(waiting, not self._detectors and self._count("plan") > 0)
        idle = [d for d in self._detectors if not d.hand]
        wanted = min(self._resources.detectors, len(self._detectors) - len(idle) + waiting)
        for _ in range(wanted - len(self._detectors)):
            actor = _DetectorActor.options(  # type: ignore[attr-defined]
                num_cpus=self._resources.detector_cpus, num_gpus=self._resources.detector_gpus
            ).remote(self._steps_ref, self._weights_ref)
            detector = _Detector(actor)
            self._detectors.append(detector)
            # A cluster may take any time to grow by the node that this one needs.
            self._fly(actor.start.remote(), "start", math.inf, detector=detector)
        if not (waiting or self._count("plan") or self._sources):
            for detector in [d for d in idle if d.up]:
                self._dismiss(detector)

    def _detect(self) -> None:
        while self._ready:
            free = [d for d in self._detectors if d.up and len(d.hand) < _IN_HAND]
            if not free:
                return
            detector = min(free, key=lambda d: len(d.hand))
            read = self._ready.popleft()
            work = [piece.work for piece in read.pieces]
            ref = detector.actor.detect.remote(work, read.pixels)
            detector.hand.append(ref)
            patience = self._settings.detect_timeout_s * len(detector.hand)
            self._fly(
                ref, "detect", patience, pieces=read.pieces, pixels=read.pixels, detector=detector
            )

    def _finish(self, scene: _Scene[S]) -> None:
        ref = _finish_task.options(**self._task()).remote(
            self._steps_ref, scene.state, scene.seconds
        )
        self._fly(ref, "finish", self._settings.publish_timeout_s, scene=scene)

    def _fly(self, ref: Any, kind: str, patience: float, **what: Any) -> None:
        self._flights[ref] = _Flight(kind, time.monotonic() + patience, **what)

    def _task(self) -> dict[str, Any]:
        return {"num_cpus": self._resources.task_cpus, "max_retries": 0}

    def _count(self, kind: str) -> int:
        return sum(flight.kind == kind for flight in self._flights.values())

    # Handling what has ended

    def _landed(self, flight: _Flight[S], ref: Any) -> None:
        try:
            value = ray.get(ref)
        except RayTaskError as error:
            self._raised(flight, error)
        except RayError as error:
            self._crashed(flight, _line(error))
        else:
            getattr(self, f"_after_{flight.kind}")(flight, value)

    def _after_plan(self, flight: _Flight[S], planned: Planned[S, R]) -> None:
        scene = flight.scene
        assert scene is not None
        if planned.result is not None:
            self._close(scene, planned.result)
            return
        scene.state, scene.work, scene.open = planned.state, planned.work, len(planned.work)
        self._windows_known += planned.windows
        self._queue.extend(_Piece(scene, index) for index in range(len(planned.work)))
        if not planned.work:
            self._finish(scene)

    def _after_read(self, flight: _Flight[S], said: tuple[dict[int, str], float]) -> None:
        unreadable, seconds = said
        for index, reason in unreadable.items():
            self._give_up(flight.pieces[index].scene, reason)
        flight.pieces = [p for i, p in enumerate(flight.pieces) if i not in unreadable]
        for piece in flight.pieces:
            piece.scene.spend("read", seconds / len(flight.pieces))
        if flight.pieces:
            self._ready.append(flight)

    def _after_start(self, flight: _Flight[S], _: None) -> None:
        assert flight.detector is not None
        flight.detector.up = True
        self._failed_starts = 0

    def _after_detect(self, flight: _Flight[S], seconds: float) -> None:
        assert flight.detector is not None
        flight.detector.hand.pop(0)
        for ref in flight.detector.hand:  # the next one's time begins now
            self._flights[ref].deadline = time.monotonic() + self._settings.detect_timeout_s
        for piece in flight.pieces:
            piece.scene.spend("detect", seconds / len(flight.pieces))
            piece.scene.open -= 1
            self._windows_done += piece.work.windows
            if piece.scene.open == 0 and not piece.scene.gone:
                self._finish(piece.scene)

    def _after_finish(self, flight: _Flight[S], result: R) -> None:
        assert flight.scene is not None
        self._close(flight.scene, result)

    def _raised(self, flight: _Flight[S], error: RayTaskError) -> None:
        """Our own code raised: trying again would raise again."""
        cause = error.cause
        if flight.kind == "start":
            raise cause if isinstance(cause, ScenesweepError) else error
        if flight.detector is not None:
            flight.detector.hand.pop(0)
        known = isinstance(cause, ScenesweepError | OSError)
        if not known:
            log.error("unexpected error in %s:\n%s", flight.kind, error)
        reason = str(cause) if isinstance(cause, ScenesweepError) else _line(cause)
        for scene in _scenes(flight):
            self._give_up(scene, reason, bug=not known)

    def _crashed(self, flight: _Flight[S], reason: str) -> None:
        """A worker or its node is gone: try again, up to the limit."""
        log.warning("%s: worker lost (%s)", flight.kind, reason)
        if flight.detector is not None:
            self._lost(flight, reason)
        elif flight.scene is not None:
            scene = flight.scene
            scene.crashes += 1
            if scene.crashes >= self._settings.attempts:
                self._quarantine(scene, flight.kind, reason)
            elif flight.kind == "finish":
                self._finish(scene)
            else:
                ref = _plan_task.options(**self._task()).remote(self._steps_ref, scene.source)
                self._fly(ref, "plan", self._settings.read_timeout_s, scene=scene)
        else:
            self._again(flight.pieces, flight.kind, reason)

    def _lost(self, flight: _Flight[S], reason: str) -> None:
        """A detector is gone: only what it was working on may be to blame."""
        detector = flight.detector
        assert detector is not None
        if flight.kind == "start":
            self._failed_starts += 1
            if self._failed_starts >= _STARTS_AT_MOST:
                raise ScenesweepError(f"no detector comes up; the last one died: {reason}")
        elif detector in self._detectors:
            first, *others = [self._flights.pop(ref, flight) for ref in detector.hand] or [flight]
            self._again(first.pieces, "detect", reason)
            for other in others:
                self._queue.extendleft(reversed(other.pieces))
        self._dismiss(detector)

    def _again(self, pieces: list[_Piece[S]], kind: str, reason: str) -> None:
        for piece in pieces:
            piece.crashes += 1
            if piece.crashes >= self._settings.attempts:
                self._quarantine(piece.scene, kind, reason)
        self._queue.extendleft(p for p in reversed(pieces) if not p.scene.gone)

    def _quarantine(self, scene: _Scene[S], kind: str, reason: str) -> None:
        tries = self._settings.attempts
        said = f"given up: a worker was lost {tries} times in {kind} ({reason})"
        self._give_up(scene, said)

    def _expire(self) -> None:
        now = time.monotonic()
        for ref, flight in list(self._flights.items()):
            if flight.deadline > now or ref not in self._flights:
                continue
            del self._flights[ref]
            if flight.detector is None:
                ray.cancel(ref, force=True)
            self._crashed(flight, "it took longer than its time limit")

    def _dismiss(self, detector: _Detector) -> None:
        if detector in self._detectors:
            self._detectors.remove(detector)
            ray.kill(detector.actor)

    def _give_up(self, scene: _Scene[S], reason: str, *, bug: bool = False) -> None:
        if not scene.gone:
            self._close(scene, self._steps.fail(scene.source, reason, bug))

    def _close(self, scene: _Scene[S], result: R) -> None:
        scene.gone = True
        self._scenes_done += 1
        self._on_result(result)


def _scenes(flight: _Flight[S]) -> list[_Scene[S]]:
    pieces = [piece.scene for piece in flight.pieces]
    return pieces if flight.scene is None else [flight.scene, *pieces]


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


@ray.remote
def _plan_task(steps: Any, source: str) -> Any:
    return steps.plan(source)


@ray.remote
def _read_task(steps: Any, work: Sequence[Work]) -> Any:
    started = time.monotonic()
    pixels, unreadable = steps.read(work)
    return (unreadable, time.monotonic() - started), pixels


@ray.remote
def _finish_task(steps: Any, state: Any, seconds: dict[str, float]) -> Any:
    return steps.finish(state, seconds)


@ray.remote(max_restarts=0, max_task_retries=0)
class _DetectorActor:
    def __init__(self, steps: Steps[Any, Any], weights: Any) -> None:
        self._steps, self._weights = steps, weights
        self._detector: Any = None

    def start(self) -> None:
        self._detector = self._steps.make_detector(self._weights)

    def detect(self, work: Sequence[Work], pixels: list[Any]) -> float:
        started = time.monotonic()
        self._steps.detect(self._detector, work, pixels)
        return time.monotonic() - started
