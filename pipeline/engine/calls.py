"""The calls in progress: which step runs for which work, and until when it may run."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Generic, TypeAlias

from scenesweep.pipeline.engine.steps import DetectorUse, Planned, R, S, Work
from scenesweep.pipeline.engine.workers import Portion, ReadOutcome, Ref, Workers

_LONGEST_WAIT_S = 0.5  # so that the caller sees a request to stop soon
_LOOK_EVERY_S = 5.0  # how often to ask whether a task has begun; its time limit counts from then


@dataclass(slots=True, eq=False)
class SceneInProgress(Generic[S]):
    """A scene from the start of its planning on.

    `pieces_left` counts the pieces of work that are not detected yet. `ended` says that the scene
    has its result. `crashes` counts the workers that its planning or publishing cost, `nodes_lost`
    are the nodes that died with it. `suspect` says that one was killed for lack of memory.
    `number` is its place in the order of begin. `shared` stands for `work` in calls.
    `publish_rounds` are the pieces to publish that no worker has begun, and `publishing` counts
    those in progress, which are of the first round. `publish_losses` has what each of them cost.
    """

    source: object
    number: int = 0
    state: S | None = None
    planned: bool = False
    work: Sequence[Work] = ()
    shared: object = None
    windows_each: Sequence[int] = ()
    pixels_each: Sequence[int] = ()
    windows_left: int = 0
    pieces_left: int = 0
    ended: bool = False
    crashes: int = 0
    nodes_lost: tuple[str | None, ...] = ()
    suspect: bool = False
    publish_rounds: list[list[str]] = field(default_factory=list)
    publishing: int = 0
    publish_losses: dict[str, Piece[S]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add_seconds(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def add_use(self, use: DetectorUse, *, share: float = 1.0) -> None:
        """Add this scene's share of what a detector did for a call."""
        self.add_seconds("detect", use.computed_s * share)
        self.add_seconds("stage", use.staged_s * share)


@dataclass(slots=True, eq=False)
class Piece(Generic[S]):
    """A piece of work and its history.

    `crashes` counts the workers that it cost, `nodes_lost` are the nodes that died with it. A piece
    that failed in a batch is processed `alone` from then on. `suspect` says that a worker on it
    was killed for lack of memory. `lost_on` is the node where it last cost a detector.
    """

    scene: SceneInProgress[S]
    index: int
    crashes: int = 0
    nodes_lost: tuple[str | None, ...] = ()
    suspect: bool = False
    alone: bool = False
    lost_on: str | None = None

    @property
    def work(self) -> Work:
        return self.scene.work[self.index]

    @property
    def windows(self) -> int:
        each = self.scene.windows_each
        return int(each[self.index]) if len(each) else self.work.windows

    @property
    def pixels(self) -> int:
        each = self.scene.pixels_each
        return int(each[self.index]) if len(each) else self.work.pixels

    @property
    def ended(self) -> bool:
        return self.scene.ended


def portions_of(pieces: Sequence[Piece[S]]) -> list[Portion]:
    """Return what workers need to know of pieces: neighbours of one scene are one portion."""
    return [
        Portion(scene.shared, tuple(piece.index for piece in of_scene))
        for scene, of_scene in groupby(pieces, lambda piece: piece.scene)
    ]


def to_avoid(pieces: Sequence[Piece[S]]) -> frozenset[str]:
    """Return the nodes where pieces cost a detector: elsewhere, the next one may be well."""
    return frozenset(piece.lost_on for piece in pieces if piece.lost_on is not None)


