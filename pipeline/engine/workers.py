"""What the loop needs from the system that runs the steps; `engine.ray` is such a system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from scenesweep.pipeline.engine.steps import DetectorUse, Planned, R, S, Unreadable, Work

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class StepRaised(Exception):
    """A step raised the error in `args[0]`. A retry would raise it again."""


class WorkerLost(Exception):
    """A worker process or its node died. `args[0]` is the reason."""


class LostForMemory(WorkerLost):
    """A worker was killed because its node ran out of memory, perhaps by the work of another."""


class NodeLost(WorkerLost):
    """The node of a worker died or was cut off. `node` is its id, None if that is not known."""

    def __init__(self, reason: str, node: str | None = None) -> None:
        super().__init__(reason)
        self.node = node


class MachineUnfit(WorkerLost):
    """A detector cannot start on its machine, for example because the driver is too old."""


class PixelsLost(Exception):
    """The node that had read the pixels for a step died. `args[0]` is the reason.

    The worker that needed the pixels is still well. Neither it nor the work is to blame, so the
    pixels are read again.
    """


@dataclass(frozen=True, slots=True)
class Ref(Generic[T_co]):
    """Stands for the value that a call will return. Only the workers know what `handle` is."""

    handle: Hashable


@dataclass(frozen=True, slots=True)
class Portion:
    """Some of a scene's work: what `Workers.share` returned, and places in it."""

    work: object
    indices: tuple[int, ...]


def work_of(portions: Sequence[Portion]) -> list[Any]:
    """Return the pieces of work in portions whose `work` is the sequence itself."""
    portions_of_work: Any = portions
    return [portion.work[index] for portion in portions_of_work for index in portion.indices]


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """What a read reports besides its pixels: its seconds, and one item per piece of work.

    An item is None if the pixels of that piece were read. `size` is the bytes of all pixels, 0 if
    it is not known.
    """

    unreadable: tuple[Unreadable | None, ...]
    seconds: float
    size: int = 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is at the moment: it may grow and shrink.

    `readers` is the number of reads that can run at the same time, None if it is not known.
    `detectors` is the number of detectors that have room, with those that are there, and
    `store_bytes` the memory for pixels that wait; both are 0 if not known. `nodes` are those that
    can hold a detector, `leaving` those that were told to go.
    """

    readers: int | None = None
    detectors: int = 0
    store_bytes: int = 0
    nodes: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()


class Workers(ABC, Generic[S, R]):
    """Runs the steps elsewhere. A method that starts a step returns a reference at once."""

    @abstractmethod
    def plan(self, source: object) -> Ref[Planned[S, R]]: ...

    def share(self, work: Sequence[Work]) -> object:
        """Make a scene's work known to all workers. Return what stands for it in a `Portion`."""
        return work

    def cluster(self) -> Cluster:
        """Return what there is at the moment. The loop asks every few seconds."""
        return Cluster()

    @abstractmethod
    def read(
        self, work: Sequence[Portion], *, near: str | None = None
    ) -> tuple[Ref[ReadOutcome], object]:
        """Return references to the outcome and to the pixels of the pieces that were read.

        The read runs on the node `near`, or elsewhere if that node is busy.
        """

    @abstractmethod
    def start_detector(self, *, avoid: Collection[str] = ()) -> tuple[object, Ref[None]]:
        """Return a new detector, and a reference whose call ends when the detector is up.

        It does not start on a node that is to be avoided.
        """

    def node_of(self, detector: object) -> str | None:
        """Return the node that a detector runs on; None if that is not known."""
        return None

    def is_gone(self, node: str) -> bool:
        """Say whether a node died or cannot be reached, perhaps before the cluster notices it."""
        return False

    @abstractmethod
    def detect(self, detector: object, work: Sequence[Portion], pixels: object) -> Ref[DetectorUse]:
        """Return a reference to what the detector did.

        Calls of one detector may run at the same time: one computes while another one stages.
        """

    def publish_piece(self, state: S, name: str) -> Ref[None]:
        """Prepare a piece of a scene. Only for steps that publish in pieces."""
        raise NotImplementedError

    @abstractmethod
    def finish(self, state: S, seconds: Mapping[str, float]) -> Ref[R]: ...

    @abstractmethod
    def wait(self, refs: Collection[Ref[object]], timeout_s: float) -> Sequence[Ref[object]]:
        """Wait until some calls have ended, at most `timeout_s`, and return their references."""

    @abstractmethod
    def busy_s(self, ref: Ref[object]) -> float | None:
        """Return for how long a call is known to run; None while it waits for a worker.

        The time is measured by the clock of this process only, from the first time that this
        method saw the call running. Not for calls of detectors.
        """

    @abstractmethod
    def value(self, ref: Ref[T]) -> T:
        """Return the value of a call that has ended.

        Raises:
            StepRaised: if the step raised.
            WorkerLost: if the worker died; NodeLost if it is known that its node did.
            PixelsLost: if the node died that held the pixels for the step.
        """

    @abstractmethod
    def cancel(self, ref: Ref[object]) -> None:
        """Kill a call at once. Not for calls of detectors."""

    @abstractmethod
    def stop_detector(self, detector: object) -> None:
        """Kill a detector at once."""
