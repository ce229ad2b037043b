"""Measure a detector's time, and let it compute while other threads read and stage.

    thread of call i + 1:   windows ----------> wait ....................
    detector's thread:      start i | start i + 1 | end i | end i + 1 | ...
    thread of call i:       wait .......................  report, write part i

Each call has a thread of its own from its pixels to its part, so an error reaches its own call,
and a call has ended only when its part is written. The caller limits the number of calls. On a GPU,
the detector starts on the windows of the next call before it waits for those of the last one. On a
CPU, a start computes.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol, runtime_checkable

import numpy as np

from scenesweep.model.boxes import ChipDetector, DetectorOutput
from scenesweep.model.inference.windows import AnyWindows
from scenesweep.pipeline.detection.computing import Computing

_LOOK_S = 0.0005  # how often to look for the next call while a GPU computes the last one


@dataclass(frozen=True, slots=True)
class Computed:
    """A detector's output, the seconds that it computed, and waited before for these chips."""

    output: DetectorOutput
    seconds: float
    waited: float


class Ticket(Protocol):
    """Windows on which a detector has started."""

    @property
    def is_done(self) -> bool:
        """Say whether `collect` returns without waiting."""
        ...


@runtime_checkable
class StartingDetector(Protocol):
    """A detector that can start on windows without waiting for them, as on a GPU."""

    def submit(self, *parts: AnyWindows) -> Ticket:
        """Start on windows of one shape."""
        ...

    def collect(self, ticket: Any) -> DetectorOutput:
        """Wait for windows, and return their boxes."""
        ...


@dataclass(frozen=True, slots=True)
class _Done:
    """The output of a detector that cannot start without waiting."""

    output: DetectorOutput
    is_done = True


def _start(detector: ChipDetector, parts: Sequence[AnyWindows]) -> Ticket:
    if isinstance(detector, StartingDetector):
        return detector.submit(*parts)
    chips = [part.chips() for part in parts]
    return _Done(detector.detect(chips[0] if len(chips) == 1 else np.concatenate(chips)))


def _end(detector: ChipDetector, ticket: Ticket) -> DetectorOutput:
    if isinstance(ticket, _Done):
        return ticket.output
    assert isinstance(detector, StartingDetector)
    return detector.collect(ticket)


class TimedDetector:
    """A detector that measures for how long it computes, and for how long it waits in between.

    Its caller's thread computes.
    """

    def __init__(self, detector: ChipDetector, clock: Callable[[], float] = time.monotonic) -> None:
        self._detector, self._clock = detector, clock
        self._free_since = clock()

    @property
    def runs_on(self) -> str:
        """The device and precision in use."""
        return self._detector.runs_on

    def compute(self, parts: Sequence[AnyWindows]) -> Computed:
        """Detect boxes in windows of one shape, and measure the time."""
        begun = self._clock()
        waited = begun - self._free_since
        try:
            output = _end(self._detector, _start(self._detector, parts))
        finally:
            self._free_since = self._clock()
        return Computed(output, self._free_since - begun, waited)

    def peak_bytes(self) -> int:
        """Return the most memory that this detector has used: of its GPU, or of its process."""
        computing = Computing.of(self.runs_on)
        if computing is None or computing.device != "cuda":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        from scenesweep.model.inference.gpu import peak_memory_bytes

        return peak_memory_bytes()


@dataclass(frozen=True, slots=True)
class _Call:
    """Windows that wait for the detector's thread, and where their result goes."""

    parts: Sequence[AnyWindows]
    result: Future[Computed]


@dataclass(frozen=True, slots=True)
class _Started:
    """A call on which the detector has started, when, and how long it had nothing to do before."""

    call: _Call
    ticket: Ticket
    begun: float
    waited: float


class DetectorThread(TimedDetector):
    """A detector that computes in a thread of its own; any thread may call it.

    `make` makes the detector in that thread, because torch's number of threads and the current
    GPU belong to the thread that sets them. Windows are computed in the order in which they come.
    """

    def __init__(
        self, make: Callable[[], ChipDetector], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        made: Future[ChipDetector] = Future()
        Thread(target=self._work, args=(make, made), name="detector", daemon=True).start()
        super().__init__(made.result(), clock)

    def compute(self, parts: Sequence[AnyWindows]) -> Computed:
        """Detect boxes in windows of one shape, in the detector's thread."""
        call = _Call(parts, Future())
        self._calls.put(call)
        return call.result.result()

    def _work(self, make: Callable[[], ChipDetector], made: Future[ChipDetector]) -> None:
        try:
            detector = make()
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(detector)
        running: _Started | None = None
        while True:
            call = self._next(running)
            started = None if call is None else self._begin(detector, call, idle=running is None)
            if running is not None:
                self._finish(detector, running)
            running = started
            if running is not None and running.ticket.is_done:  # as always on a CPU
                self._finish(detector, running)
                running = None

    def _next(self, running: _Started | None) -> _Call | None:
        """Return the next call; None if the running one is done before there is a next."""
        if running is None:
            return self._calls.get()
        while True:
            with suppress(Empty):
                return self._calls.get(timeout=_LOOK_S)
            if running.ticket.is_done:
                return None

    def _begin(self, detector: ChipDetector, call: _Call, *, idle: bool) -> _Started | None:
        begun = self._clock()
        waited = begun - self._free_since if idle else 0.0
        try:
            return _Started(call, _start(detector, call.parts), begun, waited)
        except Exception as error:
            self._free_since = self._clock()
            call.result.set_exception(error)
            return None

    def _finish(self, detector: ChipDetector, started: _Started) -> None:
        result = started.call.result
        since = max(started.begun, self._free_since)  # before, it computed the last call
        try:
            output = _end(detector, started.ticket)
        except Exception as error:
            self._free_since = self._clock()
            result.set_exception(error)
        else:
            self._free_since = self._clock()
            result.set_result(Computed(output, self._free_since - since, started.waited))


class Stopwatch:
    """A detector for one call: it passes windows on, and sums up what the call costs.

    All time of the call that is not spent on computing, or on waiting for the detector, is spent
    on staging: on the report of the shards and on their part files.
    """

    def __init__(
        self, detector: TimedDetector, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._detector, self._clock = detector, clock
        self.computed_s = self.waited_s = self._inside_s = 0.0
        self.chips = 0
        self._begun = clock()

    @property
    def runs_on(self) -> str:
        return self._detector.runs_on

    def detect_windows(self, parts: Sequence[AnyWindows]) -> DetectorOutput:
        """Detect boxes in windows of one shape."""
        begun = self._clock()
        computed = self._detector.compute(parts)
        self._inside_s += self._clock() - begun
        self.computed_s += computed.seconds
        self.waited_s += computed.waited
        self.chips += sum(map(len, parts))
        return computed.output

    @property
    def staged_s(self) -> float:
        """Seconds since the beginning of the call without those inside the detector."""
        return self._clock() - self._begun - self._inside_s