@dataclass(slots=True, eq=False)
class DetectorSlot:
    """A detector and its queued calls. `alone` says that its call must have no company,
    `leaving` that its node was told to go: it gets no more calls.

    It computes the first one. The next may compute while the first writes its parts.
    """

    handle: object
    number: int
    node: str | None = None
    up: bool = False
    alone: bool = False
    leaving: bool = False
    queued: list[Ref[DetectorUse]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PlanCall(Generic[S, R]):
    """Plan a scene."""

    ref: Ref[Planned[S, R]]
    scene: SceneInProgress[S]
    step = "plan"


@dataclass(frozen=True, slots=True)
class ReadCall(Generic[S]):
    """Read the pixels of pieces of work."""

    ref: Ref[ReadOutcome]
    pieces: tuple[Piece[S], ...]
    pixels: object
    near: str | None = None
    step = "read"


@dataclass(frozen=True, slots=True)
class StartCall:
    """Start a detector."""

    ref: Ref[None]
    detector: DetectorSlot
    step = "start"


@dataclass(frozen=True, slots=True)
class DetectCall(Generic[S]):
    """Detect on the pixels of pieces of work."""

    ref: Ref[DetectorUse]
    pieces: tuple[Piece[S], ...]
    detector: DetectorSlot
    step = "detect"


@dataclass(frozen=True, slots=True)
class PieceCall(Generic[S]):
    """Prepare a piece of a scene that is published in pieces."""

    ref: Ref[None]
    scene: SceneInProgress[S]
    name: str
    step = "publish"


@dataclass(frozen=True, slots=True)
class FinishCall(Generic[S, R]):
    """Publish a scene."""

    ref: Ref[R]
    scene: SceneInProgress[S]
    step = "finish"


SceneCall: TypeAlias = PlanCall[S, R] | PieceCall[S] | FinishCall[S, R]
TaskCall: TypeAlias = SceneCall[S, R] | ReadCall[S]
Call: TypeAlias = TaskCall[S, R] | StartCall | DetectCall[S]


def pieces_of(call: Call[S, R]) -> tuple[Piece[S], ...]:
    """Return the pieces of work that a call is about."""
    return call.pieces if isinstance(call, ReadCall | DetectCall) else ()


def scenes_of(call: Call[S, R]) -> list[SceneInProgress[S]]:
    """Return the scenes that a call is about, each once."""
    if isinstance(call, PlanCall | PieceCall | FinishCall):
        return [call.scene]
    return list(dict.fromkeys(piece.scene for piece in pieces_of(call)))


def is_suspect(call: Call[S, R]) -> bool:
    """Say whether a worker on the same work was killed for lack of memory before."""
    if isinstance(call, PlanCall | PieceCall | FinishCall):
        return call.scene.suspect
    return any(piece.suspect for piece in pieces_of(call))


def described(call: Call[S, R]) -> str:
    """Name the step and the first scene of a call, for warnings."""
    scenes = scenes_of(call)
    if not scenes:
        return call.step
    others = f" and {len(scenes) - 1} more" if len(scenes) > 1 else ""
    return f"{call.step} of {scenes[0].source}{others}"


@dataclass(slots=True)
class _TimeLimit:
    """`seconds` a call may run, and when (by `time.monotonic`) to look at it next."""

    seconds: float
    look_at: float


class Calls(Generic[S, R]):
    """The calls in progress, each with its time limit."""

    def __init__(self, workers: Workers[S, R]) -> None:
        self._workers = workers
        self._calls: dict[Ref[object], Call[S, R]] = {}
        self._limits: dict[Ref[object], _TimeLimit] = {}
        self._looks: list[tuple[float, int, Ref[object]]] = []  # a heap; ended calls stay in it
        self._numbers = count()
        self._of_kind: Counter[type] = Counter()

    def __iter__(self) -> Iterator[Call[S, R]]:
        return iter(list(self._calls.values()))

    def __len__(self) -> int:
        return len(self._calls)

    def count(self, kind: type[PlanCall[S, R] | ReadCall[S] | PieceCall[S]]) -> int:
        """Return the number of calls of one kind."""
        return self._of_kind[kind]

    def add(self, call: Call[S, R], limit_s: float = math.inf) -> None:
        """Add a call that has just been started."""
        now, wait_s = time.monotonic(), limit_s
        if not isinstance(call, StartCall | DetectCall):  # a task may wait for a worker first
            wait_s = min(limit_s, _LOOK_EVERY_S)
        self._calls[call.ref] = call
        self._of_kind[type(call)] += 1
        self._limits[call.ref] = _TimeLimit(limit_s, now + wait_s)
        self._look_again(call.ref, now)

    def _look_again(self, ref: Ref[object], now: float) -> None:
        """Note when to look at a call: at its time, but soon, because that may come nearer."""
        at = self._limits[ref].look_at
        if at < math.inf:
            at = min(at, now + _LOOK_EVERY_S)
            heapq.heappush(self._looks, (at, next(self._numbers), ref))

    def remove(self, call: Call[S, R]) -> None:
        """Remove a call that has ended or was killed."""
        del self._calls[call.ref], self._limits[call.ref]
        self._of_kind[type(call)] -= 1

    def remove_detect(self, call: DetectCall[S], limit_s: float) -> None:
        """Take a call that has ended from its detector, whose next call begins now."""
        call.detector.queued.remove(call.ref)  # rarely, Ray reports the second one first
        call.detector.alone = False
        for ref in call.detector.queued:
            self._limits[ref].look_at = time.monotonic() + limit_s

    def take_all_of(self, lost: DetectCall[S]) -> list[DetectCall[S]]:
        """Remove the other calls of a detector that died with a call that is removed already.

        Return all calls of the detector, the first one first.
        """
        calls: list[DetectCall[S]] = []
        for ref in lost.detector.queued:
            call = lost if ref == lost.ref else self._calls.get(ref)
            if isinstance(call, DetectCall):
                calls.append(call)
            if call is not None and call is not lost:
                self.remove(call)
        return calls

    def wait(self) -> Iterator[Call[S, R]]:
        """Wait a short time for calls to end; remove and yield those that have ended."""
        while self._looks and self._looks[0][2] not in self._calls:
            heapq.heappop(self._looks)
        first = self._looks[0][0] - time.monotonic() if self._looks else math.inf
        timeout_s = min(max(first, 0.0), _LONGEST_WAIT_S)
        for ref in self._workers.wait(self._calls.keys(), timeout_s):
            call = self._calls.get(ref)
            if call is not None:  # it may have died with another one in the meantime
                self.remove(call)
                yield call

    def take_expired(self) -> Iterator[Call[S, R]]:
        """Remove and yield the calls that have exceeded their time limit."""
        now = time.monotonic()
        while self._looks and self._looks[0][0] <= now:
            ref = heapq.heappop(self._looks)[2]
            call = self._calls.get(ref)
            if call is None:
                continue
            limit = self._limits[ref]
            if limit.look_at <= now:
                limit.look_at = now + self._seconds_left(call, limit.seconds)
            if limit.look_at > now:
                self._look_again(ref, now)
                continue
            self.remove(call)
            if not isinstance(call, StartCall | DetectCall):
                self._workers.cancel(ref)
            yield call

    def _seconds_left(self, call: Call[S, R], limit_s: float) -> float:
        """Return for how long a call may go on that is due to be looked at.

        A task may have waited long for a worker, for example while the cluster grows. So its time
        begins when it is first seen running. A detector that is up begins at once.
        """
        if isinstance(call, StartCall | DetectCall):
            return 0.0
        busy_s = self._workers.busy_s(call.ref)
        return min(limit_s, _LOOK_EVERY_S) if busy_s is None else limit_s - busy_s

    def cancel_tasks(self) -> None:
        """Kill all calls except those of detectors."""
        for call in self._calls.values():
            if not isinstance(call, StartCall | DetectCall):
                self._workers.cancel(call.ref)
