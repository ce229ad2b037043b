"""What the loop asks of the place where the steps run; `pipeline.engine.ray` is such a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from scenesweep.pipeline.engine.steps import Work


class StepRaised(Exception):
    """A step raised the error that is `args[0]`; trying again would raise it again."""


class WorkerLost(Exception):
    """A worker or its node is gone, for the reason that is `args[0]`."""


class PixelsLost(Exception):
    """The pixels that a step was given are gone with the node that read them.

    `args[0]` is the reason. The worker that was to use them is well, and neither it nor the work
    is to blame: the pixels are read again.
    """


class LostForMemory(WorkerLost):
    """A worker was killed since its node ran out of memory, perhaps by the work of another."""


class Workers(Protocol):
    """Where the steps run. Calls begin them and return references to what they will return."""

    def plan(self, source: Any) -> Any: ...

    def read(self, work: Sequence[Work]) -> tuple[Any, Any]:
        """Return references to what is said of the work, with seconds, and to its pixels."""
        ...

    def hire(self) -> tuple[Any, Any]:
        """Return a new detector and a reference that is there when it is up."""
        ...

    def detect(self, detector: Any, work: Sequence[Work], pixels: Any) -> Any: ...

    def finish(self, state: Any, seconds: Mapping[str, float]) -> Any: ...

    def wait(self, refs: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """Return what has ended of some references, at the latest after the timeout."""
        ...

    def busy_s(self, ref: Any) -> float | None:
        """Return since when a step other than `detect` is known to be at work; None while it waits.

        Seconds since this was first asked and the step had begun, by the caller's clock alone.
        """
        ...

    def value(self, ref: Any) -> Any:
        """Return what a step that has ended returned.

        Raises:
            StepRaised: when it raised.
            WorkerLost: when its worker died.
            PixelsLost: when the node died that held what the step was given.
        """
        ...

    def cancel(self, ref: Any) -> None:
        """End a step other than `detect` at once."""
        ...

    def dismiss(self, detector: Any) -> None:
        """End a detector at once."""
        ...
