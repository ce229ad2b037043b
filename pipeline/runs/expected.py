"""Completeness: the scenes that a run was expected to publish, against what it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["done", "failed", "late", "missing"]


@dataclass(frozen=True, slots=True)
class Expected:
    """Ids of expected scenes by what became of them.

    `late` scenes are among the sources, but the run ended before it tried them: a deadline, a
    limit, another shard, or it was stopped; or another run is working on them. `missing` scenes
    are not among the sources.
    """

    done: int = 0
    failed: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def counts(self) -> dict[State, int]:
        """Return the number of scenes in each state."""
        return {
            "done": self.done,
            "failed": len(self.failed),
            "late": len(self.late),
            "missing": len(self.missing),
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.counts().items() if count)
        return counts or "none"


def completeness(
    expected: Iterable[str], sources: Iterable[str], statuses: Mapping[str, str]
) -> Expected:
    """Compare ids of expected scenes with those of the sources, and the statuses of a run by id."""
    named, known = sorted(set(expected)), set(sources)
    status = {scene: statuses.get(scene, "") for scene in named}
    return Expected(
        done=sum(status[scene] in ("done", "up-to-date") for scene in named),
        failed=tuple(s for s in named if status[s] in ("failed", "quarantined")),
        late=tuple(s for s in named if status[s] in ("", "in-use") and s in known),
        missing=tuple(s for s in named if not status[s] and s not in known),
    )
