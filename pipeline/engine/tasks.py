"""What runs in the worker processes of a cluster, in plain Python: `engine.ray` runs it on Ray."""

from __future__ import annotations

import faulthandler
import platform
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from scenesweep.model.private_apis.torch_compiler import postpone_compiler_import
from scenesweep.pipeline.engine.steps import DetectorUse, Planned, R, S, Steps, Unreadable
from scenesweep.pipeline.engine.workers import (
    LostForMemory,
    MachineUnfit,
    Portion,
    ReadOutcome,
    StepRaised,
    WorkerLost,
    work_of,
)
from scenesweep.pipeline.errors import DetectorLost, DetectorOutOfMemory, UnfitMachine

_NODE_ID = re.compile(r"node ID: ([0-9a-f]{16,})", re.IGNORECASE)
_ANSWER_S = 0.5  # of a process that listens, to a connection
_TELL_AFTER_S = 1.0  # most tasks end sooner, and nobody asks for them
_GRACE_S = 10.0  # in which the driver would have killed a task, if it knew


class Board(Protocol):
    """Where the driver sees which tasks have begun."""

    def put(self, key: str) -> None: ...

    def remove(self, key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class TaskLimit:
    """The seconds that a task may run, and the key by which the driver knows it."""

    key: str
    seconds: float


@dataclass(slots=True)
class RunningTask:
    """A task's key, and when the driver's process first saw that it runs.

    `seen_at` is by that process's own clock: the clocks of two machines may differ by more than a
    time limit.
    """

    key: str
    seen_at: float | None = None


@dataclass(frozen=True, slots=True)
class StartedDetector:
    """A detector's actor, and a reference to the id of its node."""

    actor: Any
    node: Any


@contextmanager
def within(limit: TaskLimit, board: Board) -> Iterator[None]:
    """Run a task within its time limit.

    A task that runs for a second tells the driver so: the driver kills it after its limit. A task
    that holds the interpreter's lock can tell nobody. So the process ends itself a little later,
    from a thread that does not need the lock, with the stack in the worker's log.
    """
    told = threading.Event()

    def tell() -> None:
        told.set()
        board.put(limit.key)

    timer = threading.Timer(_TELL_AFTER_S, tell)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(limit.seconds + _GRACE_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()
        if told.is_set():
            board.remove(limit.key)


def arguments(work: Sequence[Portion]) -> list[Any]:
    """Return the places in the work of scenes, and the references to that work.

    The references are arguments of their own, so that they are fetched before a call begins.
    """
    return [[portion.indices for portion in work], *(portion.work for portion in work)]


def portions(indices: Sequence[tuple[int, ...]], works: Sequence[object]) -> list[Any]:
    """Return the pieces of work at places in the work of scenes, both in the same order."""
    pairs = zip(works, indices, strict=True)
    return work_of([Portion(work, places) for work, places in pairs])


def plan(steps: Steps[S, R], source: object) -> Planned[S, R]:
    """Plan a scene."""
    return steps.plan(source)


def publish_piece(steps: Steps[S, R], state: S, name: str) -> None:
    """Prepare a piece of a scene."""
    steps.publish_piece(state, name)


def finish(steps: Steps[S, R], state: S, seconds: dict[str, float]) -> R:
    """Publish a scene."""
    return steps.finish(state, seconds)


def read_pixels(steps: Steps[Any, Any], work: Sequence[object]) -> tuple[ReadOutcome, list[object]]:
    """Return the outcome of a read, and the pixels of the pieces that could be read."""
    started = time.monotonic()
    items = steps.read(work)
    unreadable = tuple(item if isinstance(item, Unreadable) else None for item in items)
    pixels = [item for item in items if not isinstance(item, Unreadable)]
    size = sum(_bytes_of(item) for item in pixels)
    return ReadOutcome(unreadable, time.monotonic() - started, size), pixels


def _bytes_of(item: object) -> int:
    """Return the bytes of an array, or of the arrays that an object holds."""
    if hasattr(item, "nbytes"):
        return int(item.nbytes)
    fields = (getattr(item, name, None) for name in getattr(item, "__slots__", ()))
    return sum(int(getattr(field, "nbytes", 0)) for field in fields)


class DetectorProcess:
    """A detector in a process of its own."""

    def __init__(self, steps: Steps[Any, Any], weights: object) -> None:
        self._steps, self._weights = steps, weights
        self._detector: object = None

    def start(self) -> None:
        """Load the detector."""
        postpone_compiler_import()  # this process is ours, and torch is not imported yet
        with on_this_machine():
            self._detector = self._steps.make_detector(self._weights)

    def detect(
        self, indices: Sequence[tuple[int, ...]], pixels: list[object], *works: object
    ) -> DetectorUse:
        """Detect, write the parts, and return what the detector did. Calls may overlap."""
        started = time.monotonic()
        with on_this_machine():
            use = self._steps.detect(self._detector, portions(indices, works), pixels)
        return use or DetectorUse(computed_s=time.monotonic() - started)


@contextmanager
def on_this_machine() -> Iterator[None]:
    """Add the name of this machine to an error about it."""
    try:
        yield
    except DetectorLost as error:
        raise type(error)(f"{platform.node()}: {error}") from error


def is_reachable(host: str, port: int) -> bool:
    """Say whether a process listens there and answers within half a second."""
    try:
        socket.create_connection((host, port), _ANSWER_S).close()
    except OSError:
        return False
    return True


def node_in(message: str) -> str | None:
    """Return the id of a node in Ray's message about its death; None if there is none."""
    found = _NODE_ID.search(message)
    return found[1] if found else None


def failure_of(error: BaseException) -> StepRaised | WorkerLost:
    """Tell an error of a step from the failure of a detector's machine or GPU."""
    if isinstance(error, DetectorOutOfMemory):
        return LostForMemory(str(error))
    if isinstance(error, UnfitMachine):
        return MachineUnfit(str(error))
    return WorkerLost(str(error)) if isinstance(error, DetectorLost) else StepRaised(error)
