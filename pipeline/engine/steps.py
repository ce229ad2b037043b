"""The steps of a sweep. `engine.local` runs them in a loop, `engine.ray` on Ray.

The steps pass opaque values: a runner knows nothing of rasters or boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from scenesweep.pipeline.errors import OutputError, ScenesweepError, shortened


class Work(Protocol):
    """A piece of work of some scene: what is read and detected in one go."""

    @property
    def windows(self) -> int:
        """How much it is."""
        ...

    @property
    def pixels(self) -> int:
        """How many pixels it answers for."""
        ...


class Stop(Protocol):
    """Says whether the run was asked to end: nothing new is begun then."""

    def __call__(self) -> bool: ...


S = TypeVar("S")  # a scene's state, made by `plan` and used by `finish`
R = TypeVar("R")  # a scene's result


@dataclass(frozen=True, slots=True)
class Planned(Generic[S, R]):
    """A scene's state and work, or its result where there is nothing to do.

    `work` may make its items when they are asked for: a scene can have very many. `windows` is
    how much they are together.
    """

    state: S | None
    work: Sequence[Work] = ()
    windows: int = 0
    result: R | None = None


@dataclass(frozen=True, slots=True)
class Steps(Generic[S, R]):
    """The functions of a sweep. Each may be called again after a crash, with equal outcome."""

    plan: Callable[[Any], Planned[S, R]]
    """A source's state and work."""
    read: Callable[[Sequence[Any]], tuple[list[Any], dict[int, str]]]
    """The pixels of the work that could be read, in order, and why the others could not."""
    make_detector: Callable[[Any], Any]
    """A detector from the sweep's weights; made once a worker."""
    detect: Callable[[Any, Sequence[Any], list[Any]], None]
    """Detect and stage: a detector, work, and its pixels."""
    finish: Callable[[S, Mapping[str, float]], R]
    """Publish a scene whose work is all staged; seconds by stage go into the result."""
    fail: Callable[[Any, str, bool], R]
    """The result of a source that is given up: source, reason, and whether it is our bug."""


def never() -> bool:
    """Do not stop."""
    return False


def reason_of(error: BaseException) -> tuple[str, bool]:
    """Say in a line why a step failed, and whether that is our bug.

    Raises:
        OutputError: when that is why, for it is not of one scene alone.
    """
    if isinstance(error, OutputError):
        raise error
    if isinstance(error, ScenesweepError):
        return str(error), False
    return one_line(error), not isinstance(error, OSError)


def one_line(error: BaseException) -> str:
    """Return an error's kind and text on one line."""
    return shortened(f"{type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: scenes, windows and pixels, done and known so far."""

    scenes_done: int
    windows_done: int
    windows_known: int
    detectors: int
    scenes_planned: int = 0
    pixels_done: int = 0
