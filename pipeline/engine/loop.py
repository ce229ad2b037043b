"""The bounded loop between planning, reading, detecting and publishing, wherever these run.

It decides what a scheduler leaves to its caller: how much is under way at once, how often a
piece of work is tried, how long it may take, and when a scene is given up. It knows nothing of
rasters or boxes, nor of Ray: it moves opaque scenes and work between `Workers`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic

from scenesweep.pipeline.engine.flights import Flight, Hired, Piece, SceneInWork, named, scenes_of
from scenesweep.pipeline.engine.steps import Planned, Progress, R, S, reason_of
from scenesweep.pipeline.engine.workers import (
    LostForMemory,
    PixelsLost,
    StepRaised,
    WorkerLost,
    Workers,
)
from scenesweep.pipeline.errors import ScenesweepError
from scenesweep.pipeline.settings import EngineSettings

log = logging.getLogger(__name__)

_IN_HAND = 2  # pieces of work at each detector: one in the network, the next one's pixels there
_STARTS_AT_MOST = 5  # generations of detectors in a row that die before one comes up
_LONG_START_S = 120.0  # without a detector, after which this is said
_LOOK_S = 0.5  # the longest sleep: a request to stop is seen after it
_DOUBLED_S = 5.0  # until twice as many scenes are planned at once where nothing seems to be to do
_QUEUED_S = 5.0  # how often a task is asked whether it has begun: its time limit counts from then


@dataclass(frozen=True, slots=True)
class Hear(Generic[R]):
    """What the loop calls back: a result, a warning, and to have the result of what failed."""

    result: Callable[[R], None]
    warning: Callable[[str], None]
    fail: Callable[[str, str, bool], R]


class Loop(Generic[S, R]):
    """The state of a run. `advance` starts what may be started and handles what has ended."""

    def __init__(
        self,
        sources: Iterator[Any],
        workers: Workers,
        settings: EngineSettings,
        detectors: int,
        hear: Hear[R],
        *,
        expect_work: bool = True,
    ) -> None:
        self._expect_work = expect_work
        self._sources: Iterator[Any] | None = sources
        self._workers, self._settings, self._most, self._hear = workers, settings, detectors, hear
        self._queue: deque[Piece[S]] = deque()
        self._suspects: deque[tuple[str, Piece[S] | SceneInWork[S]]] = deque()
        self._ready: deque[Flight[S]] = deque()
        self._flights: dict[Any, Flight[S]] = {}
        self._detectors: list[Hired] = []
        self._in_the_end: set[Any] | None = None
        self._failed_starts = self._hired = self._hired_before = 0
        self._began, self._alone = time.monotonic(), True
        self._scenes_begun = self._scenes_planned = self._scenes_done = 0
        self._windows_done = self._windows_known = self._pixels_done = 0

    def advance(self) -> bool:
        """Do one round; False when nothing is left."""
        self._try_suspect()
        self._plan()
        self._read()
        self._staff()
        self._detect()
        if not self._flights or self._is_over():
            return False
        self._handle()
        return True

    def drain(self) -> bool:
        """Handle what ends and begin nothing; False when no shard or scene is in the middle."""
        if self._in_the_end is None:
            begun = {detector.hand[0] for detector in self._detectors if detector.hand}
            finishing = {ref for ref, flight in self._flights.items() if flight.kind == "finish"}
            self._in_the_end = begun | finishing
        self._in_the_end &= self._flights.keys()
        if not self._in_the_end:
            return False
        self._handle()
        return True

    def _is_over(self) -> bool:
        """Say whether all scenes have ended: a detector may still be coming up in vain."""
        return self._sources is None and self._scenes_done == self._scenes_begun

    def progress(self) -> Progress:
        up = sum(detector.up for detector in self._detectors)
        return Progress(
            scenes_done=self._scenes_done,
            windows_done=self._windows_done,
            windows_known=self._windows_known,
            detectors=up,
            scenes_planned=self._scenes_planned,
            pixels_done=self._pixels_done,
        )

    def close(self) -> None:
        """Stop everything that is still under way."""
        for ref, flight in self._flights.items():
            if flight.detector is None:
                self._workers.cancel(ref)
        for detector in self._detectors:
            self._workers.dismiss(detector.actor)

    # Starting work

    def _plan(self) -> None:
        limit = self._planned_at_once()
        while (
            self._sources is not None
            and self._count("plan") < limit
            and len(self._queue) < 8 * self._most * _IN_HAND
        ):
            source = next(self._sources, None)
            if source is None:
                self._sources = None
                return
            self._scenes_begun += 1
            self._fly_plan(SceneInWork(source))

    def _planned_at_once(self) -> int:
        """Return how many scenes may be planned at the same time.

        Few at first where all scenes seem to be up to date: a worker takes longer to start than
        to look at hundreds of them. More if it takes long, as over a slow network.
        """
        most = 2 * self._most
        if self._expect_work:
            return most
        doublings = int((time.monotonic() - self._began) / _DOUBLED_S)
        return most if doublings > most else min(most, 2**doublings)

    def _fly_plan(self, scene: SceneInWork[S]) -> None:
        ref = self._workers.plan(scene.source)
        self._fly(ref, "plan", self._settings.read_timeout_s, scene=scene)

    def _read(self) -> None:
        # Few at first: until a detector is up, more readers would only slow its start.
        limit = _IN_HAND * sum(detector.up for detector in self._detectors) + 1
        while self._queue and self._count("read") + len(self._ready) < limit:
            pieces = self._take()
            if not pieces:
                return
            self._fly_read(pieces)

    def _fly_read(self, pieces: list[Piece[S]]) -> None:
        said, pixels = self._workers.read([piece.work for piece in pieces])
        self._fly(said, "read", self._settings.read_timeout_s, pieces=pieces, pixels=pixels)

    def _try_suspect(self) -> None:
        """Begin what was lost for memory, unless another such is under way.

        Whoever takes all the memory of a node takes others with it: nobody is blamed the first
        time, and then these go one by one, so that the guilty does not take them with it again.
        """
        while self._suspects and self._suspects[0][1].gone:
            self._suspects.popleft()
        flying = [*self._flights.values(), *self._ready]
        if not self._suspects or any(flight.suspect for flight in flying):
            return
        kind, what = self._suspects[0]
        if isinstance(what, Piece):
            if not any(detector.up for detector in self._detectors):
                return
            self._fly_read([what])
        elif kind == "plan":
            self._fly_plan(what)
        else:
            self._finish(what)
        self._suspects.popleft()

    def _take(self) -> list[Piece[S]]:
        """Take a piece from the queue, and small ones with it while together they stay small.

        They are fewer as the queue runs dry, so that all detectors end together. What has
        failed in company goes alone, so that the next failure names it.
        """
        pieces: list[Piece[S]] = []
        windows = 0
        most = max(1, len(self._queue) // (_IN_HAND * self._most))
        while self._queue and len(pieces) < most:
            piece = self._queue[0]
            if piece.gone:
                self._queue.popleft()
                continue
            windows += piece.work.windows
            if pieces and (windows > self._settings.batch_windows or piece.alone):
                break
            pieces.append(self._queue.popleft())
            if piece.alone:
                break
        return pieces

    def _staff(self) -> None:
        """Ask for detectors up to the limit, as long as there is work for one more.

        All of them are asked for at once, not as reads end: an autoscaler starts the nodes that
        it is asked for together at the same time.
        """
        waiting = self._work_waiting()
        idle = [d for d in self._detectors if not d.hand]
        wanted = min(self._most, len(self._detectors) - len(idle) + waiting)
        for _ in range(wanted - len(self._detectors)):
            actor, up = self._workers.hire()
            self._hired += 1
            detector = Hired(actor, self._hired)
            self._detectors.append(detector)
            # A cluster may take any time to grow by the node that this one needs.
            self._fly(up, "start", math.inf, detector=detector)
        if self._alone and self._detectors and time.monotonic() - self._began > _LONG_START_S:
            log.warning("no detector has come up yet: has the cluster room for one, or will it?")
            self._alone = False
        if not (waiting or self._count("plan") or self._sources):
            for detector in [d for d in idle if d.up]:
                self._dismiss(detector)

    def _work_waiting(self) -> int:
        """Count the calls that detectors could begin, those still to be read among them.

        The count of what is queued ends at the limit of detectors: the queue may be long.
        """
        queued = islice((piece for piece in self._queue if not piece.gone), self._most)
        waiting = len(self._ready) + self._count("read") + sum(1 for _ in queued)
        if self._suspects:  # they go one by one
            waiting += 1
        # The first detector comes up while the first scenes are planned: it takes longer.
        if not waiting and not self._detectors and self._count("plan") and self._expect_work:
            return 1
        return waiting

    def _detect(self) -> None:
        while self._ready:
            free = [d for d in self._detectors if d.up and len(d.hand) < _IN_HAND]
            if not free:
                return
            detector = min(free, key=lambda d: len(d.hand))
            read = self._ready.popleft()
            work = [piece.work for piece in read.pieces]
            ref = self._workers.detect(detector.actor, work, read.pixels)
            detector.hand.append(ref)
            patience = self._settings.detect_timeout_s * len(detector.hand)
            self._fly(
                ref, "detect", patience, pieces=read.pieces, pixels=read.pixels, detector=detector
            )

    def _finish(self, scene: SceneInWork[S]) -> None:
        if self._in_the_end is None:
            ref = self._workers.finish(scene.state, scene.seconds)
            self._fly(ref, "finish", self._settings.publish_timeout_s, scene=scene)

    def _fly(self, ref: Any, kind: str, patience: float, **what: Any) -> None:
        flight = Flight(kind, ref, patience, time.monotonic() + patience, **what)
        if flight.detector is None:  # a task, which may wait for a worker first
            flight.deadline = time.monotonic() + min(patience, _QUEUED_S)
        self._flights[ref] = flight

    def _count(self, kind: str) -> int:
        return sum(flight.kind == kind for flight in self._flights.values())

    # Handling what has ended

    def _handle(self) -> None:
        patience = min(flight.deadline for flight in self._flights.values()) - time.monotonic()
        for ref in self._workers.wait(list(self._flights), min(max(patience, 0), _LOOK_S)):
            if ref in self._flights:
                self._landed(self._flights.pop(ref), ref)
        self._expire()

    def _landed(self, flight: Flight[S], ref: Any) -> None:
        try:
            value = self._workers.value(ref)
        except StepRaised as raised:
            self._raised(flight, raised.args[0])
        except PixelsLost as lost:
            self._pixels_lost(flight, str(lost))
        except WorkerLost as lost:
            self._crashed(flight, str(lost), for_memory=isinstance(lost, LostForMemory))
        else:
            getattr(self, f"_after_{flight.kind}")(flight, value)

    def _after_plan(self, flight: Flight[S], planned: Planned[S, R]) -> None:
        scene = flight.scene
        assert scene is not None
        self._scenes_planned += 1
        if planned.result is not None:
            self._close(scene, planned.result)
            return
        scene.state, scene.work, scene.open = planned.state, planned.work, len(planned.work)
        self._windows_known += planned.windows
        self._expect_work = True
        self._queue.extend(Piece(scene, index) for index in range(len(planned.work)))
        if not planned.work:
            self._finish(scene)

    def _after_read(self, flight: Flight[S], said: tuple[dict[int, str], float]) -> None:
        unreadable, seconds = said
        for index, reason in unreadable.items():
            self._give_up(flight.pieces[index].scene, reason)
        flight.pieces = [p for i, p in enumerate(flight.pieces) if i not in unreadable]
        for piece in flight.pieces:
            piece.scene.spend("read", seconds / len(flight.pieces))
        if flight.pieces:
            self._ready.append(flight)

    def _after_start(self, flight: Flight[S], _: None) -> None:
        assert flight.detector is not None
        flight.detector.up, self._alone = True, False
        self._failed_starts = 0

    def _after_detect(self, flight: Flight[S], seconds: float) -> None:
        assert flight.detector is not None
        self._hand_back(flight.detector, flight.ref)
        for piece in flight.pieces:
            piece.scene.spend("detect", seconds / len(flight.pieces))
            piece.scene.open -= 1
            self._windows_done += piece.work.windows
            self._pixels_done += piece.work.pixels
            if piece.scene.open == 0 and not piece.gone:
                self._finish(piece.scene)

    def _hand_back(self, detector: Hired, ref: Any) -> None:
        """Take a call that has ended from its detector, which begins the next one now."""
        detector.hand.remove(ref)  # seldom the second one ends first
        for waiting in detector.hand:
            self._flights[waiting].deadline = time.monotonic() + self._settings.detect_timeout_s

    def _after_finish(self, flight: Flight[S], result: R) -> None:
        assert flight.scene is not None
        self._close(flight.scene, result)

    def _raised(self, flight: Flight[S], error: BaseException) -> None:
        """Our own code raised: trying again would raise again, except for its companions."""
        if flight.kind == "start":
            raise error
        if flight.detector is not None:
            self._hand_back(flight.detector, flight.ref)
        reason, bug = reason_of(error)
        if len(flight.pieces) > 1:
            for piece in flight.pieces:
                piece.alone = True
            self._requeue(flight.pieces)
            return
        if bug and not all(scene.gone for scene in scenes_of(flight)):
            log.error("unexpected error in %s", flight.kind, exc_info=error)
        for scene in scenes_of(flight):
            self._give_up(scene, reason, bug=bug)

    def _pixels_lost(self, flight: Flight[S], reason: str) -> None:
        """The node that read the pixels is gone: read them again, and blame nobody.

        The detector is well and stays. This counts as no attempt: a night on nodes that may be
        taken away at any time loses many of them.
        """
        if flight.detector is None or flight.kind == "start":
            self._crashed(flight, reason)
            return
        self._hear.warning(f"{named(flight)}: pixels lost with their node ({reason}); read again")
        self._hand_back(flight.detector, flight.ref)
        self._requeue(flight.pieces)

    def _crashed(self, flight: Flight[S], reason: str, *, for_memory: bool = False) -> None:
        """A worker or its node is gone: try again, up to the limit."""
        self._hear.warning(f"{named(flight)}: worker lost ({reason})")
        if flight.detector is not None:
            self._lost(flight, reason, for_memory=for_memory)
        else:
            self._again(flight, reason, for_memory=for_memory)

    def _lost(self, flight: Flight[S], reason: str, *, for_memory: bool) -> None:
        """A detector is gone: only what it was working on may be to blame."""
        detector = flight.detector
        assert detector is not None
        if flight.kind == "start":
            if detector.number > self._hired_before:  # those that die together count once
                self._failed_starts += 1
                self._hired_before = self._hired
            if self._failed_starts >= _STARTS_AT_MOST:
                raise ScenesweepError(f"no detector comes up; the last one died: {reason}")
        elif detector in self._detectors:
            first, *others = [self._flights.pop(ref, flight) for ref in detector.hand] or [flight]
            self._again(first, reason, for_memory=for_memory)
            for other in others:
                self._requeue(other.pieces)
        self._dismiss(detector)

    def _again(self, flight: Flight[S], reason: str, *, for_memory: bool) -> None:
        """Try what was lost again, up to the limit; a first lack of memory does not count."""
        scene = flight.scene
        lost: list[Piece[S] | SceneInWork[S]] = [*flight.pieces, *([scene] if scene else [])]
        for what in lost:
            if for_memory and not what.suspect:
                what.suspect = True
                continue
            what.crashes += 1
            if what.crashes >= self._settings.attempts:
                whole = what.scene if isinstance(what, Piece) else what
                self._quarantine(whole, flight.kind, reason)
        for piece in flight.pieces:
            piece.alone = True
        self._requeue(flight.pieces)
        if scene is None or scene.gone or self._in_the_end is not None:
            return
        if scene.suspect:
            self._suspects.append((flight.kind, scene))
        elif flight.kind == "finish":
            self._finish(scene)
        else:
            self._fly_plan(scene)

    def _requeue(self, pieces: list[Piece[S]]) -> None:
        left = [piece for piece in pieces if not piece.gone]
        self._suspects.extend(("read", piece) for piece in left if piece.suspect)
        self._queue.extendleft(reversed([piece for piece in left if not piece.suspect]))

    def _quarantine(self, scene: SceneInWork[S], kind: str, reason: str) -> None:
        tries = self._settings.attempts
        said = f"given up: a worker was lost {tries} times in {kind} ({reason})"
        self._give_up(scene, said)

    def _expire(self) -> None:
        now = time.monotonic()
        for ref, flight in list(self._flights.items()):
            if flight.deadline > now or ref not in self._flights:
                continue
            left = self._time_left(flight)
            if left > 0:
                flight.deadline = now + left
                continue
            del self._flights[ref]
            if flight.detector is None:
                self._workers.cancel(ref)
            self._crashed(flight, "it took longer than its time limit")

    def _time_left(self, flight: Flight[S]) -> float:
        """Return the seconds that are left to a flight past its deadline.

        A task may have waited long for a worker, as where a cluster has yet to grow: its time
        begins when it is first seen to have begun. A detector that is up begins at once.
        """
        if flight.detector is not None:
            return 0.0
        spent = self._workers.busy_s(flight.ref)
        return min(flight.patience, _QUEUED_S) if spent is None else flight.patience - spent

    def _dismiss(self, detector: Hired) -> None:
        if detector in self._detectors:
            self._detectors.remove(detector)
            self._workers.dismiss(detector.actor)

    def _give_up(self, scene: SceneInWork[S], reason: str, *, bug: bool = False) -> None:
        if not scene.gone:
            self._close(scene, self._hear.fail(scene.source, reason, bug))

    def _close(self, scene: SceneInWork[S], result: R) -> None:
        scene.gone = True
        self._scenes_done += 1
        self._hear.result(result)
