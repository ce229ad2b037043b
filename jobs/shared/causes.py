"""Causes that all scenes of a run share, such as missing credentials: said once, and counted."""

from __future__ import annotations

from scenesweep.pipeline.storage.network import NO_CREDENTIALS

_SHARED = (NO_CREDENTIALS,)


class SharedCauses:
    """Which causes of failure were said already, and how often they came again."""

    def __init__(self) -> None:
        self._again: dict[str, int] = {}

    def is_repeated(self, reason: str) -> bool:
        """Count a reason, and say whether its cause was said before and need not be said again."""
        cause = next((cause for cause in _SHARED if cause in reason), None)
        if cause is None:
            return False
        repeated = cause in self._again
        self._again[cause] = self._again.get(cause, -1) + 1
        return repeated

    def lines(self) -> list[str]:
        """Say how many more scenes had each cause."""
        return [
            f"{count:,} more scene{'s' if count > 1 else ''} failed for the same reason: {cause}"
            for cause, count in self._again.items()
            if count
        ]
