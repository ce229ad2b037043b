"""Causes of failure that many scenes share, such as missing credentials: shown once, counted."""

from __future__ import annotations

from scenesweep.pipeline.storage.cloud_settings import NO_CREDENTIALS

_SHARED = tuple(NO_CREDENTIALS.values())


class SharedCauses:
    """The shared causes that were shown already, and how often each came again."""

    def __init__(self) -> None:
        self._again: dict[str, int] = {}

    def is_repeated(self, reason: str) -> bool:
        """Count a reason; return whether its cause was shown before."""
        cause = next((cause for cause in _SHARED if cause in reason), None)
        if cause is None:
            return False
        repeated = cause in self._again
        self._again[cause] = self._again.get(cause, -1) + 1
        return repeated

    def lines(self) -> list[str]:
        """Return one line for each cause that came again."""
        return [
            f"{count:,} more scene{'s' if count > 1 else ''} failed for the same reason: {cause}"
            for cause, count in self._again.items()
            if count
        ]
