"""The steps of a sweep. `engine.local` runs them in a plain loop, `engine.ray` runs them on Ray.

The steps pass opaque values to each other: a runner knows nothing of rasters or boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from scenesweep.pipeline.errors import DetectorLost, OutputError, ScenesweepError, shortened


class Work(Protocol):
    """A piece of work of a scene (a shard): its pixels are read and detected on together."""

    @property
    def windows(self) -> int:
        """Number of windows: batches are limited by it."""
        ...

    @property
    def pixels(self) -> int:
        """Number of pixels in the cores of the windows."""
        ...


class Stop(Protocol):
    """Says whether somebody asked the run to stop. Then the runner starts nothing new."""

    def __call__(self) -> bool: ...


S = TypeVar("S")  # a scene's state: `plan` makes it, `finish` uses it
R = TypeVar("R")  # a scene's result


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands where the pixels of a piece of work would be, and says why they cannot be read."""

    reason: str


@dataclass(frozen=True, slots=True)
class Planned(Generic[S, R]):
    """A scene's state and work, or its result if there is nothing to do.

    `work` may create its items on access, because a scene can have very many. `windows` is the
    sum of their windows. `windows_each` and `pixels_each` have the sizes of all items, so that
    nobody has to create an item to know its size; if they are empty, the items are asked.
    `publish_rounds` are the names of the pieces in which a large scene is published before
    `finish`: those of one round at the same time.
    """

    state: S | None
    work: Sequence[Work] = ()
    windows: int = 0
    result: R | None = None
    windows_each: Sequence[int] = ()
    pixels_each: Sequence[int] = ()
    publish_rounds: Sequence[Sequence[str]] = ()


@dataclass(frozen=True, slots=True)
class DetectorUse:
    """What detectors did: for one call, or the sum of several.

    `computed_s` are seconds of computing and `waited_s` the seconds in between, in which a
    detector waited for pixels. Report and part files take `staged_s`, possibly while the detector
    computes for another call. `peak_bytes` is the most memory that one detector used.
    """

    computed_s: float = 0.0
    waited_s: float = 0.0
    staged_s: float = 0.0
    chips: int = 0
    peak_bytes: int = 0

    def __add__(self, other: DetectorUse) -> DetectorUse:
        return DetectorUse(
            self.computed_s + other.computed_s,
            self.waited_s + other.waited_s,
            self.staged_s + other.staged_s,
            self.chips + other.chips,
            max(self.peak_bytes, other.peak_bytes),
        )


def _no_piece(_: object, name: str) -> None:
    """Refuse a piece: these steps publish each scene at once."""
    raise ValueError(f"expected no pieces to publish, got {name}")


@dataclass(frozen=True, slots=True)
class Steps(Generic[S, R]):
    """The functions of a sweep. A runner may repeat each after a crash, with equal outcome.

    Runners pass sources, work, pixels, weights and detectors from one function to the next and
    never look inside, so only these functions know the types. That is why parameters are `Any`.
    """

    plan: Callable[[Any], Planned[S, R]]
    """Return the state and the work of a source."""
    read: Callable[[Sequence[Any]], Sequence[object]]
    """Read pixels: one item per piece of work, in order, which may be an `Unreadable`."""
    make_detector: Callable[[Any], object]
    """Make a detector from the sweep's weights. Each detector process calls it once."""
    detect: Callable[[Any, Sequence[Any], Sequence[Any]], DetectorUse | None]
    """Detect on pixels and write the part files: takes a detector, work, and its pixels.

    It may return what the detector did. Several threads may call it at once with one detector.
    """
    finish: Callable[[S, Mapping[str, float]], R]
    """Publish a scene when all its part files exist. The seconds per stage go into the result."""
    fail: Callable[[Any, str, bool], R]
    """Make the result of a failed source: takes the source, the reason, and whether it is a bug."""
    publish_piece: Callable[[S, str], None] = _no_piece
    """Prepare a piece of a large scene for `finish`, which makes missing pieces itself."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: scenes, windows and pixels, done and known so far.

    Windows of failed scenes count only if they were done before the scene failed.
    """

    scenes_done: int
    windows_done: int
    windows_known: int
    detectors: int
    scenes_planned: int = 0
    pixels_done: int = 0


def _ignore(_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Listener(Generic[R]):
    """What a runner reports to while it runs.

    It reports each scene's result, the progress, warnings, and what a detector did for a call.
    """

    result: Callable[[R], None] = _ignore
    progress: Callable[[Progress], None] = _ignore
    warning: Callable[[str], None] = _ignore
    detected: Callable[[DetectorUse], None] = _ignore


def never() -> bool:
    """Do not stop."""
    return False


def reason_of(error: BaseException) -> tuple[str, bool]:
    """Return in one line why a step failed, and whether that is a bug.

    Raises:
        OutputError, DetectorLost: if the error is one: it concerns the run, not one scene.
    """
    if isinstance(error, OutputError | DetectorLost):
        raise error
    if isinstance(error, ScenesweepError):
        return str(error), False
    return one_line(error), not isinstance(error, OSError)


def one_line(error: BaseException) -> str:
    """Return the type and the text of an error on one line."""
    return shortened(f"{type(error).__name__}: {error}")
